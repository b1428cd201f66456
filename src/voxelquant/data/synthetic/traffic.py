"""Who drives: vehicles in the lanes and riders beside them.

Vehicles of one lane share one speed, so nothing drives through anything within a scene. At a red
light they queue; behind it the lane is empty.
"""

import math

import torch
from torch import Tensor

from voxelquant.data.synthetic.class_mix import VEHICLES
from voxelquant.data.synthetic.road import LANE_M
from voxelquant.data.synthetic.setting import Setting, sign_of
from voxelquant.data.synthetic.slots import Slots, make_slots, pick_kind

LANES = 3  # at most, a side
_VIEW_M = 95.0  # vehicles are laid out as far as this from the ego vehicle, at all times
_SPACING_M = 15.0
_QUEUE_SPACING_M = 8.5
_SLOWEST_MPS, _FASTEST_MPS = 0.25, 14.0
_QUEUE_CROWD = 0.1  # a queue leaves fewer of its places empty
_CREEPING = 0.12  # chance of stop and go in all lanes


def lane_speeds_mps(setting: Setting) -> Tensor:
    """Speed of each lane (right side from the middle outwards, then left), signed, [b, lanes]."""
    dice, count = setting.dice, 2 * LANES
    pace = setting.traits.speed_mps * dice.uniform("lane.speed", count, 0.6, 1.2)
    creeps = dice.chance("lane.creeps", 1, _CREEPING) | dice.chance("lane.slow", count, 0.05)
    pace = torch.where(creeps, pace * dice.uniform("lane.crawl", count, 0.05, 0.3), pace)
    stands = dice.uniform("lane.standstill", 1) < setting.traits.standstill
    stands = stands | dice.chance("lane.stopped", count, 0.02) | setting.waits
    direction = -sign_of(torch.arange(count, device=dice.device) // LANES)
    return torch.where(stands, 0.0, pace.clamp(_SLOWEST_MPS, _FASTEST_MPS)) * direction


def traffic(setting: Setting) -> Slots:
    """Vehicles in the lanes, riders among them."""
    dice, street = setting.dice, setting.street
    closing_m = 2 * _FASTEST_MPS * setting.duration_s
    per_lane = math.ceil((2 * _VIEW_M + closing_m) / _SPACING_M)
    lane, place = setting.in_groups(2 * LANES, per_lane)
    side, rank = lane // LANES, lane % LANES
    count, sign = len(lane), sign_of(side)
    speed = lane_speeds_mps(setting)[:, lane]
    low_m, high_m = _seen_between(setting, speed)
    drawn = dice.choice("lane.kind", count, list(setting.mix.lane_weights))
    jitter = dice.uniform("lane.jitter", count, -3.0, 3.0)
    free_m = low_m + (place + 0.5) * _SPACING_M + jitter
    behind = setting.stop_m + 4.0 + place * _QUEUE_SPACING_M + jitter.abs() * 0.4
    s_m = torch.where(setting.waits, setting.junction_m + sign * behind, free_m)
    seen = (s_m > low_m) & (s_m < high_m) & (rank < street.lanes[:, side])
    crowded = 1.1 * setting.traits.traffic + torch.where(setting.waits, _QUEUE_CROWD, 0.0)
    return make_slots(
        pick_kind(drawn, VEHICLES),
        s_m,
        sign * (rank + 0.5) * LANE_M + dice.bell("lane.offset", count) * 0.15,
        turn_rad=torch.where(side == 0, 0.0, math.pi) + dice.bell("lane.turn", count) * 0.012,
        speed_mps=speed,
        present=seen & (dice.uniform("lane.present", count) < crowded),
        in_traffic=True,
    )


def _seen_between(setting: Setting, speed_mps: Tensor) -> tuple[Tensor, Tensor]:
    """Places at the start between which a vehicle of this speed comes into view, [b, n] each."""
    gain_m = (setting.viewer_mps - speed_mps) * setting.duration_s  # of the ego vehicle on it
    return gain_m.clamp_max(0.0) - _VIEW_M, gain_m.clamp_min(0.0) + _VIEW_M


def cyclists(setting: Setting) -> Slots:
    """Riders in the cycle lanes beside the traffic."""
    dice, street = setting.dice, setting.street
    places = setting.places(22.0)
    side, _ = setting.in_groups(2, places.shape[1])
    count, sign = len(side), sign_of(side)
    speed = dice.uniform("cyclists.speed", 2, 2.5, 6.5)
    speed = torch.where(setting.waits, 0.0, speed)
    drawn = dice.choice("cyclists.kind", count, [0.6, 0.4])
    return make_slots(
        pick_kind(drawn, ("bicycle", "motorcycle")),
        places.repeat(1, 2) + dice.uniform("cyclists.jitter", count, -7.0, 7.0),
        sign * (street.kerb_m[:, side] - 0.75) + dice.bell("cyclists.offset", count) * 0.1,
        turn_rad=torch.where(side == 0, 0.0, math.pi) + dice.bell("cyclists.turn", count) * 0.03,
        speed_mps=-sign * speed[:, side],
        present=dice.chance("cyclists.present", count, setting.mix.riders),
        in_traffic=True,
    )
