"""`voxelquant sensitivity`: its files, its resumption, and that it computes what it says."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from click.testing import Result
from safetensors import safe_open

from torchrun import one_thread, torchrun
from voxelquant.data.nuscenes import NuScenesDataset
from voxelquant.detection.config import load_config
from voxelquant.quant import QuantState, load_recipe
from voxelquant.recipes import sensitivity
from voxelquant.recipes.datasets import open_dataset
from voxelquant.recipes.detect import Engine, open_detector
from voxelquant.recipes.sensitivity_frames import VariantRunner
from voxelquant.recipes.sensitivity_store import ProfileStore

Run = Callable[..., Result]
# Of 29 layers the last eight, by rules that demand int8.
FEW_LAYERS = """
name: few_layers
precision: fp16
rules:
  - {match: "*conv4.*", precision: int8}
  - {match: "*extra_conv.0", precision: int8}
"""
LAYERS = {
    "backbone.conv4.0",
    "backbone.conv4.3.conv1",
    "backbone.conv4.3.conv2",
    "backbone.conv4.3.add",
    "backbone.conv4.4.conv1",
    "backbone.conv4.4.conv2",
    "backbone.conv4.4.add",
    "backbone.extra_conv.0",
}
VARIANTS = len(LAYERS) + 2


@pytest.fixture(scope="module")
def command(config, data, weights, tmp_path_factory) -> tuple[object, ...]:
    recipe = tmp_path_factory.mktemp("recipe") / "few_layers.yaml"
    recipe.write_text(FEW_LAYERS)
    profile = ("sensitivity", config, "--data", data, "--weights", weights, "--recipe", recipe)
    return (*profile, "--calibrate-batches", 2, "--resamples", 3, "--device", "cpu")


@pytest.fixture(scope="module")
def profiled(command, done: Run, single_thread, tmp_path_factory) -> tuple[Path, Result]:
    """An unbroken profile of all six frames."""
    folder = tmp_path_factory.mktemp("profile")
    arguments = ("--split", "both", "--save-every", 2, "--work-dir", folder)
    return folder, done(*command, *arguments)


def result_of(folder: Path) -> dict:
    return json.loads((folder / "sensitivity.json").read_text())


def measured(folder: Path) -> dict:
    """What must not depend on how a profile came about."""
    result = result_of(folder)
    return {key: result[key] for key in ("float", "quantized", "layers", "suggestion")}


def chunks(folder: Path) -> dict[str, tuple[int, ...]]:
    """Frames of each chunk."""
    frames = {}
    for path in sorted((folder / "frames").glob("chunk_*")):
        with safe_open(path, framework="pt") as file:
            frames[path.name] = tuple(json.loads(file.metadata()["frames"]))
    return frames


def test_every_quantized_layer_is_ranked(profiled) -> None:
    folder, shown = profiled
    result = result_of(folder)
    assert {layer["name"] for layer in result["layers"]} == LAYERS
    assert [layer["rank"] for layer in result["layers"]] == list(range(1, 9))
    costs = [layer["cost_mAP"]["value"] for layer in result["layers"]]
    assert costs == sorted(costs, reverse=True)
    assert result["frames"] == 6
    still = result["float"]["proxy"]
    assert (still["head_error"], still["churn"]) == (0.0, 0.0)
    assert 100 * 6 < still["positives"] <= 498 * 6
    assert result["quantized"]["proxy"]["head_error"] > 0
    for layer in result["layers"]:
        assert layer["score"]["proxy"]["head_error"] > 0
        difference = layer["score"]["metric"]["difference"]["mAP"]["value"]
        assert layer["cost_mAP"]["value"] == -difference
        assert layer["name"].removeprefix("backbone.") in shown.stdout
    assert {"backbone.conv_input.0", "backbone.conv3.4.add"} <= set(result["fp16_layers"])
    assert result["provenance"]["config"]["name"] == "small"
    assert result["request"]["calibrate_batches"] == 2
    assert (folder / "sensitivity.png").read_bytes().startswith(b"\x89PNG")
    assert chunks(folder) == {
        "chunk_000000.safetensors": (0, 1),
        "chunk_000002.safetensors": (2, 3),
        "chunk_000004.safetensors": (4, 5),
    }


def test_float_and_quantized_are_what_eval_scores(profiled, config, data, weights, done, tmp_path):
    folder, _ = profiled
    outcomes = ProfileStore(folder).load(VARIANTS)
    detector = open_detector(load_config(config), folder / "ranges.safetensors", Engine.FAKE, "cpu")
    dataset = open_dataset(load_config(config), data, "both")
    for place in (0, 4):
        (wanted,) = detector.detect([dataset[place].points])
        found = outcomes[place].detections[1]
        assert torch.equal(found.boxes_det3d, wanted.boxes_det3d)
        assert torch.equal(found.scores, wanted.scores)
    fake = ("eval", config, "--data", data, "--split", "both", "--engine", "fake", "--weights")
    done(*fake, folder / "ranges.safetensors", "--work-dir", tmp_path, "--device", "cpu")
    official = json.loads((tmp_path / "metrics.json").read_text())["metrics"]
    metric = result_of(folder)["quantized"]["metric"]
    assert metric["mAP"] == pytest.approx(official["mAP"], abs=1e-12)
    assert metric["NDS"] == pytest.approx(official["NDS"], abs=1e-12)


def test_a_finished_profile_is_not_run_again(
    profiled, command, done, tmp_path, monkeypatch
) -> None:
    """Another metric or rule asks for no frame; a chunk that is gone, only for its own."""
    folder, _ = profiled
    (tmp_path / "frames").mkdir()
    for path in (*folder.glob("*.json"), folder / "ranges.safetensors", *folder.glob("frames/*")):
        (tmp_path / path.relative_to(folder)).write_bytes(path.read_bytes())
    (tmp_path / "frames" / "chunk_000002.safetensors").unlink()
    runs = []
    run = VariantRunner.run
    monkeypatch.setattr(
        VariantRunner, "run", lambda self, cloud: runs.append(0) or run(self, cloud)
    )
    monkeypatch.setattr(sensitivity, "calibrate_together", None)  # its ranges are kept, too
    again = (*command, "--split", "both", "--work-dir", tmp_path)
    assert "continuing: 4 of 6 frames done" in done(*again).stderr
    assert len(runs) == 2
    assert measured(tmp_path) == measured(folder)
    shown = done(*again, "--metric", "proxy", "--keep-worst", 1).stdout
    assert len(runs) == 2
    assert "mAP" not in shown
    (worst,) = result_of(tmp_path)["suggestion"]["kept"]
    assert worst == result_of(tmp_path)["layers"][0]["name"]


def test_the_suggested_recipe_is_one_for_ptq(
    profiled, command, config, data, weights, done, tmp_path
) -> None:
    folder, _ = profiled
    kept = ("--metric", "proxy", "--keep-worst", 2)
    done(*command, "--split", "both", "--work-dir", folder, *kept)
    suggestion = result_of(folder)["suggestion"]
    assert len(suggestion["kept"]) == 2
    recipe = load_recipe(folder / "suggested.yaml")
    assert recipe.name == "few_layers_suggested"
    ptq = ("ptq", config, "--data", data, "--weights", weights, "--work-dir", tmp_path)
    done(*ptq, "--recipe", folder / "suggested.yaml", "--calibrate-batches", 1, "--split", "both")
    plan = QuantState.load(tmp_path / "ptq.safetensors").plan
    fp16 = {name for name in LAYERS if plan.precision[name] == "fp16"}
    assert fp16 == {*suggestion["kept"], *suggestion["dragged"]}
    done(*command, "--split", "both", "--work-dir", folder)  # as the other tests expect it


def test_a_killed_profile_continues(profiled, command, done, tmp_path) -> None:
    whole, _ = profiled
    arguments = (*command, "--split", "both", "--save-every", 1, "--work-dir", tmp_path)
    killed = subprocess.Popen(
        [sys.executable, "-m", "voxelquant", *map(str, arguments)],
        env=one_thread(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 60
    while len(done_before := chunks(tmp_path)) < 2 and time.monotonic() < deadline:
        assert killed.poll() is None
        time.sleep(0.01)
    os.kill(killed.pid, signal.SIGKILL)
    assert killed.wait() == -signal.SIGKILL
    done_before = chunks(tmp_path)
    assert 2 <= len(done_before) < 6
    assert not (tmp_path / "sensitivity.json").exists()
    kept = {n: (tmp_path / "frames" / n).read_bytes() for n in done_before}
    ranges = (tmp_path / "ranges.safetensors").read_bytes()
    assert f"continuing: {len(kept)} of 6 frames" in done(*arguments).stderr
    assert {n: (tmp_path / "frames" / n).read_bytes() for n in kept} == kept
    assert (tmp_path / "ranges.safetensors").read_bytes() == ranges
    assert measured(tmp_path) == measured(whole)
    assert not list((tmp_path / "frames").glob(".*"))


def test_two_processes_find_what_one_does(profiled, command, tmp_path) -> None:
    whole, alone = profiled
    arguments = (*command, "--split", "both", "--save-every", 2, "--work-dir", tmp_path)
    shown = torchrun(*arguments)
    assert shown.returncode == 0, shown.stderr
    assert chunks(tmp_path) == {
        "chunk_000000.safetensors": (0, 2),
        "chunk_000001.safetensors": (1, 3),
        "chunk_000004.safetensors": (4,),
        "chunk_000005.safetensors": (5,),
    }
    assert measured(tmp_path) == measured(whole)
    one, two = (text.partition("Written")[0] for text in (alone.stdout, shown.stdout))
    assert two == one  # once, by the first process
    ranges = (folder / "ranges.safetensors" for folder in (whole, tmp_path))
    assert len({path.read_bytes() for path in ranges}) == 1


def test_all_but_one(profiled, command, done, tmp_path) -> None:
    whole, _ = profiled
    arguments = (*command, "--split", "both", "--work-dir", tmp_path, "--metric", "proxy")
    shown = done(*arguments, "--mode", "all-but-one", "--frames", 2).stdout
    assert "all layers but one" in shown
    result = result_of(tmp_path)
    assert result["frames"] == 2
    total = result["quantized"]["proxy"]
    for layer in result["layers"]:
        own = layer["score"]["proxy"]
        gain = total["head_error"] + total["churn"] - own["head_error"] - own["churn"]
        assert layer["cost_proxy"] == pytest.approx(gain, abs=1e-12)
        assert own["head_error"] != total["head_error"]
    # The same network in both modes, on frames 0 and 3 of six.
    outcomes, all_outcomes = (ProfileStore(f).load(VARIANTS) for f in (tmp_path, whole))
    for place, index in ((0, 0), (1, 3)):
        assert outcomes[place].changes[1] == all_outcomes[index].changes[1]


def test_the_proxy_needs_no_annotations(command, broken, config, done, refusal, tmp_path) -> None:
    table = broken / "v1.0-tiny" / "sample_annotation.json"
    table.write_text("[]")
    bare = open_dataset(load_config(config), broken, "tiny_val")
    assert isinstance(bare, NuScenesDataset)
    assert bare[0].boxes_det3d is None
    unlabelled = tuple(broken if part == command[3] else part for part in command)
    arguments = (*unlabelled, "--work-dir", tmp_path / "work", "--frames", 1)
    done(*arguments, "--metric", "proxy")
    result = result_of(tmp_path / "work")
    assert result["spearman_proxy_mAP"] is None
    assert result["layers"][0]["cost_mAP"] is None
    assert len(result["suggestion"]["kept"]) == 3
    assert "--metric proxy" in refusal(*arguments)


def test_another_request_does_not_go_on_here(profiled, command, refusal) -> None:
    folder, _ = profiled
    here = ("--work-dir", folder)
    assert "(frames, split differ)" in refusal(*command, *here, "--metric", "proxy")
    both = (*command, *here, "--split", "both")
    assert "(mode differ)" in refusal(*both, "--mode", "all-but-one")
    assert "(calibrate_batches differ)" in refusal(*both, "--calibrate-batches", 1)
    assert "(recipe differ)" in refusal(*both, "--recipe", "int8")


def test_a_states_ranges_are_taken(profiled, command, weights, done, refusal, tmp_path) -> None:
    folder, _ = profiled
    state = folder / "ranges.safetensors"
    place = command.index("--recipe")
    common = [*command[:place], *command[place + 2 :]]
    common[common.index(weights)] = state
    arguments = (*common, "--split", "both", "--metric", "proxy", "--frames", 2)
    # With the float weights the profile is that of the same frames here.
    done(*arguments, "--float-weights", weights, "--work-dir", tmp_path / "float")
    outcomes, whole = (ProfileStore(f).load(VARIANTS) for f in (tmp_path / "float", folder))
    for place, index in ((0, 0), (1, 3)):
        assert outcomes[place].changes == whole[index].changes
    # Without them the weights are on their grid already: less is seen.
    done(*arguments, "--work-dir", tmp_path / "stored")
    stored = ProfileStore(tmp_path / "stored").load(VARIANTS)
    assert stored[0].changes[1] != outcomes[0].changes[1]
    line = refusal(*arguments, "--recipe", "int8", "--work-dir", tmp_path / "refused")
    assert "got --recipe for a quantized state" in line
    assert not (tmp_path / "refused").exists()
    given = (*command, "--float-weights", weights, "--work-dir", tmp_path / "refused")
    assert "got --float-weights beside float weights" in refusal(*given)
