"""A calibration that was killed continues, and ends in the bytes of one that was not."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from torchrun import one_thread
from voxelquant.recipes import calibration as module

KEPT = "calibration.rank0.safetensors"
# The process kills itself while it writes what the third batch has added.
KILLED = """
import os, signal, sys
from voxelquant import atomic_file
from voxelquant.cli import main
from voxelquant.recipes import calibration

def replace_or_die(source, target, replace=os.replace, writes=[0]):
    if os.path.basename(target).startswith("calibration"):
        writes[0] += 1
        if writes[0] == 3:
            os.kill(os.getpid(), signal.SIGKILL)
    replace(source, target)

calibration.SAVE_EVERY_S = 0.0
atomic_file.os.replace = replace_or_die
main(sys.argv[1:])
"""


pytestmark = pytest.mark.usefixtures("single_thread")


@pytest.fixture
def ptq(config, data, weights) -> Callable[..., tuple[object, ...]]:
    def arguments(work_dir: Path, *more: object) -> tuple[object, ...]:
        verb = ("ptq", config, "--data", data, "--weights", weights, "--split", "both")
        return (*verb, "--device", "cpu", "--work-dir", work_dir, *more)

    return arguments


@pytest.fixture
def unbroken(tmp_path, ptq, done) -> bytes:
    done(*ptq(tmp_path / "unbroken"))
    return (tmp_path / "unbroken" / "ptq.safetensors").read_bytes()


@pytest.fixture
def interrupt(monkeypatch, run) -> Callable[..., None]:
    """Run a verb that fails when everything is observed, as if the disk were full."""

    def run_until_ranges(*arguments: object) -> None:
        with monkeypatch.context() as patch:
            patch.setattr("voxelquant.recipes.calibrated.set_ranges", lambda *_: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                run(*arguments)

    return run_until_ranges


def test_a_killed_calibration_loses_the_last_interval_alone(
    tmp_path, ptq, done, unbroken, monkeypatch
) -> None:
    work_dir = tmp_path / "killed"
    command = [sys.executable, "-c", KILLED, *map(str, ptq(work_dir))]
    killed = subprocess.run(command, env=one_thread(), capture_output=True, timeout=300)
    assert killed.returncode == -9, killed.stderr
    names = {path.name for path in work_dir.iterdir()}
    assert KEPT in names
    assert all(name == KEPT or name.startswith(".calibration") for name in names)
    read: list[int] = []
    original = module.read_batches

    def spy(detector, dataset, indices, options):
        read.extend(indices)
        return original(detector, dataset, indices, options)

    monkeypatch.setattr(module, "read_batches", spy)
    result = done(*ptq(work_dir))
    assert "calibration: 2 batches seen before\n" in result.stderr
    assert read == [0, 2, 3, 4, 5]  # the first again, for the graph
    assert (work_dir / "ptq.safetensors").read_bytes() == unbroken
    assert {path.name for path in work_dir.iterdir()} == {"metrics.json", "ptq.safetensors"}


def test_another_request_starts_afresh(tmp_path, ptq, done, interrupt, unbroken) -> None:
    work_dir = tmp_path / "work"
    interrupt(*ptq(work_dir, "--batch-size", 2, "--recipe", "int8"))
    assert [path.name for path in work_dir.iterdir()] == [KEPT]
    line = done(*ptq(work_dir)).stderr.splitlines()[0]
    other = "recipe, first batch, number of batches, batch size"
    assert line == f"calibration: starting afresh: {work_dir / KEPT} is of other {other}"
    assert (work_dir / "ptq.safetensors").read_bytes() == unbroken
    assert {path.name for path in work_dir.iterdir()} == {"metrics.json", "ptq.safetensors"}


def test_other_points_under_the_same_names_start_afresh(
    tmp_path, config, broken, weights, done, interrupt
) -> None:
    ptq = ("ptq", config, "--data", broken, "--weights", weights, "--work-dir", tmp_path / "work")
    interrupt(*ptq, "--split", "tiny_train")
    for path in broken.glob("samples/LIDAR_TOP/scene-a-00*"):
        path.write_bytes(path.read_bytes()[20:])
    shown = done(*ptq, "--split", "tiny_train").stderr
    assert f"starting afresh: {tmp_path / 'work' / KEPT} is of other first batch\n" in shown


def test_a_damaged_file_starts_afresh(tmp_path, ptq, done, unbroken) -> None:
    work_dir = tmp_path / "work"
    work_dir.mkdir()
    (work_dir / KEPT).write_bytes(b"\x08\x00\x00\x00\x00\x00\x00\x00{}")
    line = done(*ptq(work_dir)).stderr.splitlines()[0]
    assert line.startswith(
        f"calibration: starting afresh: {work_dir / KEPT}: got no usable histograms ("
    )
    assert (work_dir / "ptq.safetensors").read_bytes() == unbroken


def test_another_method_uses_what_was_observed(tmp_path, ptq, done, interrupt) -> None:
    interrupt(*ptq(tmp_path / "work"))
    shown = done(*ptq(tmp_path / "work", "--method", "max")).stderr
    assert "calibration: 6 batches seen before\n" in shown
    done(*ptq(tmp_path / "unbroken", "--method", "max"))
    states = [tmp_path / name / "ptq.safetensors" for name in ("work", "unbroken")]
    assert states[0].read_bytes() == states[1].read_bytes()


def test_observations_that_are_kept_serve_other_methods(
    tmp_path, ptq, done, refusal, monkeypatch
) -> None:
    kept = ("--observations", tmp_path / "kept")
    file = tmp_path / "kept" / "observations.rank0.safetensors"
    done(*ptq(tmp_path / "mse", *kept))
    done(*ptq(tmp_path / "kept"))  # clears what it kept itself alone
    assert file.exists()
    with monkeypatch.context() as patch:
        patch.setattr(module, "observe", None)
        done(*ptq(tmp_path / "max", "--method", "max", *kept))
    done(*ptq(tmp_path / "alone", "--method", "max"))
    states = [tmp_path / name / "ptq.safetensors" for name in ("max", "alone")]
    assert states[0].read_bytes() == states[1].read_bytes()
    line = refusal(*ptq(tmp_path / "fewer", "--calibrate-batches", 2, *kept))
    assert line.startswith(f"{file}: got observations made otherwise (number of batches); name ")
    assert file.exists()


def test_the_calibration_before_a_training_continues_too(
    tmp_path, ptq, done, interrupt, unbroken
) -> None:
    qat = ("qat", *ptq(tmp_path / "work", "--steps", 1, "--batch-size", 2)[1:])
    interrupt(*qat)
    assert "calibration: 6 batches seen before\n" in done(*qat).stderr
    assert (tmp_path / "work" / "ptq.safetensors").read_bytes() == unbroken
    assert not (tmp_path / "work" / KEPT).exists()
