"""A folder in which the reference's commands can be typed: scripts, config, data, checkpoint."""

import os
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from nuscenes_objects import write_filled_nuscenes
from voxelquant.detection.config import load_config
from voxelquant.detection.detector import CenterPoint

REPOSITORY = Path(__file__).resolve().parents[2]
NAME = "nusc_centerpoint_voxelnet_0075voxel_fix_bn_z"
CONFIG = f"configs/nusc/voxelnet/{NAME}.py"
CHECKPOINT = f"workspace/{NAME}/epoch_20.pth"

# The same detector on a grid a hundred times smaller, with a short neck and one epoch.
SMALLER = (
    ("voxel_size = [0.075, 0.075, 0.2]", "voxel_size = [0.75, 0.75, 0.2]"),
    ("layer_nums=[5, 5]", "layer_nums=[1, 1]"),
    ("ds_num_filters=[128, 256]", "ds_num_filters=[16, 16]"),
    ("us_num_filters=[256, 256]", "us_num_filters=[16, 16]"),
    ("in_channels=sum([256, 256])", "in_channels=sum([16, 16])"),
    ("samples_per_gpu=4", "samples_per_gpu=1"),
    ("total_epochs = 20", "total_epochs = 1"),
    ("nsweeps = 10", "nsweeps = 2"),
)

Type = Callable[[str], str]


@pytest.fixture(scope="session")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a user has: this repository's scripts, a config, a dataset and trained weights."""
    folder = tmp_path_factory.mktemp("checkout")
    for name in ("tools", "onnx_export"):
        (folder / name).symlink_to(REPOSITORY / name)
    config = folder / CONFIG
    config.parent.mkdir(parents=True)
    text = (REPOSITORY / CONFIG).read_text()
    for old, new in SMALLER:
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    config.write_text(text)
    dataset = write_filled_nuscenes(folder / "data" / "nuScenes")
    train, val = (row["name"] for row in dataset.table("scene"))
    dataset.edit("splits", lambda splits: splits.update(tiny_train=[train], tiny_val=[val]))  # type: ignore[attr-defined]
    write_checkpoint(folder / CHECKPOINT, config)
    return folder


def write_checkpoint(path: Path, config: Path) -> None:
    """`{meta, state_dict, optimizer}` with sparse weights as spconv 1.x keeps them."""
    torch.manual_seed(7)
    model = CenterPoint(load_config(config))
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm1d | torch.nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.3, 1.0)
    weights = {
        name: value.permute(1, 2, 3, 4, 0).contiguous() if value.ndim == 5 else value
        for name, value in model.state_dict().items()
    }
    path.parent.mkdir(parents=True)
    torch.save({"meta": {"epoch": 20, "iter": 1}, "state_dict": weights, "optimizer": {}}, path)


@pytest.fixture(scope="session")
def type_command(checkout: Path) -> Type:
    """Run a command line in the checkout with this Python; what it printed, or a failure."""

    def run(line: str) -> str:
        words = shlex.split(line)
        if words[0] == "torchrun":
            words[:1] = ["python", "-m", "torch.distributed.run"]
        assert words[0] == "python"
        environment = {**os.environ, "PYTHONPATH": str(REPOSITORY / "src"), "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            [sys.executable, *words[1:]],
            cwd=checkout, env=environment, capture_output=True, text=True, timeout=300,
        )  # fmt: skip
        assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    return run
