"""Ground truth of key frames: boxes, labels, velocities and the returns that each object got."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from voxelquant.data.synthetic.config import WorldConfig
from voxelquant.data.synthetic.layout import Scenes, object_poses
from voxelquant.data.synthetic.returns import Returns
from voxelquant.data.synthetic.sensor import Revolutions
from voxelquant.geometry.yaw import theta_to_yaw_det3d


@dataclass(frozen=True)
class Annotations:
    """Boxes of a batch of revolutions in the scene's own frame, [f, n] float64 unless stated."""

    annotated: Tensor  # bool: exists, belongs to a class, and stands within range
    centre_xyz_m: Tensor  # [f, n, 3]
    heading_rad: Tensor
    velocity_mps: Tensor  # [f, n, 3]
    hits: Tensor  # int64, returns of the revolution from the object
    expected_hits: Tensor  # rays that fit into the object's silhouette, occluded or not

    def at(self, frames: list[int]) -> "Annotations":
        """The annotations of some of the frames."""
        return Annotations(**{name: value[frames] for name, value in vars(self).items()})


def join_annotations(truths: Sequence[Annotations]) -> Annotations:
    """Annotations of consecutive frames as one."""
    names = Annotations.__dataclass_fields__
    return Annotations(**{n: torch.cat([getattr(truth, n) for truth in truths]) for n in names})


def annotate(
    scenes: Scenes, revolutions: Revolutions, returns: Returns, config: WorldConfig
) -> Annotations:
    """Ground truth at the time of each revolution."""
    rows, time_s = revolutions.rows, revolutions.time_s
    poses = object_poses(scenes, rows, time_s)
    centre_z = poses.z + scenes.size_wlh_m[rows][..., 2] / 2
    centre = torch.stack([poses.x, poses.y, centre_z], dim=-1)
    road = scenes.road.at(rows)
    # Speeds are measured along the centre line; on the inside of a curve the way is shorter.
    slots = scenes.slots.at(rows)
    curvature = torch.where(slots.across, 0.0, road.curvature_per_m)
    speed = slots.speed_mps * (1 - curvature * slots.d_m)
    road_heading = poses.heading_rad - slots.turn_rad
    velocity_x, velocity_y = speed * torch.cos(road_heading), speed * torch.sin(road_heading)
    slope_x, slope_y = road.gradient(poses.x, poses.y)
    climb = velocity_x * slope_x + velocity_y * slope_y
    sensor = revolutions.sensor_to_world
    dx, dy = poses.x - sensor[:, 0, 3, None], poses.y - sensor[:, 1, 3, None]
    near = dx * dx + dy * dy < config.annotation_range_m**2
    bearing = torch.atan2(dy, dx) - poses.heading_rad
    width, length, height = scenes.size_wlh_m[rows].unbind(-1)
    silhouette = (length * bearing.sin().abs() + width * bearing.cos().abs()) * height
    ray_area = (dx * dx + dy * dy) * config.lidar.column_step_rad * config.lidar.ring_step_rad
    return Annotations(
        annotated=scenes.present[rows] & (scenes.category[rows] >= 0) & near,
        centre_xyz_m=centre,
        heading_rad=poses.heading_rad,
        velocity_mps=torch.stack([velocity_x, velocity_y, climb], dim=-1),
        hits=_count_hits(returns, height.shape[1]),
        expected_hits=silhouette / ray_area.clamp_min(1e-6),
    )


def _count_hits(returns: Returns, count: int) -> Tensor:
    thing = torch.where(returns.valid & (returns.thing >= 0), returns.thing, count)
    hits = torch.zeros((len(thing), count + 1), dtype=torch.int64, device=thing.device)
    return hits.scatter_add_(1, thing, torch.ones_like(thing))[:, :count]


def boxes_in_lidar_frame(
    scenes: Scenes, revolutions: Revolutions, annotations: Annotations
) -> Tensor:
    """det3d vectors x, y, z, w, l, h, vx, vy, yaw_det3d of all objects, [f, n, 9] float64."""
    to_lidar = torch.linalg.inv(revolutions.sensor_to_world)  # [f, 4, 4]
    turn = to_lidar[:, None, :3, :3]  # [f, 1, 3, 3]
    centre = _apply(turn, annotations.centre_xyz_m) + to_lidar[:, None, :3, 3]
    velocity = _apply(turn, annotations.velocity_mps)
    heading = annotations.heading_rad
    forward = torch.stack(
        [torch.cos(heading), torch.sin(heading), torch.zeros_like(heading)], dim=-1
    )
    forward = _apply(turn, forward)
    theta = torch.atan2(forward[..., 1], forward[..., 0])
    size = scenes.size_wlh_m[revolutions.rows]
    return torch.cat(
        [centre, size, velocity[..., :2], theta_to_yaw_det3d(theta)[..., None]], dim=-1
    )


def _apply(turn: Tensor, vectors: Tensor) -> Tensor:
    return (turn * vectors[..., None, :]).sum(-1)
