"""A detector and a dataset so small that a verb takes a second, and the real command line."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from click.testing import CliRunner, Result

from nuscenes_world import write_tiny_nuscenes
from voxelquant import cli
from voxelquant.detection.checkpoint import save_weights
from voxelquant.detection.config import config_to_yaml, load_config
from voxelquant.detection.detector import CenterPoint

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
    """`centerpoint_tiny` on voxels of 0.8 m, with few channels and one sweep."""
    values = yaml.safe_load(config_to_yaml(load_config("centerpoint_tiny")))
    values["name"] = "small"
    values["voxel_size"] = [0.8, 0.8, 0.2]
    values["backbone"]["channels"] = [16, 16, 16, 16, 16]
    values["neck"] = {
        "layer_nums": [1, 1],
        "ds_layer_strides": [1, 2],
        "ds_num_filters": [16, 16],
        "us_layer_strides": [1, 2],
        "us_num_filters": [16, 16],
    }
    values["head"] |= {"share_conv_channel": 16, "head_conv": 16}
    values["data"]["nsweeps"] = 2
    path = folder / "small.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


@pytest.fixture(scope="session")
def weights(folder: Path, config: Path) -> Path:
    """Fresh weights, with batch norms that do something."""
    torch.manual_seed(5)
    model = CenterPoint(load_config(config))
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm1d | torch.nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.3, 1.0)
    path = folder / "small.safetensors"
    save_weights(model, path)
    return path


@pytest.fixture(scope="session")
def data(folder: Path) -> Path:
    """Two scenes of three key frames; splits `fit`, `check`, `both`, `tiny_train`, `tiny_val`."""
    return write_data(folder / "data")


def write_data(root: Path) -> Path:
    """A fresh copy of the dataset."""
    dataset = write_tiny_nuscenes(root)
    scenes = [row["name"] for row in dataset.table("scene")]
    dataset.edit(
        "splits",
        lambda splits: splits.update(tiny_train=[scenes[0]], tiny_val=[scenes[1]]),  # type: ignore[attr-defined]
    )
    return root


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
