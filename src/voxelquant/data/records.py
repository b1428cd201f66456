"""What a key frame is made of before its points are read, whichever file says so.

nuScenes tables and det3d info files both become a `FrameRecord`; reading points, merging sweeps
and choosing classes happen once, here.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from voxelquant.data.frame import Frame
from voxelquant.data.points import read_point_file, remove_close
from voxelquant.errors import DatasetError
from voxelquant.geometry import transform_points, wrap_to_pi


@dataclass(frozen=True)
class SweepRecord:
    """An earlier revolution of the LiDAR, merged into the key frame."""

    path: Path
    to_reference: Tensor | None  # [4, 4] float64 into the key frame's LiDAR frame; None: is there
    time_lag_s: float  # age relative to the key frame, >= 0


@dataclass(frozen=True)
class Annotations:
    """Annotated boxes of a key frame, with names instead of labels."""

    boxes_det3d: Tensor  # [n, 9] float64; velocities are NaN where unknown, yaw' not wrapped
    names: tuple[str, ...]  # n detection class names, or anything else for "none of them"
    num_lidar_pts: Tensor | None  # [n] int64; None where the source does not tell


@dataclass(frozen=True)
class FrameRecord:
    """A key frame by reference: files, poses and annotations."""

    token: str
    path: Path
    sweeps: tuple[SweepRecord, ...]
    ref_to_ego: Tensor  # [4, 4] float64
    ego_to_global: Tensor  # [4, 4] float64
    timestamp: float  # seconds
    annotations: Annotations | None


class FrameDataset(ABC):
    """Key frames by index: annotations without points, or whole frames.

    Attributes:
        class_names: Detection classes in the order of their labels.
        root: Dataset folder, with `samples` and `sweeps`.
        version: Version folder of the tables that the metric reads; empty if they are not known.
        split: What the key frames are called together.
        nsweeps: Revolutions merged into a frame, the key frame included.

    Raises:
        DatasetError: A class name occurs twice.
    """

    root: Path
    version: str
    split: str
    nsweeps: int

    def __init__(self, class_names: Sequence[str]) -> None:
        self.class_names = tuple(class_names)
        if len(set(self.class_names)) != len(self.class_names):
            raise DatasetError(f"got class names {list(class_names)}, need each only once")

    @property
    @abstractmethod
    def sample_tokens(self) -> tuple[str, ...]:
        """Token of every key frame, in order."""

    @property
    @abstractmethod
    def annotation_path(self) -> Path:
        """File that boxes and names come from."""

    @property
    @abstractmethod
    def nusc(self) -> Any:
        """Tables that the key frames are scored against, a `nuscenes.NuScenes`.

        Raises:
            DatasetError: There are none, they are damaged, or their split has other key frames.
            MissingDependencyError: nuscenes-devkit is not installed.
        """

    @abstractmethod
    def record(self, index: int) -> FrameRecord:
        """Files, poses and annotations of a key frame; reads no points."""

    @abstractmethod
    def names(self, index: int) -> tuple[str, ...]:
        """Name of every annotated box of a key frame, empty if it has none; computes no boxes."""

    @property
    def identity(self) -> str:
        """Which key frames these are; of two folders, never the same."""
        return f"{self} in {self.root.resolve()}"

    def classes_in(self, index: int) -> frozenset[int]:
        """Labels that occur among the boxes of a key frame; reads no points."""
        present = set(self.names(index))
        return frozenset(i for i, name in enumerate(self.class_names) if name in present)

    def __len__(self) -> int:
        return len(self.sample_tokens)

    def __getitem__(self, index: int) -> Frame:
        return load_frame(self.record(index), self.class_names)


def load_frame(record: FrameRecord, class_names: Sequence[str]) -> Frame:
    """Read the points of a key frame and of its sweeps, and keep the boxes of the given classes.

    Raises:
        DatasetError: A point file is missing or truncated, or a box is not finite.
    """
    boxes, labels, num_lidar_pts = None, None, None
    if record.annotations is not None:
        boxes, labels, num_lidar_pts = select_classes(record.annotations, class_names)
        if not boxes.isfinite().all():
            raise DatasetError(
                f"sample {record.token}: an annotated box is not finite; mend its annotations"
            )
    return Frame(
        token=record.token,
        points=merge_sweeps(record),
        boxes_det3d=boxes,
        labels=labels,
        num_lidar_pts=num_lidar_pts,
        ref_to_ego=record.ref_to_ego,
        ego_to_global=record.ego_to_global,
        timestamp=record.timestamp,
    )


def merge_sweeps(record: FrameRecord) -> Tensor:
    """Points of the key frame, then of its sweeps by age, all in the key frame's LiDAR frame.

    Only sweeps lose the reflections of the vehicle itself, in their own sensor frame. det3d draws
    the order of the sweeps anew on every load, which makes the detector's output random wherever
    a voxel overflows; here it is fixed.

    Returns:
        [p, 5] float32 x_m, y_m, z_m, intensity, dt_s.
    """
    clouds = [_with_time(read_point_file(record.path), 0.0)]
    for sweep in sorted(record.sweeps, key=lambda sweep: sweep.time_lag_s):
        points = remove_close(read_point_file(sweep.path))
        if sweep.to_reference is not None:
            points = transform_points(points, sweep.to_reference)
        clouds.append(_with_time(points, sweep.time_lag_s))
    return torch.cat(clouds)


def select_classes(
    annotations: Annotations, class_names: Sequence[str]
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Boxes [n, 9] float32, labels [n] and LiDAR point counts of the given classes alone.

    An unknown velocity becomes zero, as det3d trains it; yaw' is wrapped to [−π, π).
    """
    label_of = {name: label for label, name in enumerate(class_names)}
    kept = [row for row, name in enumerate(annotations.names) if name in label_of]
    boxes = annotations.boxes_det3d[kept].to(torch.float32)
    velocities = boxes[:, 6:8]
    velocities[~velocities.isfinite()] = 0.0
    boxes[:, 8] = wrap_to_pi(boxes[:, 8])
    labels = torch.tensor([label_of[annotations.names[row]] for row in kept], dtype=torch.int64)
    counts = annotations.num_lidar_pts
    return boxes, labels, None if counts is None else counts[kept]


def _with_time(points: Tensor, time_lag_s: float) -> Tensor:
    return torch.cat((points, points.new_full((len(points), 1), time_lag_s)), dim=1)
