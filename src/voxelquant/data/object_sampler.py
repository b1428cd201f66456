"""Objects of other frames, pasted into a training frame (CenterPoint's GT-AUG)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from voxelquant.data.frame import Frame
from voxelquant.data.objects import ObjectSource
from voxelquant.errors import ConfigError, DatasetError
from voxelquant.geometry import bev_rectangles, rectangles_overlap, wrap_to_pi


class ObjectSamplerSettings(Protocol):
    """Settings as a detector config holds them (`train.object_sampler`)."""

    @property
    def sample_groups(self) -> Mapping[str, int]:
        """Number of objects of each class up to which a frame is filled."""
        ...

    @property
    def min_points(self) -> Mapping[str, int]:
        """Points that an object of a class needs; one where nothing is said."""
        ...

    @property
    def removed_difficulties(self) -> Sequence[int]:
        """Objects of these difficulties are never pasted."""
        ...

    @property
    def rotation_range_rad(self) -> tuple[float, float]:
        """Bounds of the azimuth that a pasted object is moved to; no move if they are equal."""
        ...

    @property
    def rate(self) -> float:
        """Share of the missing objects that are drawn."""
        ...


@dataclass(frozen=True)
class _Group:
    """Objects of one class that may be pasted."""

    label: int
    maximum: int
    rows: npt.NDArray[np.int64]  # into the source's index


class ObjectSampler:
    """Fills frames up with objects of a source; stands in front of the `Augmentation`.

    For each class, `round(rate * (maximum - present))` objects are drawn. One that overlaps, seen
    from above, with a box of the frame or with an object accepted before it is left out, without
    another try. The points of the accepted ones are put in front of the frame's points, and their
    boxes behind its boxes; the frame's own points stay, those inside a pasted box as well.

    det3d draws by walking through a shuffled list of each class, a walk that goes on from frame to
    frame in every worker process for itself: what a frame is given depends on all frames before it
    in its process, hence on the number of workers, and is lost when a run is resumed. Here the
    objects of a frame are a uniformly drawn subset, none twice, that follows from the frame's
    generator alone. Every object is as likely in both; only that one walk shows each object once
    before any comes again is given up, which holds for det3d's processes together neither.

    Two more differences: an object without points is never pasted; and where an object is moved to
    another azimuth, its velocity turns with it, and there is one try instead of a hundred.

    Args:
        source: Objects to choose from.
        class_names: Detection classes in the order of the frames' labels.
        settings: How many objects of which class, and which objects serve.

    Attributes:
        lacking: Classes that are asked for and of which no object serves.

    Raises:
        ConfigError: A class that the detector does not have.
        DatasetError: No object of any class serves.
    """

    def __init__(
        self, source: ObjectSource, class_names: Sequence[str], settings: ObjectSamplerSettings
    ) -> None:
        self.source = source
        self.rate = settings.rate
        self.azimuth_range_rad = settings.rotation_range_rad
        foreign = [name for name in settings.sample_groups if name not in class_names]
        if foreign:
            raise ConfigError(
                f"object_sampler.sample_groups: got class {foreign[0]}, need some of "
                f"{', '.join(class_names)}"
            )
        groups = [
            _Group(class_names.index(name), maximum, _usable_rows(source, name, settings))
            for name, maximum in settings.sample_groups.items()
            if maximum > 0
        ]
        self._groups = tuple(group for group in groups if len(group.rows))
        self.lacking = tuple(class_names[group.label] for group in groups if not len(group.rows))
        if groups and not self._groups:
            raise DatasetError(
                f"object_sampler: none of {len(source.index)} objects can be pasted (classes "
                f"{', '.join(self.lacking)}, with min_points and removed_difficulties of the "
                "config); choose a dataset whose boxes hold points, lower min_points, or set "
                "object_sampler to null"
            )

    def __call__(self, frame: Frame, generator: torch.Generator) -> Frame:
        """A new frame with objects pasted, on the same device.

        Args:
            frame: Left as it is. Where boxes are with the host, so is all that is done with them.
            generator: On any device; one seed gives one result whatever device the frame is on.

        Raises:
            DatasetError: The frame has no annotations, or points of an object cannot be read.
        """
        if frame.boxes_det3d is None or frame.labels is None:
            raise DatasetError(
                f"frame {frame.token} has no annotations, need them to paste objects between; "
                "train on an annotated split"
            )
        rows, labels = self._draw(Counter(frame.labels.tolist()), generator)
        if not rows:
            return frame
        index = self.source.index
        boxes = index.boxes_det3d[rows].to(frame.boxes_det3d)
        turns = self._turns(boxes, generator)
        if turns is not None:
            boxes = _turned(boxes, turns)
        chosen = _free_of_overlap(boxes, frame.boxes_det3d)
        clouds = [self.source.points(rows[i]).to(frame.points) for i in chosen]
        if not chosen:
            return frame
        points, owners = _join(clouds)
        if turns is not None:
            points[:, :2] = _turn(points[:, :2], turns[chosen].to(points.device)[owners])
        points[:, :3] += boxes[chosen, :3].to(points.device, non_blocking=True)[owners]
        return replace(
            _with_boxes(frame, boxes[chosen], [labels[i] for i in chosen], points, owners),
            points=torch.cat((points, frame.points)),
        )

    def _draw(
        self, present: Mapping[int, int], generator: torch.Generator
    ) -> tuple[list[int], list[int]]:
        """Rows of the objects to try, class by class, and their labels."""
        counts = [
            min(len(group.rows), max(0, round(self.rate * (group.maximum - present[group.label]))))
            for group in self._groups
        ]
        uniform = torch.rand(
            sum(counts), generator=generator, dtype=torch.float64, device=generator.device
        ).tolist()
        rows: list[int] = []
        labels: list[int] = []
        for group, count in zip(self._groups, counts, strict=True):
            fractions, uniform = uniform[:count], uniform[count:]
            rows += group.rows[distinct_numbers(len(group.rows), fractions)].tolist()
            labels += [group.label] * count
        return rows, labels

    def _turns(self, boxes: Tensor, generator: torch.Generator) -> Tensor | None:
        """Clockwise angle about the sensor by which each object is moved, [n], if any is."""
        low, high = self.azimuth_range_rad
        if low == high:
            return None
        uniform = torch.rand(
            len(boxes), generator=generator, dtype=torch.float64, device=generator.device
        )
        azimuth = torch.atan2(boxes[:, 0], boxes[:, 1])  # clockwise from +y, as det3d measures it
        return (low + (high - low) * uniform).to(boxes) - azimuth


def distinct_numbers(n: int, fractions: Sequence[float]) -> list[int]:
    """A uniformly drawn subset of 0 ... n - 1, one number for each fraction (Floyd's algorithm).

    Args:
        n: At least as many as there are fractions.
        fractions: Uniform in [0, 1).

    Example:
        >>> distinct_numbers(5, [0.9, 0.9, 0.1])
        [2, 3, 0]
        >>> distinct_numbers(3, [0.0, 0.0, 0.0])
        [0, 1, 2]
    """
    chosen: dict[int, None] = {}
    for last, fraction in enumerate(fractions, start=n - len(fractions)):
        number = int(fraction * (last + 1))
        chosen[last if number in chosen else number] = None
    return list(chosen)


def _usable_rows(
    source: ObjectSource, name: str, settings: ObjectSamplerSettings
) -> npt.NDArray[np.int64]:
    """Rows of the objects of a class that hold enough points and are not too difficult."""
    index = source.index
    if name not in index.names:
        return np.empty(0, dtype=np.int64)
    usable = (index.kinds == index.names.index(name)) & (
        index.num_points >= max(1, settings.min_points.get(name, 0))
    )
    removed = index.difficulties.new_tensor(list(settings.removed_difficulties))
    usable = usable.cpu() & ~torch.isin(index.difficulties, removed).cpu()
    return usable.nonzero()[:, 0].numpy()


def _free_of_overlap(boxes: Tensor, present: Tensor) -> list[int]:
    """Boxes that overlap neither with a present one nor with one of them that was taken before."""
    rectangles = bev_rectangles(torch.cat((boxes, present)))
    # With present ones among themselves, which nobody asks for: all in half the operations.
    overlap = rectangles_overlap(rectangles, rectangles)[: len(boxes)]
    blocked = overlap[:, len(boxes) :].any(dim=1, keepdim=True)
    mutual = overlap[:, : len(boxes)]
    taken: list[int] = []
    table: list[list[bool]] = torch.cat((mutual, blocked), dim=1).tolist()  # one synchronisation
    for number, row in enumerate(table):
        if not row[-1] and not any(row[other] for other in taken):
            taken.append(number)
    return taken


def _turned(boxes: Tensor, turns: Tensor) -> Tensor:
    """Boxes moved clockwise about the sensor, velocity and yaw' along with the centre."""
    boxes = boxes.clone()
    boxes[:, :2] = _turn(boxes[:, :2], turns)
    boxes[:, 6:8] = _turn(boxes[:, 6:8], turns)
    boxes[:, 8] = wrap_to_pi(boxes[:, 8] + turns)
    return boxes


def _turn(xy: Tensor, clockwise_rad: Tensor) -> Tensor:
    """Vectors [n, 2], each turned by its own angle."""
    (x, y), cos, sin = xy.unbind(dim=1), clockwise_rad.cos(), clockwise_rad.sin()
    return torch.stack((x * cos + y * sin, y * cos - x * sin), dim=1)


def _join(clouds: list[Tensor]) -> tuple[Tensor, Tensor]:
    """All points [p, 5], and the number of the cloud that each belongs to, [p] int64."""
    points = torch.cat(clouds)
    lengths = torch.tensor([len(cloud) for cloud in clouds]).to(points.device, non_blocking=True)
    numbers = torch.arange(len(clouds), device=points.device)
    return points, numbers.repeat_interleave(lengths, output_size=len(points))


def _with_boxes(
    frame: Frame, boxes: Tensor, labels: list[int], points: Tensor, owners: Tensor
) -> Frame:
    """The frame with boxes appended; `owners` tells which of them each point belongs to."""
    assert frame.boxes_det3d is not None
    assert frame.labels is not None
    counts = frame.num_lidar_pts
    if counts is not None:
        newest = (points[:, 4] == 0).to(counts.dtype)  # the key frame's own points
        pasted = newest.new_zeros(len(boxes)).index_add_(0, owners, newest)
        counts = torch.cat((counts, pasted.to(counts.device)))
    return replace(
        frame,
        boxes_det3d=torch.cat((frame.boxes_det3d, boxes)),
        labels=torch.cat((frame.labels, frame.labels.new_tensor(labels))),
        num_lidar_pts=counts,
    )
