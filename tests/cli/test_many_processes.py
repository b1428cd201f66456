"""`torchrun -m voxelquant ptq` and `eval`: two processes leave what one leaves, bit for bit."""

import itertools
import json
import re
from pathlib import Path

import numpy as np
import pytest

from torchrun import torchrun
from voxelquant.data.sampling import Shard
from voxelquant.detection.config import load_config
from voxelquant.digest import file_digest
from voxelquant.quant.recipe import load_recipe
from voxelquant.recipes.calibration import Calibration, CalibrationJob, read_batches
from voxelquant.recipes.datasets import Purpose, open_dataset
from voxelquant.recipes.demo import tiny_weights
from voxelquant.recipes.detect import Engine, LoaderOptions, open_detector
from voxelquant.recipes.distributed import World

pytestmark = pytest.mark.usefixtures("single_thread")
CONFIG, BATCHES, BATCH_SIZE = "centerpoint_tiny", 3, 2

# Few frames must hold something to find.
BALANCED = ("--class-mix", "balanced")


@pytest.fixture(scope="module")
def world(tmp_path_factory, done) -> Path:
    """Nine frames to calibrate on, three to score: neither is shared out evenly."""
    root = tmp_path_factory.mktemp("world") / "data"
    done("synth", "--out", root, "--scenes", 4, "--seed", 8, "--key-frames", 3, *BALANCED)
    return root


@pytest.fixture(scope="module")
def scored(tmp_path_factory, single_thread, world, done) -> Path:
    """What one process leaves that scores frame by frame."""
    out = tmp_path_factory.mktemp("scored")
    done(*score(world), "--work-dir", out)
    return out


def score(world: Path) -> tuple[object, ...]:
    return ("eval", CONFIG, "--data", world, "--weights", tiny_weights(), "--device", "cpu")


def read_json(path: Path) -> dict:
    return json.loads(path.read_text())


def interrupt_after_first_batch(root: Path, work_dir: Path) -> None:
    """Leave what the first of two processes would, were it killed after its first batch."""
    config = load_config(CONFIG)
    detector = open_detector(config, tiny_weights(), Engine.FLOAT)
    dataset = open_dataset(config, root, purpose=Purpose.TRAIN)
    job = CalibrationJob(dataset, BATCHES, BATCH_SIZE)
    world = World(Shard(0, 2), "cpu")
    calibration = Calibration(detector, load_recipe("reference"), job, world)
    digest = file_digest(tiny_weights())
    assert calibration.begin(work_dir, digest) == ""
    batches = read_batches(detector, dataset, [0], LoaderOptions(BATCH_SIZE))
    calibration.observe_for_a_while(itertools.islice(batches, 1))


def test_two_processes_calibrate_as_one(tmp_path, world, done) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    ptq = ("ptq", CONFIG, "--data", world, "--weights", tiny_weights(), "--device", "cpu")
    ptq += ("--calibrate-batches", BATCHES, "--batch-size", BATCH_SIZE)
    done(*ptq, "--work-dir", one)
    interrupt_after_first_batch(world, two)
    assert [path.name for path in two.iterdir()] == ["calibration.rank0.safetensors"]
    result = torchrun(*ptq, "--work-dir", two, "--num-workers", 1)
    assert result.returncode == 0, result.stderr
    assert result.stdout == f"{two / 'ptq.safetensors'}\n"
    said = [line for line in result.stderr.splitlines() if "calibrat" in line]
    assert said[0] == "calibration: 1 batch seen before"
    assert said[1].startswith("calibrating in 2 processes on 3 batches ... ")
    assert len(said) == 2
    assert (two / "ptq.safetensors").read_bytes() == (one / "ptq.safetensors").read_bytes()
    assert {path.name for path in two.iterdir()} == {"metrics.json", "ptq.safetensors"}
    metrics = [read_json(folder / "metrics.json") for folder in (one, two)]
    assert [values.pop("processes") for values in metrics] == [1, 2]
    assert [values.pop("request")["num_workers"] for values in metrics] == [0, 1]
    assert metrics[0] == metrics[1]


def test_two_processes_score_as_one(tmp_path, world, scored) -> None:
    more = ("--work-dir", tmp_path, "--against", scored, "--num-workers", 1)
    result = torchrun(*score(world), *more)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("Engine float") == 1
    assert result.stderr.count("in 2 processes ...") == 1
    assert (tmp_path / "submission.json").read_bytes() == (scored / "submission.json").read_bytes()
    metrics = [read_json(folder / "metrics.json") for folder in (scored, tmp_path)]
    assert metrics[0]["metrics"]["detections"] > 0
    assert metrics[1]["difference"]["NDS"] == {"value": 0.0, "low": 0.0, "high": 0.0}
    for values in metrics:
        del values["against"], values["difference"], values["seconds_per_frame"]
    assert [values.pop("processes") for values in metrics] == [1, 2]
    assert metrics[0] == metrics[1]


def test_one_damaged_frame_ends_both_processes_with_one_line(
    tmp_path, config, broken, weights
) -> None:
    """It is of the second process, which neither writes nor speaks where all is well."""
    cut = broken / "samples/LIDAR_TOP/scene-b-05.pcd.bin"
    cut.write_bytes(b"cut")
    arguments = ("--data", broken, "--weights", weights, "--work-dir", tmp_path / "out")
    result = torchrun("eval", config, *arguments, "--device", "cpu")
    assert result.returncode == 1  # torchrun's own
    [line] = [line for line in result.stderr.splitlines() if line.startswith("voxelquant:")]
    assert line.startswith(f"voxelquant: {cut}: got 3 bytes, need a positive multiple of 20")
    assert line.endswith("fetch it again")
    # torchrun ends whoever still runs when it looks: the other one, on its way out, may be.
    codes = set(re.findall(r"exitcode +: (-?\d+)", result.stderr))
    assert "2" in codes
    assert codes <= {"2", "-15"}
    root_cause = result.stderr.partition("Root Cause")[2]
    assert f"traceback : {line.removeprefix('voxelquant: ')}\n" in root_cause
    assert list((tmp_path / "out").iterdir()) == []


def test_frames_at_once_are_kept_apart(tmp_path, world, scored, done) -> None:
    """Sums of floats may end in another bit where more rows are multiplied at once."""
    done(*score(world), "--batch-size", 3, "--work-dir", tmp_path)
    alone, together = (
        read_json(folder / "submission.json")["results"] for folder in (scored, tmp_path)
    )
    assert list(alone) == list(together)
    for token, boxes in alone.items():
        assert boxes
        for one, other in zip(boxes, together[token], strict=True):
            assert one.keys() == other.keys()
            for key, value in one.items():
                if isinstance(value, str):
                    assert value == other[key]
                else:
                    np.testing.assert_allclose(value, other[key], rtol=1e-5, atol=1e-5)
