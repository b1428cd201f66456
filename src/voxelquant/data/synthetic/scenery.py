"""What lines the street and is never annotated: buildings, walls, poles, trees, bushes, signs."""

import math

import torch
from torch import Tensor

from voxelquant.data.synthetic.hashing import Dice
from voxelquant.data.synthetic.road import Road
from voxelquant.data.synthetic.slots import Slots, make_slots, pick_kind, spaced

YARD_DEPTH_M = 24.0


def _sides(dice: Dice, per_side: int) -> tuple[Tensor, Tensor]:
    side = torch.arange(2, device=dice.device).repeat_interleave(per_side)
    return side, torch.where(side == 0, -1.0, 1.0).double()


def buildings(dice: Dice, road: Road, reach_m: float, yard_side: Tensor) -> Slots:
    """A row of houses on each side; behind the yard on the yard's side."""
    per_side = round(2 * reach_m / 18.0)
    count = 2 * per_side
    side, sign = _sides(dice, per_side)
    setback = dice.uniform("houses.setback", 2, 8.5, 13.0)[:, side]
    setback = setback + dice.uniform("houses.recess", count, 0.0, 2.5)
    setback = setback + torch.where(side == yard_side, YARD_DEPTH_M, 0.0)
    density = dice.uniform("houses.density", 1, 0.35, 1.0)
    return make_slots(
        "building",
        spaced(per_side, reach_m, dice.device).repeat(1, 2)
        + dice.uniform("houses.s", count, -1.5, 1.5),
        sign * (road.walk_end_m[:, side] + setback),
        turn_rad=dice.choice("houses.facing", count, [0.5, 0.5]) * math.pi
        + dice.bell("houses.turn", count) * 0.02,
        present=dice.uniform("houses.present", count) < density,
    )


def street_furniture(dice: Dice, road: Road, reach_m: float) -> Slots:
    """Poles, trees, signs and bins on the side walk beside the kerb."""
    per_side = round(2 * reach_m / 8.0)
    count = 2 * per_side
    side, sign = _sides(dice, per_side)
    drawn = dice.choice("furniture.kind", count, [0.28, 0.36, 0.16, 0.20])
    return make_slots(
        pick_kind(drawn, ["pole", "tree", "sign", "bin"]),
        spaced(per_side, reach_m, dice.device).repeat(1, 2)
        + dice.uniform("furniture.s", count, -3.0, 3.0),
        sign * (road.walk_start_m[:, side] + 0.45),
        turn_rad=dice.uniform("furniture.turn", count, -math.pi, math.pi),
        present=dice.chance("furniture.present", count, 0.6),
    )


def greens(dice: Dice, road: Road, reach_m: float) -> Slots:
    """Trees, bushes, walls and fences between the side walk and the houses."""
    per_side = round(2 * reach_m / 6.0)
    count = 2 * per_side
    side, sign = _sides(dice, per_side)
    drawn = dice.choice("greens.kind", count, [0.3, 0.4, 0.3])
    lush = dice.uniform("greens.lush", 2, 0.2, 0.9)[:, side]
    kind = pick_kind(drawn, ["tree", "bush", "wall"])
    return make_slots(
        kind,
        spaced(per_side, reach_m, dice.device).repeat(1, 2)
        + dice.uniform("greens.s", count, -2.5, 2.5),
        sign * (road.walk_end_m[:, side] + dice.uniform("greens.d", count, 0.6, 4.0)),
        turn_rad=dice.bell("greens.turn", count) * 0.1,
        present=dice.uniform("greens.present", count) < lush,
    )


def backdrop(dice: Dice, road: Road, reach_m: float) -> Slots:
    """Trees and bushes further away, seen where there are no houses."""
    count = 2 * round(2 * reach_m / 6.0)
    side, sign = _sides(dice, count // 2)
    drawn = dice.choice("backdrop.kind", count, [0.6, 0.4])
    return make_slots(
        pick_kind(drawn, ["tree", "bush"]),
        dice.uniform("backdrop.s", count, -reach_m, reach_m),
        sign * (road.walk_end_m[:, side] + dice.uniform("backdrop.d", count, 6.0, 40.0)),
        turn_rad=dice.uniform("backdrop.turn", count, -math.pi, math.pi),
        present=dice.chance("backdrop.present", count, 0.6),
    )
