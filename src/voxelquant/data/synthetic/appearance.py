"""What objects look like: size, shape variant and nuScenes category."""

import torch
from torch import Tensor

from voxelquant.data.hashing import Dice
from voxelquant.data.synthetic.shapes import FAMILY_INDEX, shape_table
from voxelquant.data.synthetic.slots import Slots
from voxelquant.data.synthetic.taxonomy import CHILD, KIND_INDEX, KINDS, N_CLASSES, WORKER

_CHILD_SCALE = 0.72
_SITTING_SCALE = 0.74  # of the height


def draw_sizes(dice: Dice, slots: Slots) -> Tensor:
    """Width, length and height, [b, n, 3]: half of the spread is common to the three axes."""
    device, count = dice.device, slots.kind.shape[1]
    mean = torch.tensor([kind.mean_wlh_m for kind in KINDS], dtype=torch.float64, device=device)
    spread = torch.tensor([kind.spread_wlh for kind in KINDS], dtype=torch.float64, device=device)
    common = dice.bell("size.common", count)
    own = torch.stack([dice.bell(f"size.{axis}", count) for axis in "wlh"], dim=-1)
    deviation = (common[..., None] + own) * 0.5**0.5
    deviation = deviation.clamp(-2.2, 2.2)
    size = mean[slots.kind] * (1.0 + spread[slots.kind] * deviation)
    size = size * torch.where(_children(dice, slots), _CHILD_SCALE, 1.0)[..., None]
    size[..., 2] = size[..., 2] * torch.where(slots.sitting, _SITTING_SCALE, 1.0)
    return torch.round(size * 1024) / 1024  # equal on every device, also after rounding to float32


def draw_variants(dice: Dice, slots: Slots) -> tuple[Tensor, Tensor]:
    """Row of the shape table and nuScenes category of each object, [b, n] int64 each."""
    count = slots.kind.shape[1]
    family = slots.kind
    for name in ("motorcycle", "bicycle"):
        ridden = (slots.kind == KIND_INDEX[name]) & slots.in_traffic
        family = torch.where(ridden, FAMILY_INDEX[f"{name}, ridden"], family)
    family = torch.where(slots.worker, FAMILY_INDEX["worker"], family)
    family = torch.where(slots.sitting, FAMILY_INDEX["sitting"], family)
    table = shape_table(dice.device)
    pick = dice.uniform("object.variant", count) * table.count[family]
    variant = table.first[family] + pick.to(torch.int64)
    category = torch.where(slots.kind < N_CLASSES, slots.kind, -1)
    category = torch.where(_children(dice, slots), CHILD, category)
    return variant, torch.where(slots.worker, WORKER, category)


def draw_bends(dice: Dice, count: int) -> Tensor:
    """How an object's inner proportions are stretched per axis, [b, n, 3] float64."""
    bend = torch.stack([dice.bell(f"object.bend_{axis}", count) for axis in "xyz"], dim=-1)
    return torch.exp2(bend * 0.13)


def _children(dice: Dice, slots: Slots) -> Tensor:
    person = (slots.kind == KIND_INDEX["pedestrian"]) & ~slots.worker & ~slots.sitting
    return person & dice.chance("object.child", slots.kind.shape[1], 0.06)
