"""Boxes as corners and as containers of points.

A det3d box is `x, y, z, w, l, h, vx, vy, yaw'` (9 columns), or 7 columns without velocity: metres,
z at the box's centre, yaw' as in `voxelquant.geometry.yaw`. A BEV rectangle is `x, y, l, w, θ`:
the box seen from above, with the length first because θ is the direction of the length axis.
"""

import torch
from torch import Tensor

from voxelquant.errors import GeometryError
from voxelquant.geometry.yaw import yaw_det3d_to_theta

# Corners of a unit rectangle, counter-clockwise: front left, rear left, rear right, front right.
_CORNER_SIGNS = ((0.5, 0.5), (-0.5, 0.5), (-0.5, -0.5), (0.5, -0.5))
_MAX_POINT_BOX_PAIRS = 1 << 22  # bounds the working memory of points_in_boxes to about 100 MB


def bev_rectangles(boxes_det3d: Tensor) -> Tensor:
    """The ground rectangles `x, y, l, w, θ` of det3d boxes.

    Args:
        boxes_det3d: [n, 9] or [n, 7].

    Returns:
        [n, 5], θ in [−π, π).

    Raises:
        GeometryError: Another number of columns.

    Example:
        >>> car = torch.tensor([[10.0, 5.0, 0.0, 1.9, 4.6, 1.7, 0.0, 0.0, -torch.pi / 2]])
        >>> bev_rectangles(car)
        tensor([[10.0000,  5.0000,  4.6000,  1.9000,  0.0000]])
    """
    _require_det3d_boxes(boxes_det3d)
    theta = yaw_det3d_to_theta(boxes_det3d[:, -1:])
    return torch.cat((boxes_det3d[:, :2], boxes_det3d[:, 4:5], boxes_det3d[:, 3:4], theta), dim=1)


def box_corners_bev(rectangles: Tensor) -> Tensor:
    """Corners of BEV rectangles, counter-clockwise from the front left.

    Args:
        rectangles: [n, 5] `x, y, l, w, θ`.

    Returns:
        [n, 4, 2] x and y.

    Raises:
        GeometryError: Not five columns.
    """
    require_rectangles(rectangles)
    signs = rectangles.new_tensor(_CORNER_SIGNS)
    along, across = (rectangles[:, None, 2:4] * signs).unbind(dim=-1)  # [n, 4] each
    cos, sin = rectangles[:, 4:5].cos(), rectangles[:, 4:5].sin()
    x = rectangles[:, 0:1] + along * cos - across * sin
    y = rectangles[:, 1:2] + along * sin + across * cos
    return torch.stack((x, y), dim=-1)


def box_corners_3d(boxes_det3d: Tensor) -> Tensor:
    """Corners of boxes: the four of the bottom face, then the four of the top face.

    Args:
        boxes_det3d: [n, 9] or [n, 7].

    Returns:
        [n, 8, 3] x, y, z; each face counter-clockwise from the front left.

    Raises:
        GeometryError: Another number of columns.
    """
    xy = box_corners_bev(bev_rectangles(boxes_det3d)).repeat(1, 2, 1)  # [n, 8, 2]
    half_height = boxes_det3d[:, 5:6] / 2
    bottom, top = boxes_det3d[:, 2:3] - half_height, boxes_det3d[:, 2:3] + half_height
    z = torch.cat((bottom.expand(-1, 4), top.expand(-1, 4)), dim=1)
    return torch.cat((xy, z[:, :, None]), dim=2)


def points_in_boxes(points: Tensor, boxes_det3d: Tensor) -> Tensor:
    """Which points lie in which box; faces belong to the box.

    Args:
        points: [p, 3 or more], x, y, z first.
        boxes_det3d: [n, 9] or [n, 7], same dtype and device.

    Returns:
        [p, n] bool.

    Raises:
        GeometryError: Points without three coordinates, or boxes with other columns.
    """
    if points.ndim != 2 or points.shape[1] < 3:
        raise GeometryError(f"points: got shape {tuple(points.shape)}, need [p, 3 or more]")
    rectangles = bev_rectangles(boxes_det3d)
    cos, sin = rectangles[:, 4].cos(), rectangles[:, 4].sin()
    half_size = boxes_det3d[:, [4, 3, 5]] / 2  # l, w, h
    rows_at_once = max(1, _MAX_POINT_BOX_PAIRS // max(1, len(boxes_det3d)))
    inside = [points.new_empty((0, len(boxes_det3d)), dtype=torch.bool)]
    for chunk in points.split(rows_at_once):
        dx, dy, dz = (chunk[:, axis : axis + 1] - boxes_det3d[:, axis] for axis in range(3))
        along, across = dx * cos + dy * sin, dy * cos - dx * sin  # [rows, n]
        inside.append(
            (along.abs() <= half_size[:, 0])
            & (across.abs() <= half_size[:, 1])
            & (dz.abs() <= half_size[:, 2])
        )
    return torch.cat(inside)


def require_rectangles(rectangles: Tensor) -> None:
    """Refuse anything but floating-point BEV rectangles [n, 5].

    Raises:
        GeometryError: Another shape, or a dtype other than float32 and float64.
    """
    if rectangles.ndim != 2 or rectangles.shape[1] != 5:
        raise GeometryError(
            f"BEV rectangles: got shape {tuple(rectangles.shape)}, need [n, 5] as x, y, l, w, θ; "
            "make them from det3d boxes with bev_rectangles"
        )
    if rectangles.dtype not in (torch.float32, torch.float64):
        raise GeometryError(
            f"BEV rectangles: got {rectangles.dtype}, need float32 or float64 (half precision "
            "resolves 3 cm at 50 m); convert with .float()"
        )


def _require_det3d_boxes(boxes: Tensor) -> None:
    if boxes.ndim != 2 or boxes.shape[1] not in (7, 9):
        raise GeometryError(
            f"boxes: got shape {tuple(boxes.shape)}, need [n, 9] as x, y, z, w, l, h, vx, vy, yaw' "
            "or [n, 7] without velocity"
        )
