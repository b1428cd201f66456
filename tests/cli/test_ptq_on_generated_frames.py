"""`--data synthetic`: frames that lie nowhere, and what is asked for of them."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from voxelquant.data.synthetic import WORLD_VERSION, generate_frames
from voxelquant.detection.config import load_config
from voxelquant.quant.state import QuantState
from voxelquant.recipes.calibrated import calibration_batches, quantize_detector
from voxelquant.recipes.detect import Engine, open_detector
from voxelquant.recipes.training_source import PoolOptions


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
    assert metrics["frames"] == f"synthetic world {WORLD_VERSION}, class mix nuscenes, seed 6"


@pytest.mark.parametrize("verb", ["ptq", "train", "qat"])
def test_options_that_frames_have_no_use_for(
    config, data, weights, refusal, tmp_path: Path, verb: str
) -> None:
    out = tmp_path / "out"
    call = (verb, config, "--work-dir", out, *(("--weights", weights) if verb != "train" else ()))
    for option in (("--num-workers", 1), ("--split", "fit"), ("--version", "v1.0-tiny")):
        line = refusal(*call, "--data", "synthetic", *option)
        given = " ".join(map(str, option))
        assert line.startswith(f"got {given} with --data synthetic, which is generated and read ")
    # The seed of a training is of its order and augmentation, too.
    own = [("--seed", 0)] if verb == "ptq" else [("--pool-size", 1024), ("--turnover", 2)]
    for option in (("--class-mix", "nuscenes"), *own):
        given = f"got {option[0]} {option[1]}, an option of the synthetic world, with"
        assert refusal(*call, "--data", data, *option).startswith(f"{given} --data {data}; leave ")
        assert refusal(*call, *option).startswith(f"{given} the config's data root; leave it out")
    assert not out.exists()


def test_a_training_names_its_frames(config, data, done, tmp_path: Path) -> None:
    one_step = ("train", config, "--steps", 1, "--batch-size", 1, "--seed", 4)
    world = ("--data", "synthetic", "--pool-size", 1, "--class-mix", "balanced", "--device", "cpu")
    done(*one_step, *world, "--work-dir", tmp_path / "world")
    done(*one_step, "--data", data, "--split", "fit", "--work-dir", tmp_path / "disk")
    generated, read = (
        json.loads((tmp_path / name / "metrics.json").read_text()) for name in ("world", "disk")
    )
    assert generated["frames"] == f"synthetic world {WORLD_VERSION}, class mix balanced, seed 4"
    assert generated["pool"] == {"pool_size": 1, "turnover": 2, "class_mix": "balanced"}
    assert read["frames"] == f"split fit of {data / 'v1.0-tiny'}"
    assert read["pool"] is None


def test_help_names_the_defaults(done) -> None:
    shown = " ".join(done("train", "--help").stdout.split())
    assert all(f"default: {value}" in shown for value in asdict(PoolOptions()).values())
