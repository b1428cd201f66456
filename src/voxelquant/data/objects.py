"""Annotated objects with the points they hold, cut out of frames to be pasted into others."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from voxelquant.data.frame import Frame
from voxelquant.errors import DatasetError
from voxelquant.geometry import points_in_boxes

_CELL_M = 1.0
_CELLS = 256  # along each axis, centred on the sensor; what lies beyond counts to the border
_MARGIN_M = 1e-3  # far more than rounding moves the side of a box


@dataclass(frozen=True)
class ObjectIndex:
    """What is known of n objects without reading their points."""

    names: tuple[str, ...]  # classes
    kinds: Tensor  # [n] int, index into `names`
    boxes_det3d: Tensor  # [n, 9] float32, in the LiDAR frame of the frame they were cut out of
    num_points: Tensor  # [n] int, of all sweeps
    difficulties: Tensor  # [n] int; 0 where the source knows none

    def __len__(self) -> int:
        return len(self.kinds)


class ObjectSource(Protocol):
    """Objects that can be pasted: their index at hand, their points on demand."""

    @property
    def index(self) -> ObjectIndex:
        """Class, box and number of points of every object."""
        ...

    def points(self, row: int) -> Tensor:
        """Points [p, 5] of one object, x, y, z relative to the centre of its box.

        Raises:
            DatasetError: They cannot be read.
        """
        ...


@dataclass(frozen=True)
class CutObjects:
    """The objects of one frame that hold points, box after box."""

    labels: Tensor  # [n] int64
    boxes_det3d: Tensor  # [n, 9] float32
    num_points: Tensor  # [n] int64
    points: Tensor  # [sum of num_points, 5], x, y, z relative to the centre of their box


def cut_objects(frame: Frame) -> CutObjects:
    """Every annotated object with its points; a point inside two boxes belongs to both.

    Raises:
        DatasetError: The frame has no annotations.
    """
    boxes, labels = _annotations(frame)
    cloud = frame.points[_near_boxes(frame.points, boxes)]
    owners, rows = points_in_boxes(cloud, boxes).T.nonzero(as_tuple=True)  # box after box
    counts = owners.bincount(minlength=len(boxes))
    points = cloud[rows]
    points[:, :3] -= boxes[owners, :3]
    full = counts > 0
    return CutObjects(labels[full], boxes[full], counts[full], points)


def keep_box_points(frame: Frame, generator: torch.Generator) -> Frame:
    """The frame without the points far from its boxes, most of it; draws nothing.

    For worker processes, which would otherwise send whole clouds to the one that cuts objects out.
    """
    boxes, _ = _annotations(frame)
    return replace(frame, points=frame.points[_near_boxes(frame.points, boxes)])


class ObjectsInMemory:
    """Objects cut out of frames, their points kept on the frames' device, their index by the host.

    Args:
        frames: Annotated frames, on one device; each is dropped before the next one is asked for.
        class_names: Classes that their labels index.

    Raises:
        DatasetError: No frames, or one without annotations.
    """

    def __init__(self, frames: Iterable[Frame], class_names: Sequence[str]) -> None:
        cuts = [cut_objects(frame) for frame in frames]
        if not cuts:
            raise DatasetError("got no frames to cut objects out of, need at least one")
        self.index = ObjectIndex(
            names=tuple(class_names),
            kinds=torch.cat([cut.labels for cut in cuts]).cpu(),
            boxes_det3d=torch.cat([cut.boxes_det3d for cut in cuts]).cpu(),
            num_points=torch.cat([cut.num_points for cut in cuts]).cpu(),
            difficulties=torch.zeros(sum(len(cut.labels) for cut in cuts), dtype=torch.int64),
        )
        # The objects are views of one cloud for each frame.
        self._clouds = [
            cloud for cut in cuts for cloud in cut.points.split(cut.num_points.tolist())
        ]

    def points(self, row: int) -> Tensor:
        """Points [p, 5] of one object, x, y, z relative to the centre of its box."""
        return self._clouds[row]


def _annotations(frame: Frame) -> tuple[Tensor, Tensor]:
    if frame.boxes_det3d is None or frame.labels is None:
        raise DatasetError(
            f"frame {frame.token} has no annotations to cut objects out; choose an annotated split"
        )
    return frame.boxes_det3d, frame.labels


def _near_boxes(points: Tensor, boxes: Tensor) -> Tensor:
    """Which points may lie in a box, [p] bool: those in a cell of the ground that one reaches into.

    To try every point with every box takes several times as long as what else is done for a frame.
    """
    reach = boxes[:, 3:5].square().sum(dim=1, keepdim=True).sqrt() / 2 + _MARGIN_M
    bounds = torch.cat((_cells(boxes[:, :2] - reach), _cells(boxes[:, :2] + reach)), dim=1)
    near = torch.zeros((_CELLS, _CELLS), dtype=torch.bool, device=points.device)
    for x_low, y_low, x_high, y_high in bounds.tolist():
        near[x_low : x_high + 1, y_low : y_high + 1] = True
    x, y = _cells(points[:, :2]).unbind(dim=1)
    return near[x, y]


def _cells(xy: Tensor) -> Tensor:
    return ((xy / _CELL_M).floor().to(torch.int64) + _CELLS // 2).clamp_(0, _CELLS - 1)
