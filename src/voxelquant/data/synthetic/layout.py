"""Scenes: everything that stands or moves in them, free of overlaps over the whole duration."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from voxelquant.data.synthetic import scenery, traffic
from voxelquant.data.synthetic.config import SceneSpec, WorldConfig
from voxelquant.data.synthetic.hashing import Dice
from voxelquant.data.synthetic.road import LANE_M, Road, draw_roads
from voxelquant.data.synthetic.shapes import FAMILY_INDEX, shape_table
from voxelquant.data.synthetic.slots import Slots, join_slots, make_slots
from voxelquant.data.synthetic.taxonomy import CHILD, KIND_INDEX, KINDS, N_CLASSES, WORKER

_REACH_M = 68.0
_GAP_M = 0.15  # kept free around every object
_REVOLUTION_S = 0.05
_EGO_WLH_M = (1.9, 4.9, 1.6)  # the ego vehicle with some distance to its neighbours
_REAR_AXLE_TO_CENTRE_M = 1.3


@dataclass(frozen=True)
class Scenes:
    """A batch of scenes of equal length; objects [b, n], of which only `present` ones exist."""

    keys: Tensor  # [b, 1] int64, for draws that belong to a scene
    road: Road
    ego_speed_mps: Tensor  # [b, 1]
    ego_d_m: Tensor  # [b, 1]
    global_xy_m: Tensor  # [b, 2], origin of the scene in the global frame
    global_yaw_rad: Tensor  # [b, 1]
    slots: Slots
    size_wlh_m: Tensor  # [b, n, 3] float64
    variant: Tensor  # [b, n] int64, row of the shape table
    category: Tensor  # [b, n] int64, index into taxonomy.CATEGORIES; -1 for scenery
    bend: Tensor  # [b, n, 3] float64, how the variant's inner proportions are stretched per axis

    @property
    def present(self) -> Tensor:
        """Which candidates exist, [b, n] bool."""
        return self.slots.present


@dataclass(frozen=True)
class Poses:
    """Where objects (or the ego vehicle) are, [r, n] float64 in the scene's own frame."""

    x: Tensor
    y: Tensor
    z: Tensor  # ground contact
    heading_rad: Tensor


def object_poses(scenes: Scenes, rows: Tensor, time_s: Tensor) -> Poses:
    """Poses of all objects of scene `rows` at times relative to the first key frame.

    `time_s` is [r], or [r, n] with a moment for each object.
    """
    slots, road = scenes.slots, scenes.road.at(rows)
    moment_s = time_s if time_s.ndim == 2 else time_s[:, None]
    s_m = slots.s_m[rows] + slots.speed_mps[rows] * moment_s
    x, y, heading = road.place(s_m, slots.d_m[rows])
    z = road.height(x, y) + road.rise(slots.d_m[rows])
    return Poses(x, y, z, heading + slots.turn_rad[rows])


def ego_poses(scenes: Scenes, rows: Tensor, time_s: Tensor) -> Poses:
    """Poses of the ego vehicle's frame (rear axle, on the ground), [r, 1]."""
    road = scenes.road.at(rows)
    x, y, heading = road.place(scenes.ego_speed_mps[rows] * time_s[:, None], scenes.ego_d_m[rows])
    return Poses(x, y, road.height(x, y), heading)


def lay_out(specs: Sequence[SceneSpec], config: WorldConfig, device: torch.device) -> Scenes:
    """Scenes of one seed and length, laid out on `device`."""
    numbers = torch.tensor([spec.scene for spec in specs], dtype=torch.int64, device=device)
    dice = Dice(specs[0].seed, numbers)
    road = draw_roads(dice)
    duration_s = _duration_s(specs[0], config)
    ego_rank = dice.choice("ego.lane", 1, [0.6, 0.4]) % road.lanes[:, :1]
    ego_speed = traffic.lane_speeds_mps(dice).gather(1, ego_rank)
    ego_d = -(ego_rank + 0.5) * LANE_M
    reach_m = _REACH_M + 14.0 * max(0.0, duration_s - 1.0)
    slots = join_slots(_candidates(dice, road, reach_m, (ego_d, ego_speed)))
    size = _draw_sizes(dice, slots)
    slots = _without_overlaps(slots, road, size, duration_s)
    variant, category = _draw_variants(dice, slots)
    count = slots.kind.shape[1]
    bend = torch.stack([dice.bell(f"object.bend_{axis}", count) for axis in "xyz"], dim=-1)
    return Scenes(
        keys=dice.keys,
        road=road,
        ego_speed_mps=ego_speed,
        ego_d_m=ego_d,
        global_xy_m=dice.uniform("global.xy", 2, 300.0, 1800.0),
        global_yaw_rad=dice.uniform("global.yaw", 1, -math.pi, math.pi),
        slots=slots,
        size_wlh_m=size,
        variant=variant,
        category=category,
        bend=torch.exp2(bend * 0.13),
    )


def _duration_s(spec: SceneSpec, config: WorldConfig) -> float:
    revolutions = (spec.key_frames - 1) * config.key_frame_period
    return revolutions * config.lidar.period_us * 1e-6


def _candidates(dice: Dice, road: Road, reach_m: float, ego: tuple[Tensor, Tensor]) -> list[Slots]:
    ego_d, ego_speed = ego
    yard_side = dice.choice("yard.side", 1, [0.5, 0.5])
    ego_slot = make_slots(
        "car", torch.full_like(ego_d, _REAR_AXLE_TO_CENTRE_M), ego_d, speed_mps=ego_speed
    )
    return [
        ego_slot,
        *traffic.work_zone(dice, road),
        *traffic.yard(dice, road, yard_side),
        traffic.traffic(dice, road, reach_m),
        traffic.cyclists(dice, road, reach_m),
        traffic.parked(dice, road, reach_m),
        traffic.cycle_stands(dice, road, reach_m),
        traffic.pedestrians(dice, road, reach_m),
        scenery.street_furniture(dice, road, reach_m),
        scenery.buildings(dice, road, reach_m, yard_side),
        scenery.greens(dice, road, reach_m),
        scenery.backdrop(dice, road, reach_m),
    ]


def _draw_sizes(dice: Dice, slots: Slots) -> Tensor:
    """Width, length and height, [b, n, 3]: half of the spread is common to the three axes."""
    device, count = dice.device, slots.kind.shape[1]
    mean = torch.tensor([kind.mean_wlh_m for kind in KINDS], dtype=torch.float64, device=device)
    spread = torch.tensor([kind.spread_wlh for kind in KINDS], dtype=torch.float64, device=device)
    common = dice.bell("size.common", count)
    own = torch.stack([dice.bell(f"size.{axis}", count) for axis in "wlh"], dim=-1)
    deviation = (common[..., None] + own) * 0.5**0.5
    deviation = deviation.clamp(-2.2, 2.2)
    size = mean[slots.kind] * (1.0 + spread[slots.kind] * deviation)
    size = size * torch.where(_children(dice, slots), 0.72, 1.0)[..., None]
    return torch.round(size * 1024) / 1024  # equal on every device, also after rounding to float32


def _children(dice: Dice, slots: Slots) -> Tensor:
    person = (slots.kind == KIND_INDEX["pedestrian"]) & ~slots.worker
    return person & dice.chance("object.child", slots.kind.shape[1], 0.06)


def _draw_variants(dice: Dice, slots: Slots) -> tuple[Tensor, Tensor]:
    """Row of the shape table and nuScenes category of each object, [b, n] int64 each."""
    count = slots.kind.shape[1]
    family = slots.kind
    for name in ("motorcycle", "bicycle"):
        ridden = (slots.kind == KIND_INDEX[name]) & slots.in_traffic
        family = torch.where(ridden, FAMILY_INDEX[f"{name}, ridden"], family)
    family = torch.where(slots.worker, FAMILY_INDEX["worker"], family)
    table = shape_table(dice.device)
    pick = dice.uniform("object.variant", count) * table.count[family]
    variant = table.first[family] + pick.to(torch.int64)
    category = torch.where(slots.kind < N_CLASSES, slots.kind, -1)
    category = torch.where(_children(dice, slots), CHILD, category)
    return variant, torch.where(slots.worker, WORKER, category)


def _without_overlaps(slots: Slots, road: Road, size: Tensor, duration_s: float) -> Slots:
    """Drop every candidate that touches an earlier one at any time (checked each half second)."""
    hits: Tensor | None = None
    steps = max(2, round(duration_s / 0.5) + 1)
    for step in range(-1, steps):  # step -1: the sweeps before the first key frame
        time_s = duration_s * step / (steps - 1) if step >= 0 else -0.45
        x, y, heading = road.place(slots.s_m + slots.speed_mps * time_s, slots.d_m)
        now = _overlaps(x, y, heading + slots.turn_rad, _footprint_m(slots, size))
        hits = now if hits is None else hits | now
    assert hits is not None
    earlier = torch.ones_like(hits[0]).tril(-1)
    present = slots.present.clone()
    blocked = hits & earlier
    # An object yields to earlier candidates that are kept themselves; three passes settle chains.
    keep = present
    for _ in range(4):
        keep = present & ~(blocked & keep[:, None, :]).any(-1)
    keep = keep & ~(blocked & keep[:, None, :]).any(-1)
    keep[:, 0] = False  # the ego vehicle does not see itself
    return replace(slots, present=keep)


def _footprint_m(slots: Slots, size: Tensor) -> Tensor:
    """Length and width that must stay free, [b, n, 2]; a tree counts with its trunk."""
    length_width = size[..., [1, 0]]
    tree = (slots.kind == KIND_INDEX["tree"])[..., None]
    ego = torch.tensor([_EGO_WLH_M[1], _EGO_WLH_M[0]], dtype=torch.float64, device=size.device)
    length_width = torch.where(tree, length_width * 0.12, length_width) + _GAP_M
    # The beam meets two objects at different moments of a revolution, so boxes lie closer.
    length_width[..., 0] += slots.speed_mps.abs() * _REVOLUTION_S
    length_width[:, 0] = ego
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
