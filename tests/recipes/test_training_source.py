from dataclasses import replace
from itertools import islice

import pytest
import torch

from voxelquant.data.frame import Frame
from voxelquant.data.sampling import Shard
from voxelquant.detection.config import load_config
from voxelquant.recipes import training_source
from voxelquant.recipes.training_source import (
    DatasetSource,
    DropBoxesOutside,
    SyntheticSource,
    training_transforms,
)


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Scene numbers generated so far; frames are stood in for by their numbers."""
    numbers: list[int] = []

    def generate(seed: int, scenes: list[int], **_: object) -> list[int]:
        numbers.extend(scenes)
        return scenes

    monkeypatch.setattr(training_source, "generate_frames", generate)
    monkeypatch.setattr(training_source, "keep_seen_boxes", lambda frame: frame)
    return numbers


def source(turnover: int) -> SyntheticSource:
    return SyntheticSource(seed=5, pool_size=40, turnover=turnover, device="cpu")


def test_every_frame_is_made_once_and_in_order(made: list[int]) -> None:
    pool = source(turnover=2)
    for step in range(33):
        pool.draw(step, 4)
    assert made == list(range(40 + 64))


def test_the_pool_holds_the_newest_frames(made: list[int]) -> None:
    pool = source(turnover=2)
    drawn: set[int] = set()
    for step in range(100):
        pool.draw(step, 4)
    for step in range(100, 104):  # no launch is due before step 104
        drawn |= {int(str(frame)) for frame in pool.draw(step, 400)}
    assert drawn == set(range(192, 232))


def test_a_resumed_run_draws_what_an_unbroken_one_draws(made: list[int]) -> None:
    unbroken = source(turnover=3)
    batches: list[list[Frame]] = [unbroken.draw(step, 8) for step in range(50)]
    resumed = source(turnover=3)
    assert [resumed.draw(step, 8) for step in range(30, 50)] == batches[30:]


def test_ranks_make_and_draw_different_frames(made: list[int]) -> None:
    drawn = []
    for rank in range(2):
        shard = Shard(rank, 2)
        pool = SyntheticSource(seed=5, pool_size=40, turnover=2, device="cpu", shard=shard)
        drawn.append([int(str(frame)) for step in range(20) for frame in pool.draw(step, 4)])
    assert {frame % 2 for frame in drawn[0]} == {0}
    assert {frame % 2 for frame in drawn[1]} == {1}
    assert len(set(made)) == len(made)
    slots = [[frame // 2 for frame in frames] for frames in drawn]
    assert slots[0] != slots[1]  # not the same places of both pools


def test_frames_to_calibrate_on_are_those_of_the_first_step(made: list[int]) -> None:
    pool = source(turnover=2)
    assert pool.first_frames() == list(range(40))


@pytest.mark.parametrize(("pool_size", "at_once"), [(8, 16), (100, 25), (1024, 64)])
def test_a_large_pool_is_renewed_in_large_parts(
    made: list[int], pool_size: int, at_once: int
) -> None:
    pool = SyntheticSource(seed=5, pool_size=pool_size, turnover=1, device="cpu")
    pool.draw(0, 1)
    first = len(made)
    pool.draw(at_once - 1, 1)
    assert len(made) == first
    pool.draw(at_once, 1)
    assert len(made) == first + min(at_once, pool_size)


def test_without_turnover_the_pool_stays(made: list[int]) -> None:
    pool = source(turnover=0)
    for step in range(10):
        pool.draw(step, 4)
    assert made == list(range(40))


class NumberedFrames:
    """Frames whose token is their index, each with a point and a box at x = index."""

    def __init__(self, n: int) -> None:
        self.n = n

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, index: int) -> Frame:
        box = torch.tensor([[float(index), 0, 0, 2, 4, 1.5, 0, 0, 0]])
        return Frame(
            token=str(index),
            points=torch.tensor([[float(index), 1, 2, 3, 0]]),
            boxes_det3d=box,
            labels=torch.zeros(1, dtype=torch.int64),
            num_lidar_pts=torch.ones(1, dtype=torch.int64),
            ref_to_ego=torch.eye(4, dtype=torch.float64),
            ego_to_global=torch.eye(4, dtype=torch.float64),
            timestamp=0.0,
        )


def on_disk(n: int = 7, shard: Shard | None = None) -> DatasetSource:
    transforms = training_transforms(load_config("centerpoint_tiny"))
    return DatasetSource(
        NumberedFrames(n), range(n), seed=3, device="cpu", transforms=transforms, shard=shard
    )


def taken(source: DatasetSource, first_step: int, steps: int) -> list[list[Frame]]:
    return list(islice(source.batches(first_step, 2), steps))


@pytest.mark.parametrize("first_step", [1, 3, 4, 8])
def test_batches_from_disk_follow_from_the_step(first_step: int) -> None:
    unbroken = taken(on_disk(), 0, 11)[first_step:]
    resumed = taken(on_disk(), first_step, 11 - first_step)
    for ours, theirs in zip(resumed, unbroken, strict=True):
        assert [frame.token for frame in ours] == [frame.token for frame in theirs]
        for mine, other in zip(ours, theirs, strict=True):
            assert torch.equal(mine.points, other.points)  # augmented alike


def test_no_frame_comes_twice_in_an_epoch_and_epochs_differ() -> None:
    batches = taken(on_disk(), 0, 9)
    epochs = [[f.token for batch in batches[i : i + 3] for f in batch] for i in (0, 3, 6)]
    assert all(len(set(epoch)) == 6 for epoch in epochs)  # three whole batches of seven frames
    assert epochs[0] != epochs[1] != epochs[2]


def test_ranks_see_different_frames() -> None:
    tokens = [
        {f.token for batch in taken(on_disk(8, Shard(rank, 2)), 0, 2) for f in batch}
        for rank in range(2)
    ]
    assert tokens[0] | tokens[1] == {str(i) for i in range(8)}
    assert not tokens[0] & tokens[1]


def test_a_dataset_smaller_than_a_batch_is_one_batch() -> None:
    assert [len(batch) for batch in taken(on_disk(1), 0, 3)] == [1, 1, 1]


def test_boxes_outside_the_range_are_dropped() -> None:
    drop = DropBoxesOutside((-10.0, -10.0, -5.0, 10.0, 10.0, 3.0))
    near, far = (NumberedFrames(20)[index] for index in (3, 15))
    generator = torch.Generator()
    assert len(drop(near, generator).boxes_det3d) == 1
    assert len(drop(far, generator).boxes_det3d) == 0


def test_synthetic_batches_are_augmented_alike_after_a_resume(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    frames = NumberedFrames(50)
    monkeypatch.setattr(
        training_source,
        "generate_frames",
        lambda seed, scenes, **_: [replace(frames[s], token=f"{seed}-{s}") for s in scenes],
    )
    transforms = training_transforms(load_config("centerpoint_tiny"))

    def batches(first_step: int, steps: int) -> list[list[Frame]]:
        pool = SyntheticSource(seed=5, pool_size=8, turnover=4, device="cpu", transforms=transforms)
        return list(islice(pool.batches(first_step, 3), steps))

    for ours, theirs in zip(batches(5, 3), batches(0, 8)[5:], strict=True):
        for mine, other in zip(ours, theirs, strict=True):
            assert mine.token == other.token
            assert torch.equal(mine.points, other.points)
