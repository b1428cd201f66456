"""One LiDAR key frame with its sweeps and annotations: what every data source yields."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class Frame:
    """Points, boxes and poses of one key frame, all in the key frame's LiDAR frame.

    The LiDAR frame is nuScenes' LIDAR_TOP: x right, y forward, z up. Points stand in a fixed order:
    the key frame first, then its sweeps by age. Boxes are det3d vectors
    `x_m, y_m, z_m, w_m, l_m, h_m, vx_mps, vy_mps, yaw_det3d_rad` with z at the box centre. Boxes,
    labels and counts are on one device, which need not be that of the points.
    """

    token: str
    points: Tensor  # [p, 5] float32: x_m, y_m, z_m, intensity 0..255 (raw), dt_s >= 0
    boxes_det3d: Tensor | None  # [n, 9] float32; None where the data set has no annotations
    labels: Tensor | None  # [n] int64, index into the class names; other classes are dropped
    num_lidar_pts: Tensor | None  # [n] int64, points of the key frame alone inside each box
    ref_to_ego: Tensor  # [4, 4] float64, LiDAR frame of the key frame -> its ego frame
    ego_to_global: Tensor  # [4, 4] float64, ego frame of the key frame -> global frame
    timestamp: float  # of the key frame, seconds

    def to(self, device: torch.device | str) -> "Frame":
        """Copy of the frame with every tensor on `device`."""
        moved = {name: value.to(device) for name, value in vars(self).items() if _is_tensor(value)}
        return replace(self, **moved)


def _is_tensor(value: object) -> bool:
    return isinstance(value, Tensor)
