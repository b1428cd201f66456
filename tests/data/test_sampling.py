import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from voxelquant.data.sampling import (
    EpochSampler,
    Shard,
    class_balanced_order,
    strided_indices,
)
from voxelquant.errors import DatasetError


@given(st.integers(0, 50), st.integers(1, 8))
def test_strides_cover_every_frame_once(n_frames: int, world_size: int) -> None:
    parts = [strided_indices(n_frames, Shard(rank, world_size)) for rank in range(world_size)]
    assert sorted(itertools.chain(*parts)) == list(range(n_frames))


@given(st.integers(1, 60), st.integers(1, 6), st.integers(0, 5))
def test_ranks_share_an_epoch(n_frames: int, world_size: int, epoch: int) -> None:
    order = list(range(100, 100 + n_frames))
    if n_frames < world_size:
        with pytest.raises(DatasetError, match=f"got {n_frames} frames? an epoch"):
            EpochSampler(order, seed=1, shard=Shard(0, world_size))
        return
    drawn = []
    for rank in range(world_size):
        sampler = EpochSampler(order, seed=1, shard=Shard(rank, world_size))
        sampler.set_epoch(epoch)
        drawn.append(list(sampler))
        assert len(drawn[-1]) == len(sampler) == n_frames // world_size
    indices = [draw.index for draws in drawn for draw in draws]
    assert len(set(indices)) == len(indices)
    assert set(indices) <= set(order)
    # One process sees, in turn, what the ranks see side by side: same frames, same seeds.
    alone = EpochSampler(order, seed=1)
    alone.set_epoch(epoch)
    together = [draw for step in zip(*drawn, strict=True) for draw in step]
    assert list(alone)[: len(together)] == together


def test_epochs_and_seeds_differ_and_repeat() -> None:
    sampler = EpochSampler(range(50), seed=4)
    first, again = list(sampler), list(sampler)
    assert first == again
    assert len({draw.seed for draw in first}) == 50
    sampler.set_epoch(1)
    second = list(sampler)
    assert [d.index for d in second] != [d.index for d in first]
    assert {d.seed for d in second}.isdisjoint({d.seed for d in first})
    assert list(EpochSampler(range(50), seed=5)) != first


def test_a_resumed_epoch_continues() -> None:
    sampler = EpochSampler(range(20), seed=0, shard=Shard(1, 2))
    sampler.set_epoch(3)
    whole = list(sampler)
    sampler.set_epoch(3, skip=4)
    assert list(sampler) == whole[4:]
    assert len(sampler) == 6
    sampler.set_epoch(4)
    assert len(sampler) == 10


@pytest.mark.parametrize(("rank", "world_size"), [(-1, 2), (2, 2), (0, 0)])
def test_shard_is_checked(rank: int, world_size: int) -> None:
    with pytest.raises(DatasetError, match=f"rank {rank}"):
        Shard(rank, world_size)


def test_class_balanced_counts() -> None:
    """10 classes, each in its own number of frames: int(n · 0.1 / (n / S)) draws for each."""
    generator = np.random.default_rng(0)
    frames = [np.flatnonzero(generator.random(10) < np.linspace(0.9, 0.05, 10)) for _ in range(500)]
    order = class_balanced_order([set(f.tolist()) for f in frames], 10, seed=7)
    counts = np.bincount(np.concatenate(frames), minlength=10)
    total = counts.sum()
    per_class = [int(n * (0.1 / (n / total))) for n in counts]
    assert len(order) == sum(per_class)
    start = 0
    for label, count in enumerate(per_class):
        group = order[start : start + count]
        assert all(label in frames[index] for index in group)
        start += count
    # The rarest class is in 5 % of the frames, and in more than a tenth of what is drawn.
    rarest = [9 in frames[index] for index in order]
    assert sum(rarest) / len(order) > 0.1


def test_class_balanced_order_is_seeded() -> None:
    frames = [{0}, {0, 1}, {1}, set(), {0}] * 20
    order = class_balanced_order(frames, 2, seed=1)
    assert order == class_balanced_order(frames, 2, seed=1)
    assert order != class_balanced_order(frames, 2, seed=2)
    assert all(frames[index] for index in order)
    assert len(set(order)) < len(order)  # with replacement


def test_absent_class_and_empty_dataset() -> None:
    assert set(class_balanced_order([{0}, {0}], 3, seed=0)) <= {0, 1}
    with pytest.raises(DatasetError, match="got 2 frames without a box"):
        class_balanced_order([set(), set()], 3, seed=0)
