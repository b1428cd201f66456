"""Backbone and grid of checkpoints that come without a config."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from nvidia_files import nvidia_weights
from voxelquant.detection.backbone import SpMiddleResNetFHD
from voxelquant.detection.checkpoint_shapes import describe_checkpoint
from voxelquant.detection.config import config_to_yaml, load_config
from voxelquant.detection.config_schema import BackboneConfig
from voxelquant.errors import CheckpointError

WIDTHS = (4, 6, 8, 10)
BACKBONE = BackboneConfig(in_channels=6, channels=(4, *WIDTHS))


def float_weights(layout: tuple[int, ...] = (0, 1, 2, 3, 4)) -> dict[str, Tensor]:
    backbone = SpMiddleResNetFHD(BACKBONE)
    named = {f"module.backbone.{name}": value for name, value in backbone.state_dict().items()}
    return {n: v.permute(layout) if v.ndim == 5 else v for n, v in named.items()}


@pytest.mark.parametrize("layout", [(0, 1, 2, 3, 4), (1, 2, 3, 4, 0)])
def test_widths_of_a_float_checkpoint_in_every_layout(tmp_path, layout) -> None:
    torch.save({"meta": {"epoch": 20}, "state_dict": float_weights(layout)}, tmp_path / "e.pth")
    found = describe_checkpoint(tmp_path / "e.pth")
    assert (found.backbone, found.quantized, found.config) == (BACKBONE, False, None)


def test_without_a_config_the_grid_is_the_published_one(tmp_path) -> None:
    torch.save(nvidia_weights(WIDTHS, in_channels=6), tmp_path / "ptq.pth")
    found = describe_checkpoint(tmp_path / "ptq.pth")
    assert (found.backbone, found.quantized) == (BACKBONE, True)
    assert found.grid.sparse_shape == (41, 1440, 1440)
    assert found.notes == ("no config in the file: the grid is that of centerpoint_voxel0075",)


def in_meta(folder: Path, meta: dict[str, object], widths: tuple[int, ...]) -> Path:
    torch.save({"meta": meta, "state_dict": nvidia_weights(widths)}, folder / "ptq.pth")
    return folder / "ptq.pth"


def test_our_config_in_the_file_is_read(tmp_path) -> None:
    config = load_config("centerpoint_tiny")
    meta = {"voxelquant": "0.1.0", "config": config_to_yaml(config)}
    found = describe_checkpoint(in_meta(tmp_path, meta, (16, 32, 64, 64)))
    assert (found.config, found.backbone) == (config, config.backbone)
    assert (found.grid.sparse_shape, found.notes) == ((41, 512, 512), ())


def test_a_det3d_config_in_the_file_is_interpreted(tmp_path) -> None:
    text = (Path(__file__).parent / "original_style_config.txt").read_text()
    found = describe_checkpoint(in_meta(tmp_path, {"config": text}, (16, 32, 64, 128)))
    assert found.config is not None
    assert found.backbone == found.config.backbone
    assert found.notes == ()


@pytest.mark.parametrize(
    ("meta", "note"),
    [
        ({"config": "import os\nos.system('true')"}, "the config in the file cannot be read"),
        ({"config": "a: [", "voxelquant": "1"}, "the config in the file cannot be read"),
        ({"config": 3}, "no config in the file"),
    ],
)
def test_an_unreadable_config_is_said_and_left_aside(tmp_path, meta, note) -> None:
    found = describe_checkpoint(in_meta(tmp_path, meta, WIDTHS))
    assert found.config is None
    assert note in found.notes[0]
    assert found.grid.sparse_shape == (41, 1440, 1440)


def test_the_config_of_another_backbone_is_left_aside(tmp_path) -> None:
    text = config_to_yaml(load_config("centerpoint_tiny"))
    meta = {"voxelquant": "0.1.0", "config": text}
    found = describe_checkpoint(in_meta(tmp_path, meta, WIDTHS))
    assert found.config is None
    assert "another backbone (centerpoint_tiny)" in found.notes[0]


def test_another_model_is_refused_by_name(tmp_path) -> None:
    weights = nvidia_weights(WIDTHS)
    del weights["backbone.conv4.3.conv1.bias"]
    torch.save(weights, tmp_path / "ptq.pth")
    with pytest.raises(CheckpointError, match=r"ptq\.pth: backbone\.conv4\.3\.conv1\.bias: miss"):
        describe_checkpoint(tmp_path / "ptq.pth")
    weights = nvidia_weights(WIDTHS)
    weights["backbone.conv_input.0.weight"] = torch.zeros(4, 3, 3, 7)
    torch.save(weights, tmp_path / "ptq.pth")
    with pytest.raises(CheckpointError, match=r"conv_input\.0\.weight: got shape \[4, 3, 3, 7\]"):
        describe_checkpoint(tmp_path / "ptq.pth")
