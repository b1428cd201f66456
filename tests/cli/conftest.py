"""A detector and a dataset so small that a verb takes a second, and the real command line."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from small_detector import write_config, write_data, write_weights
from voxelquant import cli

Run = Callable[..., Result]


def run_cli(*arguments: object) -> Result:
    """The verb in this process; an exception of ours fails the test with its traceback."""
    result = CliRunner().invoke(cli.main, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


@pytest.fixture(scope="session")
def run() -> Run:
    return run_cli


@pytest.fixture(scope="session")
def done() -> Run:
    """A verb that must succeed."""

    def run_well(*arguments: object) -> Result:
        result = run_cli(*arguments)
        assert result.exit_code == 0, result.output
        return result

    return run_well


@pytest.fixture(scope="session")
def refusal() -> Callable[..., str]:
    """The one line that a refused verb leaves on stderr."""

    def run_badly(*arguments: object) -> str:
        result = run_cli(*arguments)
        assert result.exit_code == 2, result.output
        assert result.stderr.startswith("voxelquant: ")
        assert result.stderr.count("\n") == 1
        assert result.stderr.endswith("\n")
        assert "Traceback" not in result.output
        return result.stderr.removeprefix("voxelquant: ").rstrip("\n")

    return run_badly


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of the session: its files are read, never changed."""
    return tmp_path_factory.mktemp("cli")


@pytest.fixture(scope="session")
def config(folder: Path) -> Path:
    """`centerpoint_tiny` on voxels of 0.8 m, with few channels and two sweeps."""
    return write_config(folder / "small.yaml")


@pytest.fixture(scope="session")
def weights(folder: Path, config: Path) -> Path:
    """Fresh weights, with batch norms that do something."""
    return write_weights(folder / "small.safetensors", config)


@pytest.fixture(scope="session")
def data(folder: Path) -> Path:
    """Two scenes of three key frames; splits `fit`, `check`, `both`, `tiny_train`, `tiny_val`."""
    return write_data(folder / "data")


@pytest.fixture
def broken(tmp_path: Path) -> Path:
    """A dataset for the test to damage."""
    return write_data(tmp_path / "broken")


@pytest.fixture(scope="session")
def state(folder: Path, config: Path, data: Path, weights: Path, done: Run) -> Path:
    """What `voxelquant ptq` writes."""
    arguments = ("--data", data, "--weights", weights, "--work-dir", folder / "ptq")
    done("ptq", config, *arguments, "--calibrate-batches", 2, "--split", "both")
    return folder / "ptq" / "ptq.safetensors"


@pytest.fixture(scope="session")
def frame(folder: Path) -> Path:
    """A cloud of 4000 points as `.npz`."""
    path = folder / "frame.npz"
    np.savez(path, points=cloud(4000))
    return path


def cloud(n: int) -> np.ndarray:
    """Points [n, 5] within the range."""
    rng = np.random.default_rng(3)
    scale = np.array([30, 30, 2, 0, 0], np.float32)
    points = rng.uniform(-1, 1, (n, 5)).astype(np.float32) * scale
    points[:, 3] = rng.integers(0, 256, n)
    return points.astype(np.float32)


@pytest.fixture(scope="session")
def onnx(folder: Path, config: Path, state: Path, frame: Path, done: Run) -> Path:
    """What `voxelquant export` writes."""
    path = folder / "scn.onnx"
    done("export", config, "--weights", state, "--out", path, "--frame", frame)
    return path
