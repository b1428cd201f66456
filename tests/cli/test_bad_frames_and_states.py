"""Bad input found deeper than the command line looks first: one line, exit code 2, no file."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

Refusal = Callable[..., str]


@pytest.fixture
def work(tmp_path: Path) -> Path:
    return tmp_path / "work"


def files_in(folder: Path) -> list[str]:
    return [path.name for path in folder.rglob("*") if path.is_file()]


def test_training_on_frames_of_one_voxel(config, broken, tmp_path, work, refusal: Refusal) -> None:
    for path in broken.glob("*/LIDAR_TOP/*"):
        np.array([[8.0, 3.0, 0.5, 90.0, 0.0]], np.float32).tofile(path)
    alone = tmp_path / "alone.yaml"
    alone.write_text(config.read_text().replace("nsweeps: 2", "nsweeps: 1"))
    train = ("train", alone, "--data", broken, "--steps", 1, "--batch-size", 1)
    line = refusal(*train, "--work-dir", work)
    assert "got a batch with 1 voxel left, need 2 or more" in line
    assert files_in(work) == ["config.yaml"]  # what was asked for stays as a record


def test_an_annotation_that_refers_to_nothing(config, weights, broken, work, refusal) -> None:
    path = broken / "v1.0-tiny" / "sample_annotation.json"
    rows = json.loads(path.read_text())
    for row in rows:
        row["attribute_tokens"] = ["nowhere"]
    path.write_text(json.dumps(rows))
    line = refusal("eval", config, "--data", broken, "--weights", weights, "--work-dir", work)
    assert "refer to 'nowhere', which the tables lack" in line
    assert files_in(work) == []


def spoiled(state: Path, target: Path, key: str, value: float) -> Path:
    """The state with one value of one tensor replaced."""
    with safe_open(state, framework="pt") as file:
        header = file.metadata()
    tensors = load_file(state)
    assert key in tensors
    tensors[key].view(-1)[0] = value
    save_file(tensors, target, metadata=header)
    return target


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("backbone.conv2.0.weight", torch.nan, "NaN or infinite values in backbone.conv2.0.weight"),
        ("bbox_head.shared_conv.0.weight", torch.inf, "values in bbox_head.shared_conv.0.weight"),
        ("activation_amax/backbone.conv2.0", -1.0, "with a range of -1, need it above 0"),
        ("weight_amax/backbone.conv2.0", 0.0, "with a range of 0, need it above 0"),
        ("backbone.conv2.0.weight", 6e4, "backbone.conv2.0: got a weight in output channel 0"),
    ],
)
def test_a_state_with_unusable_values(
    config, state, frame, tmp_path, work, refusal, key: str, value: float, message: str
) -> None:
    bad = spoiled(state, tmp_path / "bad.safetensors", key, value)
    for verb in (
        ("export", config, "--weights", bad, "--out", work / "scn.onnx", "--frame", frame),
        ("parity", config, "--weights", bad, "--frame", frame),
    ):
        assert message in refusal(*verb)
    assert files_in(work) == []


def test_an_export_without_a_file_name(config, state, frame, refusal: Refusal) -> None:
    line = refusal("export", config, "--weights", state, "--frame", frame, "--out", "")
    assert "need the name of a file" in line
