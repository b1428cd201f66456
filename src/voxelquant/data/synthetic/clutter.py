"""What nuScenes' files hold for rays that meet no surface of the scene: every ray reports.

Rays that meet the ego vehicle report its roof. Rays without an answer report range 0 and an
intensity that belongs to their ring; compensation for ego motion then moves them back from the
sensor by what the vehicle drives during the rest of the revolution. Of the 34,688 returns of the
real key frame, 8,464 lie within 1.5 m for these two reasons.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from voxelquant.data.hashing import hash_counters, purpose_code, quarter_uniforms
from voxelquant.data.synthetic.config import LidarConfig
from voxelquant.data.synthetic.ground import Vector
from voxelquant.data.synthetic.layout import Scenes
from voxelquant.data.synthetic.sensor import Beams, Revolutions

_ROOF_INTENSITY, _ROOF_SPREAD = 24.0, 1.6  # at the median; the spread is an exponent of two
_SILENT_INTENSITIES = 12  # rings report 1 to 12 where there is no answer


@dataclass(frozen=True)
class Clutter:
    """What rays report that get no answer from the scene, [r, rays] float32."""

    xyz: Vector
    intensity: Tensor


def report_clutter(
    scenes: Scenes,
    revolutions: Revolutions,
    beams: Beams,
    direction: Vector,
    chance: Tensor,
    lidar: LidarConfig,
) -> Clutter:
    """The roof where a beam meets it, the sensor's own place elsewhere; `chance` is uniform."""
    on_roof = beams.blanked.flatten(1)
    reach = torch.where(on_roof, beams.roof_m.repeat(lidar.columns), 0.0)
    column = torch.arange(lidar.columns, device=reach.device)
    left_s = (1 - column / lidar.columns) * (lidar.period_us * 1e-6)  # until the time stamp
    driven = scenes.ego_speed_mps[revolutions.rows].float() * left_s  # [r, columns]
    driven = driven.repeat_interleave(lidar.rings, dim=1)
    ahead = (math.cos(lidar.mount_yaw_rad), -math.sin(lidar.mount_yaw_rad))
    keys = scenes.keys[revolutions.rows] ^ purpose_code("silent rings")
    ring = torch.arange(lidar.rings, device=reach.device)
    silent = 1 + torch.floor(quarter_uniforms(hash_counters(keys, ring))[0] * _SILENT_INTENSITIES)
    roof = _ROOF_INTENSITY * torch.exp2((chance * 2 - 1) * _ROOF_SPREAD)
    return Clutter(
        xyz=(
            direction[0] * reach - ahead[0] * driven,
            direction[1] * reach - ahead[1] * driven,
            direction[2] * reach,
        ),
        intensity=torch.where(on_roof, torch.round(roof), silent.repeat(1, lidar.columns)),
    )
