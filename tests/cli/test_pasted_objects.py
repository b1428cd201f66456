"""`voxelquant train` with a config that pastes objects of other frames."""

import os
import pickle
from pathlib import Path

import pytest
import yaml

from nuscenes_objects import write_filled_nuscenes
from nuscenes_world import CLASS_NAMES

CACHE = "object_database_v1.0-tiny_fit_2sweeps.safetensors"


@pytest.fixture(scope="session")
def filled(folder: Path) -> Path:
    return write_filled_nuscenes(folder / "filled").root


@pytest.fixture(scope="session")
def pasting_config(folder: Path, config: Path) -> Path:
    values = yaml.safe_load(config.read_text())
    values["name"] = "pasting"
    values["train"]["object_sampler"] = {
        "info_path": "dbinfos.pkl",
        "sample_groups": dict.fromkeys(CLASS_NAMES, 5),
        "min_points": dict.fromkeys(CLASS_NAMES, 5),
    }
    path = folder / "pasting.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def test_a_resumed_training_pastes_what_an_unbroken_one_pastes(
    tmp_path, done, filled, config, pasting_config
) -> None:
    def train(folder: str, *more: object, of: Path = pasting_config) -> tuple[Path, str]:
        common = ("--data", filled, "--split", "fit", "--steps", 3, "--batch-size", 2)
        result = done("train", of, *common, "--work-dir", tmp_path / folder, *more)
        return tmp_path / folder / "weights.safetensors", result.stderr

    unbroken, said = train("unbroken")
    assert f"cutting the objects of 3 frames into {filled / CACHE}" in said
    assert "none of construction_vehicle, truck is pasted" in said
    _, said = train("broken", "--stop-after-s", 1e-6)
    assert f"pasting objects of {filled / CACHE} (28 objects)" in said
    assert "cutting" not in said
    resumed, _ = train("broken", "--resume", "--num-workers", 1)
    assert resumed.read_bytes() == unbroken.read_bytes()
    without, said = train("without", of=config)
    assert "pasting" not in said
    assert without.read_bytes() != unbroken.read_bytes()


def test_objects_are_pasted_into_the_synthetic_world(tmp_path, done, pasting_config) -> None:
    world = ("--data", "synthetic", "--pool-size", 2, "--turnover", 0, "--steps", 1)
    result = done("train", pasting_config, *world, "--batch-size", 1, "--work-dir", tmp_path)
    assert "pasting objects of 2 synthetic frames" in result.stderr


def test_an_unsafe_database_is_refused_before_training(
    tmp_path, run, refusal, broken, pasting_config
) -> None:
    class Attack:
        def __reduce__(self):
            return os.system, ("true",)

    (broken / "dbinfos.pkl").write_bytes(pickle.dumps({"car": [Attack()]}))
    line = refusal("train", pasting_config, "--data", broken, "--work-dir", tmp_path / "run")
    assert "posix.system" in line
    assert "not executed" in line
    # It holds other frames than those of a split that is named, and is not even opened.
    arguments = ("--data", broken, "--split", "tiny_train", "--work-dir", tmp_path / "run")
    assert "dbinfos" not in run("train", pasting_config, *arguments).stderr


def test_boxes_without_points_leave_nothing_to_paste(tmp_path, run, broken, pasting_config) -> None:
    arguments = ("--data", broken, "--split", "tiny_train", "--work-dir", tmp_path / "run")
    result = run("train", pasting_config, *arguments)
    assert result.exit_code == 2
    built, line = result.stderr.splitlines()
    assert built.startswith("cutting the objects")
    assert line.startswith("voxelquant: ")
    assert "objects can be pasted" in line
    assert not (tmp_path / "run" / "log.jsonl").exists()
