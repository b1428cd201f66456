"""Where rays meet the ground: roadway, kerb and side walk."""

from dataclasses import dataclass

import torch
from torch import Tensor

from voxelquant.data.synthetic.layout import Scenes
from voxelquant.data.synthetic.materials import MATERIAL_INDEX
from voxelquant.data.synthetic.road import KERB_HEIGHT_M, LANE_M
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
    across_m: Tensor  # offset from the main street's centre line
    beyond_kerb_m: Tensor  # metres beyond the nearer street's kerb; < 0: on a roadway
    beyond_walk_m: Tensor  # metres beyond its side walk
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
    above = (origin[:, 2:] - road.height(origin[:, :1], origin[:, 1:2])).float()
    slope_x, slope_y = (s.float() for s in road.gradient(origin[:, :1], origin[:, 1:2]))
    quadratic = road.bend_x_per_m.float() * dx * dx + road.bend_y_per_m.float() * dy * dy
    linear = dz - slope_x * dx - slope_y * dy
    x, y = (origin[:, axis : axis + 1].float() for axis in (0, 1))
    # The roadway, and beyond the kerb a level above it; between the two stands the kerb's face.
    low_m, low_cos = _meet_level(above, linear, quadratic)
    reach = torch.where(torch.isinf(low_m), 0.0, low_m)
    low_xy = (x + reach * dx, y + reach * dy)
    across, beyond, beyond_walk = road.offsets(*low_xy)
    top_m, top_cos = _meet_level((above - KERB_HEIGHT_M).clamp_min(0.1), linear, quadratic)
    reach = torch.where(torch.isinf(top_m), 0.0, top_m)
    _, beyond_on_top, _ = road.offsets(x + reach * dx, y + reach * dy)
    on_top = beyond_on_top > 0
    overshoot = (beyond / (beyond - beyond_on_top).clamp_min(1e-3)).clamp(0, 1)
    face_m = low_m - torch.where(beyond > 0, overshoot * (low_m - top_m), 0.0)
    cos = torch.where(on_top, top_cos, low_cos)
    range_m = torch.where(on_top, top_m, face_m)
    range_m = range_m - _bumps_m(*low_xy, beyond_walk) / cos.clamp_min(_FLATTEST_COS)
    return GroundHits(
        range_m=range_m,
        cos=cos,
        across_m=across,
        beyond_kerb_m=torch.maximum(beyond, beyond_on_top),
        beyond_walk_m=beyond_walk,
        xy_m=low_xy,
    )


def _meet_level(above: Tensor, linear: Tensor, quadratic: Tensor) -> tuple[Tensor, Tensor]:
    """Range at which a ray has lost `above` metres on the ground (inf: never), and how steeply.

    Solves above + linear t = quadratic t^2, written so that no term cancels; the slope of the
    height above the ground at the solution is the root of the discriminant.
    """
    discriminant = linear * linear + 4 * quadratic * above
    root = torch.sqrt(discriminant.clamp_min(0.0))
    reachable = (discriminant > 0) & (root > linear)  # in a valley also a little upwards
    range_m = 2 * above / torch.where(reachable, root - linear, 1.0)
    return torch.where(reachable, range_m, torch.inf), root


def _bumps_m(x: Tensor, y: Tensor, beyond_m: Tensor) -> Tensor:
    """How far the ground rises above its plane: little on the street, more on the grass beyond."""
    share = (beyond_m / _LAWN_RAMP_M).clamp(0, 1)
    wave = torch.sin(1.1 * x + 0.4 * y) * torch.sin(0.9 * y - 0.3 * x)
    return wave * (_STREET_BUMPS_M + share * (_LAWN_BUMPS_M - _STREET_BUMPS_M))


def ground_material(scenes: Scenes, revolutions: Revolutions, ground: GroundHits) -> Tensor:
    """Asphalt, lane markings, the pavement of the side walk, and grass beyond it, [r, rays]."""
    kerb = scenes.road.kerb_m[revolutions.rows].float()
    edge = torch.where(ground.across_m < 0, kerb[:, :1], kerb[:, 1:])
    beside = ground.across_m.abs()
    to_line = (beside - LANE_M * torch.round(beside / LANE_M)).abs()
    marking = (to_line < 0.09) & (beside < edge)
    material = torch.where(marking, MATERIAL_INDEX["marking"], MATERIAL_INDEX["asphalt"])
    pavement, grass = MATERIAL_INDEX["pavement"], MATERIAL_INDEX["grass"]
    material = torch.where(ground.beyond_kerb_m > 0, pavement, material)
    return torch.where(ground.beyond_walk_m > 0, grass, material)
