"""Scenes: everything that stands or moves in them, free of overlaps over the whole duration."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from voxelquant.data.hashing import Dice
from voxelquant.data.synthetic import parking, people, scenery, traffic, work_zones
from voxelquant.data.synthetic.appearance import draw_bends, draw_sizes, draw_variants
from voxelquant.data.synthetic.class_mix import MIXES
from voxelquant.data.synthetic.config import SceneSpec, WorldConfig
from voxelquant.data.synthetic.crossing import allowed_by_the_light, draw_roads, locate
from voxelquant.data.synthetic.overlaps import free_of_overlaps
from voxelquant.data.synthetic.road import LANE_M, Road
from voxelquant.data.synthetic.scene_kinds import draw_kinds, draw_traits
from voxelquant.data.synthetic.setting import Setting
from voxelquant.data.synthetic.slots import (
    Slots,
    join_slots,
    keep_present,
    make_slots,
    on_side_street,
)

_REACH_M = 90.0  # of what stands, before and behind the ego vehicle
_SIDE_STREET_M = 80.0  # of what stands along the side street, to both sides
_FASTEST_EGO_MPS = 14.0
_REAR_AXLE_TO_CENTRE_M = 1.3
_EGO_LEAN = 0.006  # deviation, as a slope: load, springs and the camber of the lane


@dataclass(frozen=True)
class Scenes:
    """A batch of scenes of equal length; objects [b, n], of which only `present` ones exist."""

    keys: Tensor  # [b, 1] int64, for draws that belong to a scene
    kind: Tensor  # [b, 1] int64, index into scene_kinds.KINDS_OF_SCENES
    road: Road
    ego_speed_mps: Tensor  # [b, 1]
    ego_d_m: Tensor  # [b, 1]
    ego_lean: Tensor  # [b, 2] slope of the ego vehicle's body on level ground: up ahead, up left
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
    road = scenes.road.at(rows)
    moment_s = time_s if time_s.ndim == 2 else time_s[:, None]
    x, y, heading = locate(road, scenes.slots.at(rows), moment_s)
    return Poses(x, y, road.height(x, y) + road.rise(x, y), heading)


def ego_poses(scenes: Scenes, rows: Tensor, time_s: Tensor) -> Poses:
    """Poses of the ego vehicle's frame (rear axle, on the ground), [r, 1]."""
    road = scenes.road.at(rows)
    x, y, heading = road.place(scenes.ego_speed_mps[rows] * time_s[:, None], scenes.ego_d_m[rows])
    return Poses(x, y, road.height(x, y), heading)


def ego_slopes(scenes: Scenes, rows: Tensor, ego: Poses) -> tuple[Tensor, Tensor]:
    """Slope of the ego vehicle's floor along world x and y: the ground's and its own, [r, 1]."""
    slope_x, slope_y = scenes.road.at(rows).gradient(ego.x, ego.y)
    cos, sin = torch.cos(ego.heading_rad), torch.sin(ego.heading_rad)
    ahead, left = scenes.ego_lean[rows, :1], scenes.ego_lean[rows, 1:]
    return slope_x + ahead * cos - left * sin, slope_y + ahead * sin + left * cos


def lay_out(specs: Sequence[SceneSpec], config: WorldConfig, device: torch.device) -> Scenes:
    """Scenes of one seed and length, laid out on `device`."""
    numbers = torch.tensor([spec.scene for spec in specs], dtype=torch.int64, device=device)
    dice = Dice(specs[0].seed, numbers)
    kind = draw_kinds(dice)
    setting, road = _main_setting(dice, kind, config, _duration_s(specs[0], config))
    ego_d, slots = _candidates(setting, road)
    size = draw_sizes(dice, slots)
    present = slots.present & allowed_by_the_light(slots, road, size, setting.duration_s)
    slots = replace(slots, present=present)
    present = free_of_overlaps(slots, road, size, setting.duration_s)
    present[:, 0] = False  # the ego vehicle does not see itself
    slots = replace(slots, present=present)
    variant, category = draw_variants(dice, slots)
    return Scenes(
        keys=dice.keys,
        kind=kind,
        road=road,
        ego_speed_mps=setting.viewer_mps,
        ego_d_m=ego_d,
        ego_lean=dice.bell("ego.lean", 2) * _EGO_LEAN,
        global_xy_m=dice.uniform("global.xy", 2, 300.0, 1800.0),
        global_yaw_rad=dice.uniform("global.yaw", 1, -math.pi, math.pi),
        slots=slots,
        size_wlh_m=size,
        variant=variant,
        category=category,
        bend=draw_bends(dice, slots.kind.shape[1]),
    )


def _duration_s(spec: SceneSpec, config: WorldConfig) -> float:
    revolutions = (spec.key_frames - 1) * config.key_frame_period
    return revolutions * config.lidar.period_us * 1e-6


def _main_setting(
    dice: Dice, kind: Tensor, config: WorldConfig, duration_s: float
) -> tuple[Setting, Road]:
    """The main street and what it looks like; the ego vehicle is as fast as its lane."""
    traits = draw_traits(dice, kind)
    span_m = (-_REACH_M, _REACH_M + _FASTEST_EGO_MPS * max(0.0, duration_s - 1.0))
    road = draw_roads(dice, traits, span_m)
    side_street = road.side_street
    setting = Setting(
        dice=dice,
        street=road,
        traits=traits,
        mix=MIXES[config.class_mix],
        span_m=span_m,
        duration_s=duration_s,
        viewer_mps=torch.zeros_like(side_street.junction_m),
        waits=side_street.here & side_street.main_waits,
        junction_m=side_street.junction_m,
        stop_m=side_street.walk_end_m.amax(1, keepdim=True),
    )
    ego_speed = traffic.lane_speeds_mps(setting).gather(1, _ego_rank(dice, road))
    return replace(setting, viewer_mps=ego_speed), road


def _ego_rank(dice: Dice, road: Road) -> Tensor:
    """Lane of the ego vehicle from the middle outwards, [b, 1] int64."""
    return dice.choice("ego.lane", 1, [0.5, 0.35, 0.15]) % road.lanes[:, :1]


def _side_setting(setting: Setting, road: Road) -> Setting:
    side_street = road.side_street
    return replace(
        setting,
        dice=setting.dice.branch("side street"),
        street=side_street,
        span_m=(-_SIDE_STREET_M, _SIDE_STREET_M),
        viewer_mps=torch.zeros_like(setting.viewer_mps),
        waits=side_street.here & ~side_street.main_waits,
        junction_m=torch.zeros_like(side_street.junction_m),
        stop_m=road.walk_end_m.amax(1, keepdim=True),
    )


def _candidates(setting: Setting, road: Road) -> tuple[Tensor, Slots]:
    """Offset of the ego vehicle from the centre line, and everything that may be there."""
    ego_d = -(_ego_rank(setting.dice, road) + 0.5) * LANE_M
    rear_axle = torch.full_like(ego_d, _REAR_AXLE_TO_CENTRE_M)
    ego = make_slots("car", rear_axle, ego_d, speed_mps=setting.viewer_mps)
    yard_side = setting.dice.choice("yard.side", 1, [0.5, 0.5])
    open_sides = _open_sides(setting, yard_side)
    main = [
        ego,
        *work_zones.work_zones(setting),
        *parking.yard(setting, yard_side),
        parking.lot(setting, 1 - yard_side),
        traffic.traffic(setting),
        traffic.cyclists(setting),
        parking.parked(setting),
        parking.cycle_stands(setting),
        people.pedestrians(setting),
        scenery.street_furniture(setting),
        scenery.high_walls(setting),
        scenery.buildings(setting, open_sides),
        scenery.greens(setting),
    ]
    side_setting = _side_setting(setting, road)
    side = [
        traffic.traffic(side_setting),
        traffic.cyclists(side_setting),
        parking.parked(side_setting),
        people.pedestrians(side_setting),
        scenery.street_furniture(side_setting),
        scenery.buildings(side_setting, torch.zeros_like(open_sides)),
    ]
    here = road.side_street.here
    behind = [scenery.towers(setting), scenery.backdrop(setting)]
    side = [on_side_street(slots, here) for slots in side]
    return ego_d, keep_present(join_slots([*main, *side, *behind]))


def _open_sides(setting: Setting, yard_side: Tensor) -> Tensor:
    """Sides of the street where houses stand back behind a yard or a lot, [b, 2] bool."""
    side = torch.arange(2, device=yard_side.device)
    yard = setting.traits.depot.clamp_min(setting.mix.depot) > 0.3
    return torch.where(side == yard_side, yard, setting.traits.lot > 0.3)
