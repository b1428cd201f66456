"""What a checkpoint says of the network it belongs to, for tools that are told no config."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from voxelquant.detection.checkpoint_files import find_state_dict, read_torch_file
from voxelquant.detection.checkpoint_layout import det3d_names
from voxelquant.detection.config import DetectorConfig, load_config
from voxelquant.detection.config_files import parse_yaml
from voxelquant.detection.config_import import import_det3d_config
from voxelquant.detection.config_interpreter import interpret_config
from voxelquant.detection.config_schema import BackboneConfig
from voxelquant.detection.config_validation import validate_config
from voxelquant.detection.nvidia_layout import is_nvidia_checkpoint
from voxelquant.errors import CheckpointError, ConfigError
from voxelquant.sparse import VoxelGrid

_DEFAULT_CONFIG = "centerpoint_voxel0075"
_TAPS = 27  # of conv_input
# Second blocks stand at these places in det3d's files and in those with fused batch norms alike.
_WIDTHS = tuple(
    f"backbone.{block}.conv1.bias" for block in ("conv1.1", "conv2.3", "conv3.3", "conv4.3")
)


@dataclass(frozen=True)
class CheckpointDescription:
    """A checkpoint's backbone and grid.

    Attributes:
        backbone: input features and widths, from the shapes of the tensors.
        grid: where voxels lie.
        config: what the file's `meta` holds, if it can be read; else None.
        quantized: whether it is an NVIDIA `ptq.pth` or `qat.pth`.
        notes: where the grid comes from, if it had to be assumed.
    """

    backbone: BackboneConfig
    grid: VoxelGrid
    config: DetectorConfig | None
    quantized: bool
    notes: tuple[str, ...] = ()


def describe_checkpoint(path: str | Path) -> CheckpointDescription:
    """Backbone and grid of a det3d or NVIDIA checkpoint.

    Raises:
        CheckpointError: unreadable, unsafe, or not of a CenterPoint with SpMiddleResNetFHD.
    """
    path = Path(path)
    content = read_torch_file(path)
    weights = det3d_names(find_state_dict(content, path))
    try:
        backbone = backbone_of_shapes(weights)
    except (CheckpointError, ValueError) as error:
        raise CheckpointError(f"{path}: {' '.join(str(error).split())}") from None
    config, notes = _config_in(content, path)
    if config is not None and config.backbone != backbone:
        notes = (f"meta holds the config of another backbone ({config.name}), left aside",)
        config = None
    grid_of = config
    if grid_of is None:
        grid_of = load_config(_DEFAULT_CONFIG)
        notes = (*notes, f"no config in the file: the grid is that of {_DEFAULT_CONFIG}")
    grid = VoxelGrid(grid_of.point_range, grid_of.voxel_size)
    quantized = is_nvidia_checkpoint(weights)
    return CheckpointDescription(backbone, grid, config, quantized, notes)


def backbone_of_shapes(weights: Mapping[str, Tensor]) -> BackboneConfig:
    """Input features and widths of SpMiddleResNetFHD, whichever layout its weights are in.

    Raises:
        CheckpointError: a tensor that tells them is missing or has an impossible shape.
    """
    conv1, conv2, conv3, conv4 = (_require(weights, name).numel() for name in _WIDTHS)
    first = _require(weights, "backbone.conv_input.0.weight")
    in_channels, rest = divmod(first.numel(), _TAPS * max(1, conv1))
    if first.ndim != 5 or rest or not in_channels:
        raise CheckpointError(
            f"backbone.conv_input.0.weight: got shape {list(first.shape)}, need {_TAPS} taps of "
            f"{conv1} outputs"
        )
    return BackboneConfig(in_channels=in_channels, channels=(conv1, conv1, conv2, conv3, conv4))


def _require(weights: Mapping[str, Tensor], name: str) -> Tensor:
    if name not in weights:
        raise CheckpointError(
            f"{name}: missing, so this is no CenterPoint with the backbone SpMiddleResNetFHD; give "
            "its epoch_N.pth, ptq.pth or qat.pth"
        )
    return weights[name]


def _config_in(content: Any, path: Path) -> tuple[DetectorConfig | None, tuple[str, ...]]:
    """Config in a file's `meta`: ours as YAML, det3d's as the text of a `.py`, interpreted."""
    meta = content.get("meta") if isinstance(content, Mapping) else None
    text = meta.get("config") if isinstance(meta, Mapping) else None
    if not isinstance(text, str) or not isinstance(meta, Mapping):
        return None, ()
    source = f"{path} (meta.config)"
    try:
        if "voxelquant" in meta:
            return validate_config(parse_yaml(text, source), source), ()
        return import_det3d_config(interpret_config(text, source), source), ()
    except ConfigError as error:
        return None, (f"the config in the file cannot be read ({error})",)
