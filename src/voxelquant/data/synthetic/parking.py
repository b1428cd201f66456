"""What is parked: vehicles along the kerb, in lots and in yards; cycles on the side walk."""

import math

import torch

from voxelquant.data.synthetic.class_mix import VEHICLES
from voxelquant.data.synthetic.road import PARKING_M
from voxelquant.data.synthetic.setting import Setting, sign_of
from voxelquant.data.synthetic.slots import Slots, make_slots, pick_kind

YARD_DEPTH_M = 24.0  # of lots and yards behind the side walk
_LOT_ROWS_M = (2.5, 12.5, 17.8)  # two rows face an aisle, the third stands back to back
_BAY_M = 2.75
_BAYS = 16


def parked(setting: Setting) -> Slots:
    """Vehicles in the parking strips along the kerb."""
    dice, street = setting.dice, setting.street
    places = setting.places(6.6)
    side, _ = setting.in_groups(2, places.shape[1])
    count, sign = len(side), sign_of(side)
    drawn = dice.choice("parked.kind", count, list(setting.mix.parked_weights))
    backwards = dice.chance("parked.backwards", count, 0.1)
    busy = setting.traits.parked * dice.uniform("parked.busy", 2, 0.45, 1.05)[:, side]
    return make_slots(
        pick_kind(drawn, VEHICLES),
        places.repeat(1, 2) + dice.uniform("parked.jitter", count, -0.6, 0.6),
        sign * (street.kerb_m[:, side] + PARKING_M / 2) + dice.bell("parked.offset", count) * 0.12,
        turn_rad=torch.where((side == 0) ^ backwards, 0.0, math.pi)
        + dice.bell("parked.turn", count) * 0.03,
        present=dice.uniform("parked.present", count) < busy,
    )


def lot(setting: Setting, side: torch.Tensor) -> Slots:
    """Rows of parked cars at right angles to the street, behind the side walk of `side`, [b, 1]."""
    dice, stretches = setting.dice, setting.stretches
    stretch, place = setting.in_groups(stretches, len(_LOT_ROWS_M) * _BAYS)
    row, bay = place // _BAYS, place % _BAYS
    count, sign = len(stretch), sign_of(side)
    depth = torch.tensor(_LOT_ROWS_M, dtype=torch.float64, device=dice.device)[row]
    centre = setting.stretch_centres() + dice.uniform("lot.s", stretches, -25.0, 25.0)
    here = dice.uniform("lot.here", stretches) < setting.traits.lot
    full = dice.uniform("lot.full", stretches, 0.15, 0.95)
    drawn = dice.choice("lot.kind", count, [0.955, 0.037, 0.008])
    outwards = dice.choice("lot.facing", count, [0.5, 0.5]) * 2.0 - 1.0
    return make_slots(
        pick_kind(drawn, ("car", "truck", "motorcycle")),
        centre[:, stretch]
        + (bay - _BAYS / 2 + 0.5) * _BAY_M
        + dice.bell("lot.jitter", count) * 0.1,
        sign * (setting.street.walk_end_m.gather(1, side) + depth + 2.0)
        + dice.bell("lot.depth", count) * 0.15,
        turn_rad=outwards * (math.pi / 2) + dice.bell("lot.turn", count) * 0.03,
        present=here[:, stretch] & (dice.uniform("lot.present", count) < full[:, stretch]),
    )


def yard(setting: Setting, side: torch.Tensor) -> list[Slots]:
    """Yards behind the side walk of `side`: trailers, trucks, buses and machines at all angles."""
    dice, columns, stretches = setting.dice, 6, setting.stretches
    stretch, place = setting.in_groups(stretches, 2 * columns)
    count, sign = len(stretch), sign_of(side)
    start = setting.street.walk_end_m.gather(1, side)
    crosswise = dice.chance("yard.crosswise", 1, 0.4)
    turn = torch.where(crosswise, math.pi / 2, 0.0) + dice.bell("yard.turn", count) * 0.12
    depth = torch.where(crosswise, 7.5, 3.0) + (place // columns) * torch.where(
        crosswise, 15.0, 5.5
    )
    centre = setting.stretch_centres() + dice.uniform("yard.s", stretches, -8.0, 8.0)
    chance = setting.traits.depot.clamp_min(setting.mix.depot)
    here = dice.uniform("yard.here", stretches) < chance
    drawn = dice.choice("yard.kind", count, list(setting.mix.depot_weights))
    vehicles = make_slots(
        pick_kind(drawn, VEHICLES),
        centre[:, stretch]
        + (place % columns - columns / 2 + 0.5) * 14.0
        + dice.uniform("yard.jitter", count, -1.5, 1.5),
        sign * (start + depth),
        turn_rad=turn + dice.choice("yard.facing", count, [0.5, 0.5]) * math.pi,
        present=here[:, stretch] & dice.chance("yard.present", count, 0.85),
    )
    stretch, place = setting.in_groups(stretches, 5)
    fence = here & dice.chance("yard.barriers", stretches, 0.5)
    offset = dice.uniform("yard.row", stretches, -15.0, 15.0)
    barriers = make_slots(
        "barrier",
        (centre + offset)[:, stretch] + (place - 2) * 2.8,
        sign * (start + 0.5) + dice.bell("yard.barrier_d", len(stretch)) * 0.1,
        turn_rad=math.pi / 2 + dice.bell("yard.barrier_turn", len(stretch)) * 0.08,
        present=fence[:, stretch],
    )
    return [vehicles, barriers]


def cycle_stands(setting: Setting) -> Slots:
    """Bicycles and motorcycles without riders in small rows on the side walk."""
    dice, street, per_row = setting.dice, setting.street, 3
    places = setting.places(36.0)
    rows = 2 * places.shape[1]
    row, place = setting.in_groups(rows, per_row)
    count, side = len(row), row % 2
    drawn = dice.choice("stands.kind", rows, [0.5, 0.5])[:, row]
    centre = places.repeat_interleave(2, 1) + dice.uniform("stands.s", rows, -9.0, 9.0)
    across = dice.uniform("stands.turn", rows, 0.9, 2.2)[:, row]
    here = dice.chance("stands.here", rows, setting.mix.stands)[:, row]
    return make_slots(
        pick_kind(drawn, ("bicycle", "motorcycle")),
        centre[:, row] + (place - 1) * 1.25 + dice.bell("stands.jitter", count) * 0.08,
        sign_of(side) * (street.walk_start_m[:, side] + 0.7),
        turn_rad=across + dice.bell("stands.lean", count) * 0.1,
        present=here & dice.chance("stands.present", count, 0.5),
    )
