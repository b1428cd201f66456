"""Random transformations of a training frame (CenterPoint's `Preprocess`, train mode)."""

import math
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from voxelquant.data.frame import Frame
from voxelquant.data.hashing import random_order
from voxelquant.geometry import bev_rectangles, box_corners_bev, wrap_to_pi

_KEYS = 1 << 62  # of orders of points


class AugmentationSettings(Protocol):
    """Settings as a detector config holds them (`train.augmentation`)."""

    @property
    def enabled(self) -> bool:
        """Whether frames are changed at all."""
        ...

    @property
    def flip(self) -> bool:
        """Whether frames may be mirrored."""
        ...

    @property
    def rotation_range_rad(self) -> tuple[float, float]:
        """Bounds of the clockwise rotation."""
        ...

    @property
    def scale_range(self) -> tuple[float, float]:
        """Bounds of the factor on every length."""
        ...

    @property
    def translation_std_m(self) -> float:
        """Standard deviation of the shift, along each axis."""
        ...

    @property
    def shuffle_points(self) -> bool:
        """Whether points are put in random order."""
        ...


@dataclass(frozen=True)
class FrameTransform:
    """One drawn transformation: mirror, rotate, scale, then shift.

    Poses of the frame stay those of the LiDAR that recorded it.
    """

    mirror_y: bool = False
    mirror_x: bool = False
    clockwise_rad: float = 0.0
    scale: float = 1.0
    shift_m: tuple[float, float, float] = (0.0, 0.0, 0.0)

    def __call__(self, frame: Frame) -> Frame:
        """A new frame with points and boxes transformed."""
        points, boxes = frame.points, frame.boxes_det3d
        points = torch.cat((self._moved(points[:, :3]), points[:, 3:]), dim=1)
        if boxes is not None:
            velocity = self._turned(boxes[:, 6:8])
            yaw = self._turned_yaw(boxes[:, 8:9])
            size = boxes[:, 3:6] * self.scale
            boxes = torch.cat((self._moved(boxes[:, :3]), size, velocity, yaw), dim=1)
        return replace(frame, points=points, boxes_det3d=boxes)

    def _moved(self, xyz: Tensor) -> Tensor:
        """Positions [n, 3] mirrored, rotated, scaled and shifted."""
        z = xyz[:, 2:3] * self.scale
        return torch.cat((self._turned(xyz[:, :2]), z), dim=1) + _vector(self.shift_m, xyz)

    def _turned(self, xy: Tensor) -> Tensor:
        """Vectors [n, 2] mirrored, rotated and scaled.

        A row of the matrix for each of x and y, since a matrix product may round to TF32. Product
        and sum are operations of their own: they round alike on every device.
        """
        cos, sin = math.cos(self.clockwise_rad), math.sin(self.clockwise_rad)
        along_x = -self.scale if self.mirror_x else self.scale
        along_y = -self.scale if self.mirror_y else self.scale
        rows = (along_x * cos, -along_x * sin, along_y * sin, along_y * cos)
        of_x, of_y = _vector(rows, xy).view(2, 2)
        return xy[:, :1] * of_x + xy[:, 1:] * of_y

    def _turned_yaw(self, yaw_det3d: Tensor) -> Tensor:
        if self.mirror_y:
            yaw_det3d = math.pi - yaw_det3d
        if self.mirror_x:
            yaw_det3d = -yaw_det3d
        return wrap_to_pi(yaw_det3d + self.clockwise_rad)


@dataclass(frozen=True)
class Augmentation:
    """Draws a `FrameTransform` for every frame and applies it.

    Pasting objects of other frames (`ObjectSampler`) comes before it, as in CenterPoint.
    """

    flip: bool = True
    rotation_range_rad: tuple[float, float] = (0.0, 0.0)
    scale_range: tuple[float, float] = (1.0, 1.0)
    translation_std_m: float = 0.0
    shuffle_points: bool = True

    @classmethod
    def from_config(cls, settings: AugmentationSettings) -> "Augmentation":
        """Augmentation of a detector config; one that changes nothing if it is disabled."""
        if not settings.enabled:
            return cls(flip=False, shuffle_points=False)
        return cls(
            flip=settings.flip,
            rotation_range_rad=settings.rotation_range_rad,
            scale_range=settings.scale_range,
            translation_std_m=settings.translation_std_m,
            shuffle_points=settings.shuffle_points,
        )

    def __call__(self, frame: Frame, generator: torch.Generator) -> Frame:
        """A new, randomly transformed frame on the same device.

        Args:
            frame: Left as it is.
            generator: On any device; one seed gives one result whatever device the frame is on.
        """
        frame = self.draw(generator)(frame)
        if not self.shuffle_points:
            return frame
        key = int(torch.randint(_KEYS, (), generator=generator, device=generator.device))
        # Made where the points are: drawing an order of so many takes a host milliseconds.
        order = random_order(len(frame.points), key, frame.points.device)
        return replace(frame, points=frame.points.index_select(0, order))

    def draw(self, generator: torch.Generator) -> FrameTransform:
        """One random transformation."""
        uniform = torch.rand(4, generator=generator, dtype=torch.float64, device=generator.device)
        normal = torch.randn(3, generator=generator, dtype=torch.float64, device=generator.device)
        mirror_y, mirror_x, turn, size = uniform.tolist()
        x, y, z = (normal * self.translation_std_m).tolist()
        return FrameTransform(
            mirror_y=self.flip and mirror_y < 0.5,
            mirror_x=self.flip and mirror_x < 0.5,
            clockwise_rad=_between(self.rotation_range_rad, turn),
            scale=_between(self.scale_range, size),
            shift_m=(x, y, z),
        )


def drop_boxes_outside(
    frame: Frame, point_range: tuple[float, float, float, float, float, float]
) -> Frame:
    """Keep the boxes that have a corner strictly inside the range, seen from above.

    Args:
        frame: Left as it is; its points are not touched.
        point_range: x, y, z minimum, then maximum, in metres; z plays no part.
    """
    if frame.boxes_det3d is None:
        return frame
    corners = box_corners_bev(bev_rectangles(frame.boxes_det3d))  # [n, 4, 2]
    low, high = corners.new_tensor(point_range[:2]), corners.new_tensor(point_range[3:5])
    kept = ((corners > low) & (corners < high)).all(dim=2).any(dim=1)
    return replace(
        frame,
        boxes_det3d=frame.boxes_det3d[kept],
        labels=None if frame.labels is None else frame.labels[kept],
        num_lidar_pts=None if frame.num_lidar_pts is None else frame.num_lidar_pts[kept],
    )


def _vector(values: tuple[float, ...], like: Tensor) -> Tensor:
    """Numbers of one frame, of the dtype and on the device of its points or boxes."""
    return torch.tensor(values, dtype=like.dtype).to(like.device, non_blocking=True)


def _between(bounds: tuple[float, float], fraction: float) -> float:
    low, high = bounds
    return low + (high - low) * fraction
