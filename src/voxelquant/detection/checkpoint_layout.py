"""Bring the names and weight layouts of det3d checkpoints into the project's own.

Sparse conv weights exist in three layouts, by the version of spconv that trained them. One file
has one layout, so the layers whose shapes are unambiguous decide for those that are not.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from voxelquant.errors import CheckpointError


@dataclass(frozen=True)
class WeightLayout:
    """How a file stores a sparse weight; `to_native` permutes it to [c_out, kz, ky, kx, c_in]."""

    name: str
    to_native: tuple[int, int, int, int, int]

    def stored_shape(self, native: tuple[int, ...]) -> tuple[int, ...]:
        """Shape in the file of a weight whose own shape is `native`."""
        stored = [0] * 5
        for axis, source in enumerate(self.to_native):
            stored[source] = native[axis]
        return tuple(stored)


# In order of preference where several fit.
LAYOUTS = (
    WeightLayout("spconv 2.2+ [c_out, kz, ky, kx, c_in]", (0, 1, 2, 3, 4)),
    WeightLayout("spconv 1.x [kz, ky, kx, c_in, c_out]", (4, 0, 1, 2, 3)),
    WeightLayout("spconv 2.0/2.1 native [kz, ky, kx, c_out, c_in]", (3, 0, 1, 2, 4)),
)

# Indices of the old flat container, and the container that holds them today.
_MIDDLE_CONV = (
    (range(0, 3), "conv_input"),
    (range(3, 5), "conv1"),
    (range(5, 10), "conv2"),
    (range(10, 15), "conv3"),
    (range(15, 20), "conv4"),
    (range(20, 23), "extra_conv"),
)

# (substring or prefix that gives a foreign checkpoint away, what it is)
_FOREIGN = (
    ("feature_adapt_cls.", "a CenterPoint with DCN heads"),
    ("pfn_layers.", "a PointPillars model"),
    ("roi_head.", "a two-stage CenterPoint"),
    ("single_det.", "a two-stage CenterPoint"),
    ("backbone_3d.", "an OpenPCDet model"),
    ("vfe.", "an OpenPCDet model"),
    ("pts_middle_encoder.", "an mmdetection3d model"),
    ("encoders.lidar.", "a BEVFusion model"),
)


def det3d_names(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Today's det3d names: no `module.` in front, no flat `backbone.middle_conv`."""
    return {_rename(name.removeprefix("module.")): value for name, value in weights.items()}


def _rename(name: str) -> str:
    prefix = "backbone.middle_conv."
    if not name.startswith(prefix):
        return name
    index, _, rest = name.removeprefix(prefix).partition(".")
    for indices, container in _MIDDLE_CONV:
        if index.isdecimal() and int(index) in indices:
            return f"backbone.{container}.{int(index) - indices.start}.{rest}"
    return name


def describe_foreign(names: list[str]) -> str | None:
    """What a checkpoint of another kind of model looks like, or None."""
    for mark, description in _FOREIGN:
        if any(mark in name for name in names):
            return description
    return None


def choose_layout(
    weights: Mapping[str, Tensor], native_shapes: Mapping[str, tuple[int, ...]]
) -> tuple[WeightLayout, list[WeightLayout]]:
    """The layout in which every sparse weight has the shape that the model needs.

    Args:
        weights: tensors of the file under the model's names.
        native_shapes: `[c_out, kz, ky, kx, c_in]` of every sparse weight of the model.

    Returns:
        The layout, and every other one that fits as well.

    Raises:
        CheckpointError: no layout fits; the message names a tensor.
    """
    fitting = list(LAYOUTS)
    for name, native in native_shapes.items():
        got = tuple(weights[name].shape)
        still = [layout for layout in fitting if layout.stored_shape(native) == got]
        if not still:
            before = f", while earlier layers are {fitting[0].name}" if len(fitting) == 1 else ""
            raise CheckpointError(
                f"{name}: got shape {list(got)}, need {list(native)} in one of the layouts "
                f"of spconv{before}; this is a checkpoint of another model"
            )
        fitting = still
    return fitting[0], fitting[1:]
