"""Who uses the street: moving and parked vehicles, cyclists, pedestrians, work zones and lots.

Each function proposes candidates; `layout` removes those that would overlap. Candidates of one lane
share one speed, so nothing drives through anything within a scene.
"""

import math
from dataclasses import replace

import torch
from torch import Tensor

from voxelquant.data.synthetic.hashing import Dice
from voxelquant.data.synthetic.road import LANE_M, PARKING_M, Road
from voxelquant.data.synthetic.slots import Slots, make_slots, pick_kind, spaced

_SIDE_SIGN = (-1.0, 1.0)
_LANE_SPACING_M = 15.0


def lane_speeds_mps(dice: Dice) -> Tensor:
    """Speed of each lane (side 0 inner, outer; side 1 inner, outer), signed along s, [b, 4]."""
    speed = dice.uniform("lane.speed", 4, 2.0, 14.0)
    speed = torch.where(dice.chance("lane.stopped", 4, 0.22), 0.0, speed)
    direction = torch.tensor([1.0, 1.0, -1.0, -1.0], dtype=torch.float64, device=dice.device)
    return speed * direction


def traffic(dice: Dice, road: Road, reach_m: float) -> Slots:
    """Vehicles in the lanes, riders among them."""
    per_lane = round(2 * reach_m / _LANE_SPACING_M)
    speeds = lane_speeds_mps(dice)
    lane = torch.arange(4, device=dice.device).repeat_interleave(per_lane)  # [n]
    side, rank = lane // 2, lane % 2
    count = 4 * per_lane
    sign = torch.where(side == 0, -1.0, 1.0).double()
    names = ["car", "truck", "bus", "motorcycle", "trailer", "bicycle", "construction_vehicle"]
    drawn = dice.choice("lane.kind", count, [0.68, 0.13, 0.06, 0.05, 0.04, 0.02, 0.02])
    s_m = spaced(per_lane, reach_m, dice.device).repeat(1, 4)
    s_m = s_m + dice.uniform("lane.jitter", count, -3.0, 3.0)
    d_m = sign * (rank + 0.5) * LANE_M + dice.bell("lane.offset", count) * 0.15
    facing = torch.where(side == 0, 0.0, math.pi).double()
    return make_slots(
        pick_kind(drawn, names),
        s_m,
        d_m,
        turn_rad=facing + dice.bell("lane.turn", count) * 0.012,
        speed_mps=speeds[:, lane],
        present=dice.chance("lane.present", count, 0.55) & (rank < road.lanes[:, side]),
        in_traffic=True,
    )


def cyclists(dice: Dice, road: Road, reach_m: float) -> Slots:
    """Riders in the cycle lanes beside the traffic."""
    per_side = round(2 * reach_m / 22.0)
    count = 2 * per_side
    side = torch.arange(2, device=dice.device).repeat_interleave(per_side)
    sign = torch.where(side == 0, -1.0, 1.0).double()
    speed = dice.uniform("cyclists.speed", 2, 2.5, 6.5)
    drawn = dice.choice("cyclists.kind", count, [0.6, 0.4])
    s_m = spaced(per_side, reach_m, dice.device).repeat(1, 2)
    return make_slots(
        pick_kind(drawn, ["bicycle", "motorcycle"]),
        s_m + dice.uniform("cyclists.jitter", count, -7.0, 7.0),
        sign * (road.kerb_m[:, side] - 0.75) + dice.bell("cyclists.offset", count) * 0.1,
        turn_rad=torch.where(side == 0, 0.0, math.pi) + dice.bell("cyclists.turn", count) * 0.03,
        speed_mps=-sign * speed[:, side],
        present=dice.chance("cyclists.present", count, 0.40),
        in_traffic=True,
    )


def parked(dice: Dice, road: Road, reach_m: float) -> Slots:
    """Vehicles in the parking strips along the kerb."""
    per_side = round(2 * reach_m / 7.0)
    count = 2 * per_side
    side = torch.arange(2, device=dice.device).repeat_interleave(per_side)
    sign = torch.where(side == 0, -1.0, 1.0).double()
    drawn = dice.choice("parked.kind", count, [0.84, 0.07, 0.04, 0.05])
    s_m = spaced(per_side, reach_m, dice.device).repeat(1, 2)
    backwards = dice.chance("parked.backwards", count, 0.1)
    facing = torch.where((side == 0) ^ backwards, 0.0, math.pi)
    busy = dice.uniform("parked.busy", 2, 0.15, 0.75)[:, side]
    return make_slots(
        pick_kind(drawn, ["car", "truck", "bus", "motorcycle"]),
        s_m + dice.uniform("parked.jitter", count, -0.6, 0.6),
        sign * (road.kerb_m[:, side] + PARKING_M / 2) + dice.bell("parked.offset", count) * 0.12,
        turn_rad=facing + dice.bell("parked.turn", count) * 0.03,
        present=dice.uniform("parked.present", count) < busy,
    )


def cycle_stands(dice: Dice, road: Road, reach_m: float) -> Slots:
    """Bicycles and motorcycles without riders in small rows on the side walk."""
    rows, per_row = 2 * max(2, round(2 * reach_m / 40.0)), 3
    count = rows * per_row
    row = torch.arange(rows, device=dice.device).repeat_interleave(per_row)
    place = torch.arange(count, device=dice.device) % per_row
    side = row % 2
    sign = torch.where(side == 0, -1.0, 1.0).double()
    drawn = dice.choice("stands.kind", rows, [0.5, 0.5])[:, row]
    centre = spaced(rows, reach_m * 0.6, dice.device) + dice.uniform("stands.s", rows, -6.0, 6.0)
    across = dice.uniform("stands.turn", rows, 0.9, 2.2)[:, row]
    return make_slots(
        pick_kind(drawn, ["bicycle", "motorcycle"]),
        centre[:, row] + (place - 1) * 1.25 + dice.bell("stands.jitter", count) * 0.08,
        sign * (road.walk_start_m[:, side] + 0.7),
        turn_rad=across + dice.bell("stands.lean", count) * 0.1,
        present=dice.chance("stands.present", count, 0.5),
    )


def pedestrians(dice: Dice, road: Road, reach_m: float) -> Slots:
    """Groups that walk in two bands of each side walk, one a direction, and groups that stand."""
    groups, per_group = 2 * round(2 * reach_m / 12.0), 4
    count = groups * per_group
    group = torch.arange(groups, device=dice.device).repeat_interleave(per_group)
    place = torch.arange(count, device=dice.device) % per_group
    side = group % 2
    sign = torch.where(side == 0, -1.0, 1.0).double()
    outward = dice.choice("people.direction", groups, [0.5, 0.5])[:, group]
    stands = dice.chance("people.stands", groups, 0.3)[:, group]
    pace = dice.uniform("people.pace", 4, 0.8, 1.7).gather(1, side * 2 + outward)
    speed = torch.where(stands, 0.0, pace * (2.0 * outward - 1.0))
    band = torch.where(stands, 0.85, 0.35 + 0.3 * outward) * road.walk_m[:, side]
    centre = spaced(groups, reach_m, dice.device) + dice.uniform("people.s", groups, -4.0, 4.0)
    any_turn = dice.uniform("people.turn", count, -math.pi, math.pi)
    along = torch.where(speed < 0, math.pi, 0.0) + dice.bell("people.veer", count) * 0.1
    here = dice.chance("people.group", groups, 0.45)[:, group]
    return make_slots(
        "pedestrian",
        centre[:, group] + (place - 1.5) * 1.0 + dice.bell("people.jitter", count) * 0.15,
        sign * (road.walk_start_m[:, side] + band) + dice.bell("people.offset", count) * 0.12,
        turn_rad=torch.where(stands, any_turn, along),
        speed_mps=speed,
        present=here & dice.chance("people.member", count, 0.58),
    )


def work_zone(dice: Dice, road: Road) -> list[Slots]:
    """Construction vehicles and workers behind a row of barriers and cones, near the start."""
    chosen = dice.choice("work.side", 1, [0.5, 0.5])  # [b, 1]
    sign = chosen * 2.0 - 1.0
    kerb = road.kerb_m.gather(1, chosen)
    centre = dice.uniform("work.s", 1, -12.0, 12.0)
    zero = centre * 0.0
    machines = make_slots(
        "construction_vehicle",
        centre + spaced(3, 16.0, dice.device) + dice.uniform("work.machine", 3, -1.0, 1.0),
        sign * (kerb + 3.6) + zero,
        turn_rad=dice.uniform("work.turn", 3, -math.pi, math.pi) * 0.15
        + dice.choice("work.facing", 3, [0.5, 0.5]) * math.pi,
        present=dice.chance("work.machine_here", 3, 0.8),
    )
    barriers = make_slots(
        "barrier",
        centre + spaced(8, 12.0, dice.device) + dice.bell("work.barrier", 8) * 0.06,
        sign * (kerb + 0.5) + dice.bell("work.barrier_d", 8) * 0.08,
        turn_rad=math.pi / 2 + dice.bell("work.barrier_turn", 8) * 0.05,
        present=dice.chance("work.barrier_here", 8, 0.85),
    )
    ends = torch.tensor([-1.0] * 5 + [1.0] * 5, dtype=torch.float64, device=dice.device)
    steps = torch.arange(10, device=dice.device) % 5
    cones = make_slots(
        "traffic_cone",
        centre + ends * (13.6 + steps * 1.9) + dice.bell("work.cone", 10) * 0.2,
        sign * (kerb + 0.4 + steps * 0.35) + dice.bell("work.cone_d", 10) * 0.1,
        turn_rad=dice.uniform("work.cone_turn", 10, -math.pi, math.pi),
        present=dice.chance("work.cone_here", 10, 0.75),
    )
    workers = make_slots(
        "pedestrian",
        centre + dice.uniform("work.worker", 4, -13.0, 13.0),
        sign * (kerb + dice.uniform("work.worker_d", 4, 1.3, 6.0)),
        turn_rad=dice.uniform("work.worker_turn", 4, -math.pi, math.pi),
        present=dice.chance("work.worker_here", 4, 0.6),
    )
    workers = replace(workers, worker=torch.ones_like(workers.worker))
    return [machines, barriers, cones, workers]


def yard(dice: Dice, road: Road, side: Tensor) -> list[Slots]:
    """A yard behind the side walk: trailers, trucks, buses and machines at all angles."""
    sign = side * 2.0 - 1.0
    start = road.walk_end_m.gather(1, side)
    columns, count = 6, 12
    row = torch.arange(count, device=dice.device) // columns
    names = ["trailer", "truck", "bus", "construction_vehicle", "car", "motorcycle"]
    drawn = dice.choice("yard.kind", count, [0.28, 0.19, 0.29, 0.09, 0.08, 0.07])
    crosswise = dice.chance("yard.crosswise", 1, 0.4)
    turn = torch.where(crosswise, math.pi / 2, 0.0) + dice.bell("yard.turn", count) * 0.12
    s_m = spaced(columns, 42.0, dice.device).repeat(1, 2)
    depth = torch.where(crosswise, 15.0, 5.5)
    vehicles = make_slots(
        pick_kind(drawn, names),
        s_m + dice.uniform("yard.jitter", count, -1.5, 1.5),
        sign * (start + torch.where(crosswise, 7.5, 3.0) + row * depth),
        turn_rad=turn + dice.choice("yard.facing", count, [0.5, 0.5]) * math.pi,
        present=dice.chance("yard.present", count, 0.85),
    )
    barriers = make_slots(
        "barrier",
        dice.uniform("yard.row", 1, -15.0, 15.0) + spaced(5, 7.0, dice.device),
        sign * (start + 0.5) + dice.bell("yard.barrier_d", 5) * 0.1,
        turn_rad=math.pi / 2 + dice.bell("yard.barrier_turn", 5) * 0.08,
        present=dice.chance("yard.barriers", 1, 0.5),
    )
    return [vehicles, barriers]
