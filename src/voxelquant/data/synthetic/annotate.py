"""Ground truth of key frames: boxes, labels, velocities, points within boxes and visibility."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from voxelquant.data.synthetic.config import WorldConfig
from voxelquant.data.synthetic.counting import look_into_boxes
from voxelquant.data.synthetic.layout import Scenes
from voxelquant.data.synthetic.returns import Returns
from voxelquant.data.synthetic.sensor import Revolutions
from voxelquant.data.synthetic.solids import box_solids, poses_under_the_beam
from voxelquant.geometry.yaw import theta_to_yaw_det3d


@dataclass(frozen=True)
class Annotations:
    """Boxes of a batch of revolutions in the scene's own frame, [f, n] float64 unless stated."""

    annotated: Tensor  # bool: exists, belongs to a class, and stands within range
    centre_xyz_m: Tensor  # [f, n, 3]
    heading_rad: Tensor
    velocity_mps: Tensor  # [f, n, 3]
    points: Tensor  # int64, points of the revolution within the box, whoever they come from
    in_view: Tensor  # float32, share of the box that nothing stands before

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
    """Ground truth of each revolution: boxes are where the beam met their objects."""
    rows = revolutions.rows
    poses = poses_under_the_beam(scenes, revolutions, config.lidar)
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
    annotated = scenes.present[rows] & (scenes.category[rows] >= 0) & near
    boxes = box_solids(scenes, revolutions, poses, annotated)
    points, in_view = look_into_boxes(scenes, revolutions, returns, boxes, config.lidar)
    return Annotations(
        annotated=annotated,
        centre_xyz_m=centre,
        heading_rad=poses.heading_rad,
        velocity_mps=torch.stack([velocity_x, velocity_y, climb], dim=-1),
        points=points,
        in_view=in_view,
    )


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
