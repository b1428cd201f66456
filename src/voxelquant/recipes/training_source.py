"""Where training frames come from: a dataset on disk, or the synthetic world made as it goes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import count, islice
from typing import Protocol

import torch

from voxelquant.data.augment import Augmentation, drop_boxes_outside
from voxelquant.data.frame import Frame
from voxelquant.data.loader import Frames, LoaderOptions, RandomTransform, training_loader
from voxelquant.data.sampling import EpochSampler, Shard
from voxelquant.data.synthetic import (
    DEFAULT_CLASS_MIX,
    ClassMix,
    WorldConfig,
    describe_world,
    generate_frames,
)
from voxelquant.detection.config import DetectorConfig

_FRAMES_AT_ONCE = (16, 64)  # least and most
_SEEDS_OF_A_RANK = 500_000_003  # torch's CPU generator takes 32 bits of a seed


class TrainingSource(Protocol):
    """Batches of frames that are a pure function of the step: a resumed run sees the same data."""

    @property
    def frames_per_epoch(self) -> int:
        """Number of distinct frames that count as one pass."""
        ...

    def batches(self, first_step: int, batch_size: int) -> Iterator[list[Frame]]:
        """Augmented frames of step `first_step` and all that follow, without end."""
        ...


@dataclass(frozen=True)
class DropBoxesOutside:
    """Drop what augmentation, or the dataset, left wholly outside the detector's range."""

    point_range: tuple[float, float, float, float, float, float]

    def __call__(self, frame: Frame, generator: torch.Generator) -> Frame:
        """The frame with the boxes that reach into the range."""
        return drop_boxes_outside(frame, self.point_range)


def training_transforms(
    config: DetectorConfig, paste_objects: RandomTransform | None = None
) -> tuple[RandomTransform, ...]:
    """What happens to every training frame of a config, in det3d's order.

    Args:
        config: detector and training settings.
        paste_objects: what `recipes/pasted_objects.py` makes of a config with an object sampler.
    """
    asked_for = config.train.object_sampler is not None
    assert paste_objects is not None or not asked_for, "a config's object sampler goes unheeded"
    augmentation = Augmentation.from_config(config.train.augmentation)
    pasting = () if paste_objects is None else (paste_objects,)
    return *pasting, augmentation, DropBoxesOutside(config.point_range)


@dataclass(frozen=True)
class PoolOptions:
    """The pool of a `SyntheticSource`, and the world that its frames are of."""

    pool_size: int = 1024
    turnover: int = 2
    class_mix: ClassMix = DEFAULT_CLASS_MIX


class SyntheticSource:
    """Frames of the synthetic world, generated on the training device.

    A pool of frames is drawn from at random while `turnover` of them a step are replaced, oldest
    first, so that generation costs a fixed share of a step and no frame stays for
    ever. Which frames the pool holds follows from the step alone.

    Points of its frames are on the device, boxes with the host.

    Args:
        seed: seed of the world; its scenes are disjoint from those of any other seed.
        pool_size: frames held on the device (about 6 MB each).
        turnover: frames replaced a step, on average.
        device: where frames are generated and kept.
        transforms: applied to every frame that is drawn, one after the other.
        shard: ranks make, draw and augment different frames; each has a pool of its own.
        world_config: the world; default: classes as frequent as in nuScenes.
    """

    def __init__(
        self,
        *,
        seed: int,
        pool_size: int,
        turnover: int,
        device: torch.device | str,
        transforms: Sequence[RandomTransform] = (),
        shard: Shard | None = None,
        world_config: WorldConfig | None = None,
    ) -> None:
        self.seed = seed
        self.world_config = world_config or WorldConfig()
        self.shard = shard or Shard()
        self.pool_size = pool_size
        self._at_once = frames_at_once(pool_size)
        self.turnover = turnover
        self.device = torch.device(device)
        self.transforms = tuple(transforms)
        self._frames: dict[int, Frame] = {}  # by slot
        self._frame_ids: dict[int, int] = {}  # by slot
        self._replaced = -1

    def __str__(self) -> str:
        return describe_world(self.seed, self.world_config)

    @property
    def frames_per_epoch(self) -> int:
        """The pool counts as one pass."""
        return self.pool_size

    def batches(self, first_step: int, batch_size: int) -> Iterator[list[Frame]]:
        """Augmented frames of step `first_step` and all that follow."""
        for step in count(first_step):
            frames = enumerate(self.draw(step, batch_size), self.shard.rank * batch_size)
            yield [self._augment(frame, step, index) for index, frame in frames]

    def _augment(self, frame: Frame, step: int, index: int) -> Frame:
        """With randomness that depends on seed, step and place in the batch of all ranks."""
        generator = torch.Generator().manual_seed((self.seed * 7_919 + step) * 4_099 + index)
        for transform in self.transforms:
            frame = transform(frame, generator)
        return frame

    def first_frames(self) -> list[Frame]:
        """The pool as it stands at the first step, in order: frames to calibrate on."""
        self._fill(0)
        return [self._frames[slot] for slot in range(self.pool_size)]

    def draw(self, step: int, batch_size: int) -> list[Frame]:
        """`batch_size` frames drawn from the pool as it stands at this step, as they are."""
        self._fill(step)
        own_seed = self.seed * 1_000_003 + step + self.shard.rank * _SEEDS_OF_A_RANK
        generator = torch.Generator().manual_seed(own_seed)
        chosen = torch.randint(self.pool_size, (batch_size,), generator=generator)
        return [self._frames[int(index)] for index in chosen]

    def _fill(self, step: int) -> None:
        """Bring the pool to the frames that it holds at this step."""
        # In whole launches: a frame made alone costs several times one made among many.
        replaced = step * self.turnover // self._at_once * self._at_once
        if replaced == self._replaced:
            return
        self._replaced = replaced
        # The pool holds frames `replaced ... replaced + P - 1`, frame f in slot f mod P.
        window = range(replaced, replaced + self.pool_size)
        missing = [f for f in window if self._frame_ids.get(f % self.pool_size) != f]
        for begin in range(0, len(missing), self._at_once):
            ids = missing[begin : begin + self._at_once]
            # Scenes are dealt out to the ranks in turn.
            scenes = [f * self.shard.world_size + self.shard.rank for f in ids]
            frames = generate_frames(
                self.seed, scenes, key_frames=1, device=self.device, config=self.world_config
            )
            for frame_id, frame in zip(ids, frames, strict=True):
                self._frame_ids[frame_id % self.pool_size] = frame_id
                if self.device.type == "cuda":
                    frame = boxes_to_host(frame)
                self._frames[frame_id % self.pool_size] = keep_seen_boxes(frame)


def frames_at_once(pool_size: int) -> int:
    """Frames of a pool that are generated together: a quarter of it, between 16 and 64.

    A GPU takes hardly longer for 64 than for 16. It is the same number on a CPU: what the pool
    holds at a step follows from it.
    """
    least, most = _FRAMES_AT_ONCE
    return min(most, max(least, pool_size // 4))


def boxes_to_host(frame: Frame) -> Frame:
    """The frame with its annotations in main memory, its points where they are.

    A host computes with some dozen boxes in less time than it takes to launch that on a GPU.
    """
    names = ("boxes_det3d", "labels", "num_lidar_pts")
    annotations = {name: getattr(frame, name) for name in names}
    return replace(frame, **{n: v.cpu() for n, v in annotations.items() if v is not None})


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
    """Frames of a dataset, shuffled anew every epoch, read and augmented by worker processes.

    Every epoch has the same number of whole batches; the remainder, others each time, is left out.
    Epoch and place in it follow from the step, hence so do frames and augmentation.

    Args:
        dataset: annotated frames.
        order: dataset indices that make up one epoch (class-balanced resampling repeats some).
        seed: seed of shuffling and augmentation.
        device: where batches are sent.
        transforms: applied to every frame, one after the other.
        num_workers: processes that read ahead; they do not change what is read.
        shard: ranks draw disjoint parts of each epoch.
    """

    def __init__(
        self,
        dataset: Frames,
        order: Sequence[int],
        *,
        seed: int,
        device: torch.device | str,
        transforms: Sequence[RandomTransform] = (),
        num_workers: int = 0,
        shard: Shard | None = None,
    ) -> None:
        self.dataset = dataset
        self.sampler = EpochSampler(order, seed=seed, shard=shard)
        self.device = torch.device(device)
        self.transforms = tuple(transforms)
        self.num_workers = num_workers

    def __str__(self) -> str:
        return str(self.dataset)

    @property
    def frames_per_epoch(self) -> int:
        """Frames of one pass that this rank sees."""
        return len(self.sampler.order) // self.sampler.shard.world_size

    def batches(self, first_step: int, batch_size: int) -> Iterator[list[Frame]]:
        """Augmented frames of step `first_step` and all that follow."""
        pinned = self.device.type == "cuda"
        options = LoaderOptions(batch_size, self.num_workers, pinned)
        loader = training_loader(
            self.dataset, self.sampler, transforms=self.transforms, options=options
        )
        steps_per_epoch = max(1, self.frames_per_epoch // batch_size)
        epoch, done = divmod(first_step, steps_per_epoch)
        while True:
            self.sampler.set_epoch(epoch, skip=done * batch_size)
            for batch in islice(loader, steps_per_epoch - done):
                yield list(batch.to(self.device).frames)
            epoch, done = epoch + 1, 0
