"""How many points lie in each box, and how much of each box is in view."""

import torch
from torch import Tensor

from voxelquant.data.synthetic.casting import angular_windows, expand_windows, rays_in_unit_frames
from voxelquant.data.synthetic.config import LidarConfig
from voxelquant.data.synthetic.intersect import enter_boxes
from voxelquant.data.synthetic.layout import Scenes
from voxelquant.data.synthetic.returns import Returns
from voxelquant.data.synthetic.sensor import Revolutions, aim
from voxelquant.data.synthetic.solids import Solids

_BEHIND_M = 0.05  # a surface this little before a box belongs to it


def look_into_boxes(
    scenes: Scenes,
    revolutions: Revolutions,
    returns: Returns,
    boxes: Solids,
    lidar: LidarConfig,
) -> tuple[Tensor, Tensor]:
    """Points within boxes of objects, and the share of each box that is in view.

    All points of a revolution count that lie in a box, as in nuScenes, whoever they come from. In
    view are the rays through a box whose first surface does not stand before it.

    Returns:
        Points [r, n] int64, and shares [r, n] float32; 0 for objects without a box.
    """
    windows = angular_windows(boxes, revolutions.phase_rad, lidar)
    everyone = torch.arange(len(boxes.thing), device=boxes.thing.device)
    pairs = expand_windows(windows, boxes, everyone, lidar)
    origin, direction = rays_in_unit_frames(pairs, boxes, aim(revolutions, lidar))
    upright = torch.zeros_like(origin[0])
    enter, leave = enter_boxes(origin, direction, (upright, upright))
    ray = pairs.column * lidar.rings + pairs.ring
    measured = returns.measured_m.view(-1)[ray]
    surface = returns.surface_m.view(-1)[ray]
    crossed = (enter < leave) & (leave > 0)
    inside = crossed & (measured >= enter) & (measured <= leave)
    seen = crossed & (surface >= enter - _BEHIND_M)
    objects = scenes.size_wlh_m.shape[1]
    cell = (boxes.revolution * objects + boxes.thing)[pairs.solid]

    def count(which: Tensor) -> Tensor:
        shape = (len(revolutions.rows), objects)
        counts = torch.zeros(shape, dtype=torch.int64, device=cell.device)
        counts.view(-1).scatter_add_(0, cell, which.long())
        return counts

    return count(inside), count(seen) / count(crossed).clamp_min(1)
