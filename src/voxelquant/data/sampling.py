"""Which frames a run sees, in which order: a pure function of seed, epoch and rank."""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from voxelquant.errors import DatasetError
from voxelquant.plural import counted


@dataclass(frozen=True)
class Shard:
    """Part of the frames that one process works on."""

    rank: int = 0
    world_size: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.world_size:
            raise DatasetError(f"got rank {self.rank}, need 0 to {self.world_size - 1}")


@dataclass(frozen=True)
class Draw:
    """One frame of a training epoch, with the seed of its augmentation."""

    index: int
    seed: int


class EpochSampler:
    """Draws of one epoch, shuffled anew for every epoch; ranks draw disjoint parts of one order.

    Every rank gets the same number of frames, so a remainder of fewer than `world_size` frames
    waits for another epoch. A run that resumes says which epoch it is in and how many draws of it
    are done.

    Args:
        order: Dataset indices that make up an epoch; class-balanced resampling repeats some.
        seed: Of the shuffling and of the augmentation.
        shard: This process.

    Raises:
        DatasetError: Fewer frames than processes.
    """

    def __init__(self, order: Sequence[int], *, seed: int, shard: Shard | None = None) -> None:
        self.order = list(order)
        self.seed = seed
        self.shard = shard or Shard()
        self.set_epoch(0)
        if len(self.order) < self.shard.world_size:
            raise DatasetError(
                f"got {counted(len(self.order), 'frame')} an epoch, need at least one for each of "
                f"the {self.shard.world_size} processes"
            )

    def set_epoch(self, epoch: int, *, skip: int = 0) -> None:
        """Choose the epoch that the next pass draws, and how many of its draws to leave out."""
        self.epoch = epoch
        self.skip = skip

    def __len__(self) -> int:
        return max(0, len(self.order) // self.shard.world_size - self.skip)

    def __iter__(self) -> Iterator[Draw]:
        rank, world_size = self.shard.rank, self.shard.world_size
        shuffled = np.random.default_rng((self.seed, self.epoch)).permutation(len(self.order))
        for own in range(self.skip, self.skip + len(self)):
            position = own * world_size + rank
            # The place in the epoch, not the process, seeds a frame's augmentation.
            seed = np.random.SeedSequence((self.seed, self.epoch, position)).generate_state(1)
            yield Draw(self.order[shuffled[position]], int(seed[0]))


def strided_indices(n_frames: int, shard: Shard) -> range:
    """Frames that a process evaluates: every frame in exactly one process, none twice.

    Example:
        >>> [list(strided_indices(5, Shard(rank, 2))) for rank in range(2)]
        [[0, 2, 4], [1, 3]]
    """
    return range(shard.rank, n_frames, shard.world_size)


def class_balanced_order(
    classes_in_frames: Sequence[Collection[int]], n_classes: int, *, seed: int
) -> list[int]:
    """Frames drawn with replacement so that every class is drawn for equally often.

    Class-balanced grouping and sampling (Zhu et al. 2019, arXiv 1908.09492) as det3d computes it:
    with n_c frames that show class c and S their sum, `int(n_c · (1/C) / (n_c/S))` frames for each
    class. A frame without boxes is never drawn.

    Args:
        classes_in_frames: Labels that occur in each frame.
        n_classes: Number of classes C.
        seed: det3d draws from a global generator, differently in every process; here all
            processes agree.

    Returns:
        About S dataset indices, grouped by class.

    Raises:
        DatasetError: No frame shows any class.
    """
    frames_of: list[list[int]] = [[] for _ in range(n_classes)]
    for index, classes in enumerate(classes_in_frames):
        for label in classes:
            frames_of[label].append(index)
    total = sum(map(len, frames_of))
    if total == 0:
        raise DatasetError(
            f"got {counted(len(classes_in_frames), 'frame')} without a box of any class, need "
            "annotated ones; train on an annotated split, or switch class_balanced off"
        )
    generator = np.random.default_rng(seed)
    order: list[int] = []
    for frames in filter(None, frames_of):
        ratio = (1 / n_classes) / (len(frames) / total)
        order += generator.choice(frames, int(len(frames) * ratio)).tolist()
    return order


def seeded_generator(seed: int) -> torch.Generator:
    """A CPU generator that starts at `seed`."""
    return torch.Generator().manual_seed(seed)
