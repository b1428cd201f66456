"""What lines the street and is never annotated: buildings, walls, poles, trees, bushes, signs."""

import math

import torch

from voxelquant.data.synthetic.parking import YARD_DEPTH_M
from voxelquant.data.synthetic.setting import Setting, sign_of
from voxelquant.data.synthetic.slots import Slots, make_slots, pick_kind


def buildings(setting: Setting, open_sides: torch.Tensor) -> Slots:
    """A row of houses on each side; behind the yard on sides that have one, [b, 2] bool."""
    dice, street = setting.dice, setting.street
    places = setting.places(18.0)
    side, _ = setting.in_groups(2, places.shape[1])
    count = len(side)
    setback = setting.traits.setback_m * dice.uniform("houses.setback", 2, 0.9, 1.15)[:, side]
    setback = setback + dice.uniform("houses.recess", count, 0.0, 2.5)
    setback = setback + torch.where(open_sides[:, side], YARD_DEPTH_M, 0.0)
    return make_slots(
        "building",
        places.repeat(1, 2) + dice.uniform("houses.s", count, -1.5, 1.5),
        sign_of(side) * (street.walk_end_m[:, side] + setback),
        turn_rad=dice.choice("houses.facing", count, [0.5, 0.5]) * math.pi
        + dice.bell("houses.turn", count) * 0.02,
        present=dice.uniform("houses.present", count) < setting.traits.houses,
    )


def towers(setting: Setting) -> Slots:
    """High buildings behind the first row, seen over and between its houses."""
    dice, street = setting.dice, setting.street
    places = setting.places(32.0)
    side, _ = setting.in_groups(2, places.shape[1])
    count = len(side)
    return make_slots(
        "tower",
        places.repeat(1, 2) + dice.uniform("towers.s", count, -6.0, 6.0),
        sign_of(side) * (street.walk_end_m[:, side] + dice.uniform("towers.d", count, 32.0, 62.0)),
        turn_rad=dice.uniform("towers.turn", count, -0.3, 0.3),
        present=dice.uniform("towers.present", count) < setting.traits.towers,
    )


def high_walls(setting: Setting) -> Slots:
    """Walls as high as a storey along the outer edge of the side walk."""
    dice, street = setting.dice, setting.street
    places = setting.places(12.5)
    side, _ = setting.in_groups(2, places.shape[1])
    count = len(side)
    return make_slots(
        "high_wall",
        places.repeat(1, 2),
        sign_of(side) * (street.walk_end_m[:, side] + 0.5),
        turn_rad=dice.bell("walls.turn", count) * 0.01,
        present=dice.uniform("walls.present", count) < setting.traits.high_walls,
    )


def street_furniture(setting: Setting) -> Slots:
    """Poles, trees, signs and bins on the side walk beside the kerb."""
    dice, street = setting.dice, setting.street
    places = setting.places(8.0)
    side, _ = setting.in_groups(2, places.shape[1])
    count = len(side)
    drawn = dice.choice("furniture.kind", count, [0.28, 0.36, 0.16, 0.20])
    return make_slots(
        pick_kind(drawn, ("pole", "tree", "sign", "bin")),
        places.repeat(1, 2) + dice.uniform("furniture.s", count, -3.0, 3.0),
        sign_of(side) * (street.walk_start_m[:, side] + 0.45),
        turn_rad=dice.uniform("furniture.turn", count, -math.pi, math.pi),
        present=dice.uniform("furniture.present", count) < setting.traits.furniture,
    )


def greens(setting: Setting) -> Slots:
    """Trees, bushes, walls and fences between the side walk and the houses."""
    dice, street = setting.dice, setting.street
    places = setting.places(6.0)
    side, _ = setting.in_groups(2, places.shape[1])
    count = len(side)
    drawn = dice.choice("greens.kind", count, [0.3, 0.4, 0.3])
    lush = setting.traits.greens * dice.uniform("greens.lush", 2, 0.4, 1.3)[:, side]
    return make_slots(
        pick_kind(drawn, ("tree", "bush", "wall")),
        places.repeat(1, 2) + dice.uniform("greens.s", count, -2.5, 2.5),
        sign_of(side) * (street.walk_end_m[:, side] + dice.uniform("greens.d", count, 0.6, 4.0)),
        turn_rad=dice.bell("greens.turn", count) * 0.1,
        present=dice.uniform("greens.present", count) < lush,
    )


def backdrop(setting: Setting) -> Slots:
    """Trees and bushes further away, seen where there are no houses."""
    dice, street = setting.dice, setting.street
    count = 2 * setting.places(6.0).shape[1]
    side, _ = setting.in_groups(2, count // 2)
    drawn = dice.choice("backdrop.kind", count, [0.3, 0.2, 0.5])
    return make_slots(
        pick_kind(drawn, ("tree", "bush", "tall_tree")),
        dice.uniform("backdrop.s", count, *setting.span_m),
        sign_of(side) * (street.walk_end_m[:, side] + dice.uniform("backdrop.d", count, 5.0, 45.0)),
        turn_rad=dice.uniform("backdrop.turn", count, -math.pi, math.pi),
        present=dice.uniform("backdrop.present", count) < setting.traits.backdrop,
    )
