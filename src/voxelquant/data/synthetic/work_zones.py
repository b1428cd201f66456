"""Work zones: machines and workers behind a row of barriers with cones at both ends."""

import math
from dataclasses import replace

import torch
from torch import Tensor

from voxelquant.data.synthetic.setting import Setting, sign_of
from voxelquant.data.synthetic.slots import Slots, make_slots

_BARRIER_PITCH_M = 2.95
_CONES = 14


def work_zones(setting: Setting) -> list[Slots]:
    """One work zone a stretch at most, in the parking strip and on the side walk."""
    dice, stretches = setting.dice, setting.stretches
    chosen = dice.choice("work.side", stretches, [0.5, 0.5])  # [b, stretches]
    sign, kerb = sign_of(chosen), setting.street.kerb_m.gather(1, chosen)
    centre = setting.stretch_centres() + dice.uniform("work.s", stretches, -30.0, 30.0)
    here = dice.chance("work.here", stretches, setting.mix.work_zone)
    fewest, most = setting.mix.barrier_row
    barriers = torch.floor(dice.uniform("work.length", stretches, fewest, most + 1))
    half_m = barriers * (_BARRIER_PITCH_M / 2)
    zone = (sign, kerb, centre, half_m)
    cones_only = ~here & dice.chance("work.cones_only", stretches, setting.mix.cone_row)
    return [
        _machines(setting, zone, here),
        _barriers(setting, zone, barriers, here),
        _cones(setting, zone, here, cones_only),
        _workers(setting, zone, here),
    ]


Zone = tuple[Tensor, Tensor, Tensor, Tensor]  # side's sign, kerb, centre, half length of each


def _machines(setting: Setting, zone: Zone, here: Tensor) -> Slots:
    sign, kerb, centre, half_m = zone
    dice = setting.dice
    stretch, place = setting.in_groups(setting.stretches, 3)
    count = len(stretch)
    spread = (place - 1) * (half_m[:, stretch] * 0.7).clamp(9.0, 14.0)
    return make_slots(
        "construction_vehicle",
        centre[:, stretch] + spread + dice.uniform("work.machine", count, -1.0, 1.0),
        (sign * (kerb + 3.6))[:, stretch],
        turn_rad=dice.uniform("work.turn", count, -math.pi, math.pi) * 0.15
        + dice.choice("work.facing", count, [0.5, 0.5]) * math.pi,
        present=here[:, stretch] & dice.chance("work.machine_here", count, setting.mix.machines),
    )


def _barriers(setting: Setting, zone: Zone, barriers: Tensor, here: Tensor) -> Slots:
    sign, kerb, centre, half_m = zone
    dice = setting.dice
    stretch, place = setting.in_groups(setting.stretches, setting.mix.barrier_row[1])
    count = len(stretch)
    behind_start = (place + 0.5) * _BARRIER_PITCH_M
    return make_slots(
        "barrier",
        (centre - half_m)[:, stretch] + behind_start + dice.bell("work.barrier", count) * 0.06,
        (sign * (kerb + 0.5))[:, stretch] + dice.bell("work.barrier_d", count) * 0.08,
        turn_rad=math.pi / 2 + dice.bell("work.barrier_turn", count) * 0.05,
        present=here[:, stretch]
        & (place < barriers[:, stretch])
        & dice.chance("work.barrier_here", count, 0.9),
    )


def _cones(setting: Setting, zone: Zone, here: Tensor, cones_only: Tensor) -> Slots:
    """Tapers of cones at both ends of a zone; alone, one row along the kerb."""
    sign, kerb, centre, half_m = zone
    dice = setting.dice
    stretch, place = setting.in_groups(setting.stretches, _CONES)
    count, half = len(stretch), _CONES // 2
    end, step = sign_of(place // half), place % half
    at_ends = end * (half_m[:, stretch] + 1.6 + step * 1.9)
    in_row = end * (step + 0.5) * 2.6
    alone = cones_only[:, stretch]
    depth = torch.where(alone, 0.1, 0.4 + step * 0.35)
    return make_slots(
        "traffic_cone",
        centre[:, stretch]
        + torch.where(alone, in_row, at_ends)
        + dice.bell("work.cone", count) * 0.2,
        sign[:, stretch] * (kerb[:, stretch] + depth) + dice.bell("work.cone_d", count) * 0.1,
        turn_rad=dice.uniform("work.cone_turn", count, -math.pi, math.pi),
        present=(here | cones_only)[:, stretch] & dice.chance("work.cone_here", count, 0.75),
    )


def _workers(setting: Setting, zone: Zone, here: Tensor) -> Slots:
    sign, kerb, centre, half_m = zone
    dice = setting.dice
    stretch, _ = setting.in_groups(setting.stretches, 4)
    count = len(stretch)
    workers = make_slots(
        "pedestrian",
        centre[:, stretch] + half_m[:, stretch] * dice.uniform("work.worker", count, -1.0, 1.0),
        sign[:, stretch] * (kerb[:, stretch] + dice.uniform("work.worker_d", count, 1.3, 6.0)),
        turn_rad=dice.uniform("work.worker_turn", count, -math.pi, math.pi),
        present=here[:, stretch] & dice.chance("work.worker_here", count, 0.6),
    )
    return replace(workers, worker=torch.ones_like(workers.worker))
