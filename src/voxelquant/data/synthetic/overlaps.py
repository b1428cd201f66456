"""Which candidates can be there together: no two overlap at any time of a scene."""

import torch
from torch import Tensor

from voxelquant.data.synthetic.crossing import BEFORE_FIRST_S, locate
from voxelquant.data.synthetic.road import Road
from voxelquant.data.synthetic.slots import Slots
from voxelquant.data.synthetic.taxonomy import KIND_INDEX

_GAP_M = 0.15  # kept free around every object
_EGO_LENGTH_WIDTH_M = (4.9, 1.9)  # the ego vehicle with some distance to its neighbours
_TRUNK = 0.12  # a tree counts with its trunk: this share of its width
_STEP_S = 0.5
_REVOLUTION_S = 0.05


def free_of_overlaps(slots: Slots, road: Road, size_wlh_m: Tensor, duration_s: float) -> Tensor:
    """Candidates that touch no earlier one that is kept, [b, n] bool.

    Checked each half second. What is fast enough to jump over something in that time has its lane
    for itself, and the junction by its light.
    """
    hits: Tensor | None = None
    steps = max(2, round(duration_s / _STEP_S) + 1)
    length_width = _footprint_m(slots, size_wlh_m)
    for step in range(-1, steps):  # step -1: the sweeps before the first key frame
        time_s = duration_s * step / (steps - 1) if step >= 0 else BEFORE_FIRST_S
        x, y, heading = locate(road, slots, time_s)
        now = _overlaps(x, y, heading, length_width)
        hits = now if hits is None else hits | now
    assert hits is not None
    blocked = hits & torch.ones_like(hits[0]).tril(-1)
    # An object yields to earlier candidates that are kept themselves; a few passes settle chains.
    keep = slots.present
    for _ in range(4):
        keep = slots.present & ~(blocked & keep[:, None, :]).any(-1)
    return keep & ~(blocked & keep[:, None, :]).any(-1)


def _footprint_m(slots: Slots, size_wlh_m: Tensor) -> Tensor:
    """Length and width that must stay free, [b, n, 2]; the first object is the ego vehicle."""
    length_width = size_wlh_m[..., [1, 0]]
    tree = (slots.kind == KIND_INDEX["tree"]) | (slots.kind == KIND_INDEX["tall_tree"])
    length_width = length_width * torch.where(tree, _TRUNK, 1.0)[..., None] + _GAP_M
    # The beam meets two objects at different moments of a revolution, so boxes lie closer.
    length_width[..., 0] += slots.speed_mps.abs() * _REVOLUTION_S
    length_width[:, 0] = length_width.new_tensor(_EGO_LENGTH_WIDTH_M)
    return length_width


def _overlaps(x: Tensor, y: Tensor, heading: Tensor, length_width: Tensor) -> Tensor:
    """Pairwise overlap of rectangles by separating axes, [b, n, n] bool."""
    x, y, half = x.float(), y.float(), length_width.float() / 2
    cos, sin = torch.cos(heading).float(), torch.sin(heading).float()
    dx, dy = x[:, None] - x[:, :, None], y[:, None] - y[:, :, None]  # from row to column
    cos_turn = (cos[:, None] * cos[:, :, None] + sin[:, None] * sin[:, :, None]).abs()
    sin_turn = (sin[:, None] * cos[:, :, None] - cos[:, None] * sin[:, :, None]).abs()
    length, width = half[..., 0], half[..., 1]
    along = (dx * cos[:, :, None] + dy * sin[:, :, None]).abs()
    across = (dy * cos[:, :, None] - dx * sin[:, :, None]).abs()
    reach_along = length[:, :, None] + length[:, None] * cos_turn + width[:, None] * sin_turn
    reach_across = width[:, :, None] + length[:, None] * sin_turn + width[:, None] * cos_turn
    touching = (along < reach_along) & (across < reach_across)
    return touching & touching.transpose(1, 2)
