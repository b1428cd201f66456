"""The spinning LiDAR: where it is at each revolution and where its rays point."""

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from voxelquant.data.hashing import hash_counters, purpose_code
from voxelquant.data.synthetic.config import LidarConfig
from voxelquant.data.synthetic.layout import Scenes, ego_poses, ego_slopes

# The ego vehicle's roof, a plane below its own sensor that is narrower at the rear. Measured on the
# rings of the real key frame that meet it.
_ROOF_BELOW_M = 0.35
_ROOF_FRONT_M, _ROOF_REAR_M, _ROOF_HALF_WIDTH_M, _ROOF_NARROWING = 0.74, 0.85, 0.585, 0.18


@dataclass(frozen=True)
class Revolutions:
    """A batch of revolutions: which scene, when, and from where; one time stamp for each."""

    rows: Tensor  # [r] int64, row of the batch of scenes
    numbers: Tensor  # [r] int64, revolution of the scene; 0 is the first lead-in sweep
    time_s: Tensor  # [r] float64 since the scene's first key frame
    sensor_to_world: Tensor  # [r, 4, 4] float64, LiDAR frame -> the scene's own frame
    ego_to_world: Tensor  # [r, 4, 4] float64
    ray_keys: Tensor  # [r, 1] int64
    phase_rad: Tensor  # [r] float64, azimuth of the first column

    def at(self, chosen: Tensor) -> "Revolutions":
        """Some of the revolutions."""
        return Revolutions(**{name: value[chosen] for name, value in vars(self).items()})


def sensor_to_ego(lidar: LidarConfig) -> Tensor:
    """Mounting pose of the LiDAR, [4, 4] float64."""
    pose = torch.eye(4, dtype=torch.float64)
    turn = _turn_about(2, lidar.mount_yaw_rad)
    lean = _turn_about(1, lidar.mount_pitch_rad) @ _turn_about(0, lidar.mount_roll_rad)
    pose[:3, :3] = lean @ turn
    pose[:3, 3] = torch.tensor(lidar.mount_xyz_m, dtype=torch.float64)
    return pose


def _turn_about(axis: int, angle_rad: float) -> Tensor:
    """Rotation about a coordinate axis, [3, 3] float64."""
    first, second = (axis + 1) % 3, (axis + 2) % 3
    turn = torch.eye(3, dtype=torch.float64)
    turn[first, first] = turn[second, second] = math.cos(angle_rad)
    turn[second, first], turn[first, second] = math.sin(angle_rad), -math.sin(angle_rad)
    return turn


def spin(
    scenes: Scenes, rows: Tensor, numbers: Tensor, lidar: LidarConfig, lead: int
) -> Revolutions:
    """Revolutions `numbers` of scene `rows`, [r] each; number `lead` is the first key frame."""
    time_s = (numbers - lead).double() * (lidar.period_us * 1e-6)
    ego_to_world = _ego_to_world(scenes, rows, time_s)
    keys = hash_counters(scenes.keys[rows], numbers[:, None] * 0 + purpose_code("revolution"))
    ray_keys = hash_counters(keys, numbers[:, None])
    fraction = ((ray_keys[:, 0] >> 20) & 0xFFFFFF).double() * 2.0**-24
    return Revolutions(
        rows=rows,
        numbers=numbers,
        time_s=time_s,
        sensor_to_world=ego_to_world @ sensor_to_ego(lidar).to(rows.device),
        ego_to_world=ego_to_world,
        ray_keys=ray_keys,
        phase_rad=math.radians(-175.7) + (fraction - 0.5) * lidar.column_step_rad,
    )


def _ego_to_world(scenes: Scenes, rows: Tensor, time_s: Tensor) -> Tensor:
    """Pose of the ego frame standing on the sloped ground, [r, 4, 4] float64."""
    ego = ego_poses(scenes, rows, time_s)
    slope_x, slope_y = ego_slopes(scenes, rows, ego)
    cos, sin = torch.cos(ego.heading_rad), torch.sin(ego.heading_rad)
    climb = slope_x * cos + slope_y * sin
    forward = torch.cat([cos, sin, climb], dim=1)
    forward = forward / _length(forward)
    up = torch.cat([-slope_x, -slope_y, torch.ones_like(slope_x)], dim=1)
    up = up / _length(up)
    left = torch.linalg.cross(up, forward)
    pose = torch.zeros((len(rows), 4, 4), dtype=torch.float64, device=rows.device)
    pose[:, :3, 0], pose[:, :3, 1], pose[:, :3, 2] = forward, left, up
    pose[:, :3, 3] = torch.cat([ego.x, ego.y, ego.z], dim=1)
    pose[:, 3, 3] = 1.0
    return pose


def _length(vectors: Tensor) -> Tensor:
    x, y, z = vectors.unbind(1)
    return torch.sqrt(x * x + y * y + z * z)[:, None]


@dataclass(frozen=True)
class Beams:
    """Ray directions of a revolution as their factors, float32.

    direction = (cos_elevation cos_azimuth, cos_elevation sin_azimuth, sin_elevation) in the LiDAR
    frame; the azimuth belongs to the column, the elevation to the ring.
    """

    cos_azimuth: Tensor  # [r, columns]
    sin_azimuth: Tensor  # [r, columns]
    cos_elevation: Tensor  # [rings]
    sin_elevation: Tensor  # [rings]
    blanked: Tensor  # [r, columns, rings] bool: the ray meets the ego vehicle itself
    roof_m: Tensor  # [rings] range to the plane of its roof; inf: above the horizon


def aim(revolutions: Revolutions, lidar: LidarConfig) -> Beams:
    """Directions of all rays of each revolution."""
    elevation = _elevations(lidar, revolutions.rows.device)
    columns = torch.arange(lidar.columns, device=elevation.device)
    azimuth = revolutions.phase_rad[:, None] - columns * lidar.column_step_rad
    cos_azimuth, sin_azimuth = torch.cos(azimuth).float(), torch.sin(azimuth).float()
    below = elevation < 0
    roof_m = torch.where(below, -_ROOF_BELOW_M / torch.sin(elevation), torch.inf).float()
    away = torch.where(below, -_ROOF_BELOW_M / torch.tan(elevation), 1e3).float()
    ahead, beside = sin_azimuth[..., None] * away, (cos_azimuth[..., None] * away).abs()
    half_width = _ROOF_HALF_WIDTH_M + _ROOF_NARROWING * ahead.clamp_max(0)
    return Beams(
        cos_azimuth=cos_azimuth,
        sin_azimuth=sin_azimuth,
        cos_elevation=torch.cos(elevation).float(),
        sin_elevation=torch.sin(elevation).float(),
        blanked=(ahead < _ROOF_FRONT_M) & (ahead > -_ROOF_REAR_M) & (beside < half_width),
        roof_m=roof_m,
    )


@lru_cache(maxsize=8)
def _elevations(lidar: LidarConfig, device: torch.device) -> Tensor:
    return lidar.elevations_rad().to(device)
