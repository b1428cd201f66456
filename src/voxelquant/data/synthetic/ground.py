"""Where rays meet the ground: roadway, kerb and side walk."""

from dataclasses import dataclass

import torch
from torch import Tensor

from voxelquant.data.synthetic.layout import Scenes
from voxelquant.data.synthetic.materials import MATERIAL_INDEX
from voxelquant.data.synthetic.road import KERB_HEIGHT_M, LANE_M, PARKING_M, Road
from voxelquant.data.synthetic.sensor import Revolutions

_STREET_BUMPS_M, _LAWN_BUMPS_M = 0.015, 0.08
_LAWN_RAMP_M = 3.0  # over which the bumps of the grass grow to their height
_FLATTEST_COS = 0.08  # a bump hides what lies behind it rather than move it further

Vector = tuple[Tensor, Tensor, Tensor]


@dataclass(frozen=True)
class GroundHits:
    """Where each ray meets the ground, [r, rays] float32 unless stated."""

    range_m: Tensor  # inf: none
    cos: Tensor  # of incidence
    across_m: Tensor  # offset from the street's centre line
    xy_m: tuple[Tensor, Tensor]  # in the scene's own frame


def meet_ground(scenes: Scenes, revolutions: Revolutions, direction: Vector) -> GroundHits:
    """Nearest ground along unit `direction`s of the LiDAR frame, three [r, rays]."""
    pose = revolutions.sensor_to_world.float()[:, :3, :, None]  # [r, 3, 4, 1]
    x, y, z = direction
    dx, dy, dz = (
        pose[:, axis, 0] * x + pose[:, axis, 1] * y + pose[:, axis, 2] * z for axis in range(3)
    )
    origin = revolutions.sensor_to_world[:, :3, 3]
    road = scenes.road.at(revolutions.rows)
    above = origin[:, 2:] - road.height(origin[:, :1], origin[:, 1:2])
    slope_x, slope_y = (slope.float() for slope in road.gradient(origin[:, :1]))
    bend = road.bend_per_m.float()
    # above + dz t = slope t + bend dx^2 t^2, written so that no term cancels
    quadratic = bend * dx * dx
    linear = dz - slope_x * dx - slope_y * dy
    discriminant = linear * linear + 4 * quadratic * above.float()
    reachable = (discriminant > 0) & (linear < 0)
    root = torch.sqrt(torch.where(reachable, discriminant, 0.0))
    range_m = 2 * above.float() / torch.where(reachable, root - linear, 1.0)
    range_m = torch.where(reachable, range_m, torch.inf)
    step = (above.float() - KERB_HEIGHT_M).clamp_min(0.1) / above.float()
    reach = torch.where(reachable, range_m, 0.0)
    lane_x, lane_y, lane_d = _road_offset(origin, road, (dx, dy), reach)
    _, _, walk_d = _road_offset(origin, road, (dx, dy), reach * step)
    start = torch.where(lane_d < 0, road.walk_start_m[:, :1], road.walk_start_m[:, 1:]).float()
    # Beyond the kerb the ground is higher; a ray between the two levels meets the kerb's face.
    beyond, on_top = lane_d.abs() > start, walk_d.abs() > start
    overshoot = (lane_d.abs() - start) / (lane_d.abs() - walk_d.abs()).clamp_min(1e-3)
    face = range_m * (1 - overshoot.clamp(0, 1) * (1 - step))
    range_m = torch.where(beyond, torch.where(on_top, range_m * step, face), range_m)
    end = torch.where(lane_d < 0, road.walk_end_m[:, :1], road.walk_end_m[:, 1:]).float()
    bumps = _bumps_m(lane_x, lane_y, lane_d.abs() - end)
    range_m = range_m - bumps / linear.abs().clamp_min(_FLATTEST_COS)
    return GroundHits(range_m, linear.abs(), lane_d, (lane_x, lane_y))


def _bumps_m(x: Tensor, y: Tensor, beyond_m: Tensor) -> Tensor:
    """How far the ground rises above its plane: little on the street, more on the grass beyond."""
    share = (beyond_m / _LAWN_RAMP_M).clamp(0, 1)
    wave = torch.sin(1.1 * x + 0.4 * y) * torch.sin(0.9 * y - 0.3 * x)
    return wave * (_STREET_BUMPS_M + share * (_LAWN_BUMPS_M - _STREET_BUMPS_M))


def _road_offset(origin: Tensor, road: Road, slope: tuple[Tensor, Tensor], reach: Tensor) -> Vector:
    """Places along rays and their offset from the centre line, taken as a parabola, [r, rays]."""
    x = origin[:, :1].float() + reach * slope[0]
    y = origin[:, 1:2].float() + reach * slope[1]
    return x, y, y - road.curvature_per_m.float() / 2 * x * x


def ground_material(scenes: Scenes, revolutions: Revolutions, across_m: Tensor) -> Tensor:
    """Asphalt, lane markings, the pavement of the side walk, and grass beyond it, [r, rays]."""
    road = scenes.road.at(revolutions.rows)
    right = across_m < 0
    edge, lawn = (
        torch.where(right, side[:, :1], side[:, 1:])
        for side in (road.kerb_m.float(), road.walk_end_m.float())
    )
    beside = across_m.abs()
    to_line = (beside - LANE_M * torch.round(beside / LANE_M)).abs()
    marking = (to_line < 0.09) & (beside < edge)
    material = torch.where(marking, MATERIAL_INDEX["marking"], MATERIAL_INDEX["asphalt"])
    material = torch.where(beside > edge + PARKING_M, MATERIAL_INDEX["pavement"], material)
    return torch.where(beside > lawn, MATERIAL_INDEX["grass"], material)
