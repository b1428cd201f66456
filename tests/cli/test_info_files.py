"""Verbs read det3d info files where the config's exist, with the results that the tables give."""

import json
import pickle
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from nuscenes_infos import Info, create_infos
from nuscenes_world import SCENES, TinyNuScenes

TRAIN = "infos_train_02sweeps_withvelo_filter_True.pkl"
VAL = "infos_val_02sweeps_withvelo_filter_True.pkl"


@pytest.fixture(scope="module")
def infos(data: Path) -> list[Info]:
    return create_infos(TinyNuScenes(data), nsweeps=2)


@pytest.fixture
def with_infos(tmp_path: Path, data: Path, infos: list[Info]) -> Path:
    """The dataset beside info files, in a folder of another name than the config's."""
    root = tmp_path / "moved"
    root.mkdir()
    for path in data.iterdir():
        (root / path.name).symlink_to(path)
    for name, scene in ((TRAIN, SCENES[0]), (VAL, SCENES[1])):
        chosen = [info for info in infos if info["token"].startswith(scene)]
        (root / name).write_bytes(pickle.dumps(chosen))
    return root


@pytest.fixture
def det3d_config(tmp_path: Path, config: Path) -> Path:
    """The small detector, with paths as in det3d's configs."""
    values = yaml.safe_load(config.read_text())
    values["data"] |= {
        "root": "data/nuScenes",
        "train_infos": f"data/nuScenes/{TRAIN}",
        "val_infos": f"data/nuScenes/{VAL}",
    }
    path = tmp_path / "det3d.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def read_json(path: Path) -> dict:
    return json.loads(path.read_text())


def test_eval_from_infos_equals_eval_from_tables(
    tmp_path, done, det3d_config, with_infos, weights
) -> None:
    common = ("eval", det3d_config, "--weights", weights, "--data", with_infos)
    result = done(*common, "--work-dir", tmp_path / "infos")
    assert f"on 3 frames of {with_infos / VAL}" in result.stderr
    done(*common, "--work-dir", tmp_path / "tables", "--split", "tiny_val")
    infos, tables = (read_json(tmp_path / name / "metrics.json") for name in ("infos", "tables"))
    assert infos["metrics"] == tables["metrics"]
    assert infos["metrics"]["detections"] > 100
    assert infos["frames"] == str(with_infos / VAL)
    assert infos["split"] == tables["split"] == "tiny_val"
    # The same boxes, down to the last digit.
    submissions = [
        (tmp_path / name / "submission.json").read_bytes() for name in ("infos", "tables")
    ]
    assert submissions[0] == submissions[1]


def test_ptq_from_infos_equals_ptq_from_tables(
    tmp_path, done, det3d_config, with_infos, weights
) -> None:
    common = ("ptq", det3d_config, "--weights", weights, "--data", with_infos)
    done(*common, "--work-dir", tmp_path / "infos", "--calibrate-batches", 3)
    tables = ("--split", "tiny_train", "--calibrate-batches", 3)
    done(*common, "--work-dir", tmp_path / "tables", *tables)
    infos, tables = (load_file(tmp_path / n / "ptq.safetensors") for n in ("infos", "tables"))
    assert infos.keys() == tables.keys()
    assert all(torch.equal(value, tables[name]) for name, value in infos.items())
    assert read_json(tmp_path / "infos" / "metrics.json")["frames"] == str(with_infos / TRAIN)


def test_training_from_infos_equals_training_from_tables(
    tmp_path, done, det3d_config, with_infos
) -> None:
    common = ("train", det3d_config, "--data", with_infos, "--steps", 1, "--batch-size", 2)
    done(*common, "--work-dir", tmp_path / "infos")
    done(*common, "--work-dir", tmp_path / "tables", "--split", "tiny_train")
    weights = [
        (tmp_path / name / "weights.safetensors").read_bytes() for name in ("infos", "tables")
    ]
    assert weights[0] == weights[1]


def test_infos_of_another_split_are_not_scored(
    tmp_path, refusal, det3d_config, with_infos, weights
) -> None:
    (with_infos / VAL).write_bytes((with_infos / TRAIN).read_bytes())
    arguments = ("--weights", weights, "--data", with_infos, "--work-dir", tmp_path / "work")
    line = refusal("eval", det3d_config, *arguments)
    assert f"{VAL}: got 3 key frames, 3 of them foreign to the 3 of split tiny_val" in line
    assert "such as scene-a-s0" in line


def test_infos_suffice_for_all_but_scoring(
    tmp_path, done, refusal, det3d_config, with_infos, weights
) -> None:
    (with_infos / "v1.0-tiny").unlink()
    common = (det3d_config, "--weights", weights, "--data", with_infos)
    done("ptq", *common, "--work-dir", tmp_path / "ptq", "--calibrate-batches", 1)
    line = refusal("eval", *common, "--work-dir", tmp_path / "eval")
    assert f"{VAL}: scoring needs the tables beside the info file" in line


def test_a_damaged_info_file_is_refused_not_passed_over(
    tmp_path, refusal, det3d_config, with_infos, weights
) -> None:
    (with_infos / VAL).write_bytes(b"cut off")
    arguments = ("--weights", weights, "--data", with_infos, "--work-dir", tmp_path / "work")
    assert f"{VAL}: not a complete pickle" in refusal("eval", det3d_config, *arguments)


def test_the_config_names_the_data_root(
    tmp_path, monkeypatch, done, refusal, config, det3d_config, with_infos, weights
) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data/nuScenes").symlink_to(with_infos)
    monkeypatch.chdir(tmp_path)
    arguments = ("--weights", weights, "--work-dir", tmp_path / "work")
    done("eval", det3d_config, *arguments)
    metrics = read_json(tmp_path / "work" / "metrics.json")
    assert metrics["frames"] == f"data/nuScenes/{VAL}"
    assert metrics["data"] == "data/nuScenes"
    assert "names no data root; give --data" in refusal("eval", config, *arguments)
