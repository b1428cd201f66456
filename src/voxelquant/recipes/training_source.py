"""Where training frames come from: a dataset on disk, or the synthetic world made as it goes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

import torch

from voxelquant.data.frame import Frame
from voxelquant.data.records import FrameDataset
from voxelquant.data.synthetic import generate_frames

_FRAMES_AT_ONCE = 16


class TrainingSource(Protocol):
    """Batches of frames that are a pure function of the step: a resumed run sees the same data."""

    @property
    def frames_per_epoch(self) -> int:
        """Number of distinct frames that count as one pass."""
        ...

    def batch(self, step: int, batch_size: int) -> list[Frame]:
        """Frames of one optimisation step, not yet augmented."""
        ...


class SyntheticSource:
    """Frames of the synthetic world, generated on the training device.

    A pool of frames is drawn from at random while `turnover` of them a step are replaced, oldest
    first, so that generation costs a fixed share of a step and no frame stays for
    ever. Which frames the pool holds follows from the step alone.

    Args:
        seed: seed of the world; its scenes are disjoint from those of any other seed.
        pool_size: frames held on the device (about 6 MB each).
        turnover: frames replaced a step, on average.
        device: where frames are generated and kept.
    """

    def __init__(
        self, *, seed: int, pool_size: int, turnover: int, device: torch.device | str
    ) -> None:
        self.seed = seed
        self.pool_size = pool_size
        self.turnover = turnover
        self.device = torch.device(device)
        self._frames: dict[int, Frame] = {}  # by slot
        self._frame_ids: dict[int, int] = {}  # by slot
        self._replaced = -1

    @property
    def frames_per_epoch(self) -> int:
        """The pool counts as one pass."""
        return self.pool_size

    def batch(self, step: int, batch_size: int) -> list[Frame]:
        """`batch_size` frames drawn from the pool as it stands at this step."""
        self._fill(step)
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + step)
        chosen = torch.randint(self.pool_size, (batch_size,), generator=generator)
        return [self._frames[int(index)] for index in chosen]

    def _fill(self, step: int) -> None:
        """Bring the pool to the frames that it holds at this step."""
        # In whole launches: a frame made alone costs several times one made among many.
        replaced = step * self.turnover // _FRAMES_AT_ONCE * _FRAMES_AT_ONCE
        if replaced == self._replaced:
            return
        self._replaced = replaced
        # The pool holds frames `replaced ... replaced + P - 1`, frame f in slot f mod P.
        window = range(replaced, replaced + self.pool_size)
        missing = [f for f in window if self._frame_ids.get(f % self.pool_size) != f]
        for begin in range(0, len(missing), _FRAMES_AT_ONCE):
            ids = missing[begin : begin + _FRAMES_AT_ONCE]
            frames = generate_frames(self.seed, ids, key_frames=1, device=self.device)
            for frame_id, frame in zip(ids, frames, strict=True):
                self._frame_ids[frame_id % self.pool_size] = frame_id
                self._frames[frame_id % self.pool_size] = keep_seen_boxes(frame)


def keep_seen_boxes(frame: Frame) -> Frame:
    """Drop annotations that hold no LiDAR point, as det3d's `filter_True` info files do."""
    if frame.boxes_det3d is None or frame.labels is None or frame.num_lidar_pts is None:
        return frame
    seen = frame.num_lidar_pts > 0
    return replace(
        frame,
        boxes_det3d=frame.boxes_det3d[seen],
        labels=frame.labels[seen],
        num_lidar_pts=frame.num_lidar_pts[seen],
    )


class DatasetSource:
    """Frames of an indexable dataset, reshuffled every epoch, optionally class-balanced.

    Args:
        dataset: frames on disk.
        order: dataset indices that make up one epoch (class-balanced resampling repeats some).
        seed: seed of the shuffling.
        device: where batches are sent.
        shard: (rank, world size); ranks draw disjoint parts of each epoch.
    """

    def __init__(
        self,
        dataset: FrameDataset,
        order: Sequence[int],
        *,
        seed: int,
        device: torch.device | str,
        shard: tuple[int, int] = (0, 1),
    ) -> None:
        self.dataset = dataset
        self.order = list(order)
        self.seed = seed
        self.device = torch.device(device)
        self.shard = shard

    @property
    def frames_per_epoch(self) -> int:
        """Frames of one pass that this rank sees."""
        return len(self.order) // self.shard[1]

    def batch(self, step: int, batch_size: int) -> list[Frame]:
        """Frames `step * batch_size ...` of the endless sequence of shuffled epochs."""
        frames = []
        for position in range(step * batch_size, (step + 1) * batch_size):
            epoch, index = divmod(position, self.frames_per_epoch)
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
            shuffled = torch.randperm(len(self.order), generator=generator)
            rank, world = self.shard
            chosen = self.order[int(shuffled[index * world + rank])]
            frames.append(self.dataset[chosen].to(self.device))
        return frames
