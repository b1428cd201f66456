"""`ptq --data synthetic`: frames that lie nowhere."""

import json
from pathlib import Path

from voxelquant.data.synthetic import generate_frames
from voxelquant.detection.config import load_config
from voxelquant.quant.state import QuantState
from voxelquant.recipes.calibrated import calibration_batches, quantize_detector
from voxelquant.recipes.detect import Engine, open_detector


def test_ranges_are_those_of_the_worlds_first_frames(config, weights, done, tmp_path: Path) -> None:
    arguments = ("--weights", weights, "--work-dir", tmp_path, "--calibrate-batches", 2)
    done("ptq", config, "--data", "synthetic", "--seed", 6, *arguments, "--device", "cpu")
    found = QuantState.load(tmp_path / "ptq.safetensors")
    detector = open_detector(load_config(config), weights, Engine.FLOAT)
    frames = generate_frames(6, range(2), key_frames=1)
    expected = quantize_detector(detector, calibration_batches(detector, frames, 2, 1)).state
    names = expected.plan.range_names
    assert names
    assert [found.activation_amax(n) for n in names] == [expected.activation_amax(n) for n in names]
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["calibrate_batches"] == 2
    assert metrics["frames"].endswith("seed 6")


def test_nobody_reads_ahead_of_what_lies_nowhere(config, weights, refusal, tmp_path: Path) -> None:
    line = refusal(
        "ptq", config, "--data", "synthetic", "--num-workers", 1, "--weights", weights,
        "--work-dir", tmp_path / "out",
    )  # fmt: skip
    assert "got --num-workers 1 with --data synthetic" in line
    assert not (tmp_path / "out").exists()
