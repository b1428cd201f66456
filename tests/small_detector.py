"""A detector and a dataset so small that a verb takes a second, for several folders of tests."""

from pathlib import Path

import torch
import yaml

from nuscenes_world import write_tiny_nuscenes
from voxelquant.detection.checkpoint import save_weights
from voxelquant.detection.config import config_to_yaml, load_config
from voxelquant.detection.detector import CenterPoint


def write_config(path: Path) -> Path:
    """`centerpoint_tiny` on voxels of 0.8 m, with few channels and two sweeps."""
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
    path.write_text(yaml.safe_dump(values))
    return path


def make_detector(config: Path) -> CenterPoint:
    """Fresh weights, with batch norms that do something."""
    torch.manual_seed(5)
    model = CenterPoint(load_config(config))
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm1d | torch.nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.3, 1.0)
    return model


def write_weights(path: Path, config: Path) -> Path:
    """Its weights as a file."""
    save_weights(make_detector(config), path)
    return path


def write_data(root: Path) -> Path:
    """Two scenes of three key frames; splits `fit`, `check`, `both`, `tiny_train`, `tiny_val`."""
    dataset = write_tiny_nuscenes(root)
    scenes = [row["name"] for row in dataset.table("scene")]
    dataset.edit(
        "splits",
        lambda splits: splits.update(tiny_train=[scenes[0]], tiny_val=[scenes[1]]),  # type: ignore[attr-defined]
    )
    return root
