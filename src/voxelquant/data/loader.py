"""Batches of frames, read and augmented by worker processes.

What a run sees does not depend on the number of workers: order and augmentation follow from the
seeds in the draws.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch.utils.data import DataLoader, Dataset

from voxelquant.data.collate import FrameBatch, collate_frames
from voxelquant.data.frame import Frame
from voxelquant.data.sampling import (
    Draw,
    EpochSampler,
    Shard,
    seeded_generator,
    strided_indices,
)
from voxelquant.errors import BadInputError

# An augmentation, or what pastes objects in front of it.
RandomTransform = Callable[[Frame, torch.Generator], Frame]


class Frames(Protocol):
    """Anything that yields frames by index."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Frame: ...


class NamedFrames(Frames, Protocol):
    """Frames that say where they are from, in words and to the letter."""

    @property
    def split(self) -> str:
        """What they are called together."""

    @property
    def identity(self) -> str:
        """Equal only for the same frames."""


@dataclass(frozen=True)
class LoaderOptions:
    """How frames are fetched; none of it changes what is fetched."""

    batch_size: int = 1
    num_workers: int = 0  # processes beside this one
    pin_memory: bool = False


class FrameLoader(Iterable[FrameBatch]):
    """One pass over some frames, batch by batch; the last batch may be smaller.

    Raises:
        BadInputError: While iterating, what dataset or transforms raise about a damaged file.
    """

    def __init__(
        self,
        dataset: Frames,
        draws: Sequence[Draw] | EpochSampler,
        transforms: Sequence[RandomTransform],
        options: LoaderOptions,
    ) -> None:
        self._loader: DataLoader[Any] = DataLoader(
            _DrawnFrames(dataset, tuple(transforms)),
            batch_size=options.batch_size,
            sampler=draws,
            num_workers=options.num_workers,
            collate_fn=_collate,
            pin_memory=options.pin_memory,
            persistent_workers=options.num_workers > 0,
        )

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[FrameBatch]:
        for batch in self._loader:
            if isinstance(batch, BadInputError):
                raise batch
            yield batch


def training_loader(
    dataset: Frames,
    sampler: EpochSampler,
    *,
    transforms: Sequence[RandomTransform] = (),
    options: LoaderOptions | None = None,
) -> FrameLoader:
    """Augmented frames in the sampler's order; call `sampler.set_epoch` before every pass.

    Args:
        dataset: Annotated frames.
        sampler: Which frames, in which order, with which augmentation seeds.
        transforms: Applied one after the other, from one generator a frame.
        options: Batch size and workers.
    """
    return FrameLoader(dataset, sampler, transforms, options or LoaderOptions())


def evaluation_loader(
    dataset: Frames, *, shard: Shard | None = None, options: LoaderOptions | None = None
) -> FrameLoader:
    """Every frame of the shard once, unchanged and in order."""
    return frame_loader(dataset, strided_indices(len(dataset), shard or Shard()), options)


def frame_loader(
    dataset: Frames, indices: Sequence[int], options: LoaderOptions | None = None
) -> FrameLoader:
    """Some frames, unchanged and in the order given."""
    draws = [Draw(index, seed=0) for index in indices]
    return FrameLoader(dataset, draws, (), options or LoaderOptions())


class _DrawnFrames(Dataset[Frame | BadInputError]):
    """Frames by draw. Bad input is handed over, not raised: a worker would bury it in traceback."""

    def __init__(self, dataset: Frames, transforms: tuple[RandomTransform, ...]) -> None:
        self.dataset = dataset
        self.transforms = transforms

    def __getitem__(self, draw: Draw) -> Frame | BadInputError:
        generator = seeded_generator(draw.seed)
        try:
            frame = self.dataset[draw.index]
            for transform in self.transforms:
                frame = transform(frame, generator)
        except BadInputError as error:
            return error
        return frame


def _collate(items: Sequence[Frame | BadInputError]) -> FrameBatch | BadInputError:
    frames = []
    for item in items:
        if isinstance(item, BadInputError):
            return item
        frames.append(item)
    return collate_frames(frames)
