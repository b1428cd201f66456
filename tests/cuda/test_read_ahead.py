"""Batches made on a stream of their own are whole when they are used, and their memory theirs."""

from collections.abc import Iterator

import pytest
import torch

if not torch.cuda.is_available():
    pytest.skip("no CUDA device here", allow_module_level=True)

from voxelquant.data.synthetic import generate_frames
from voxelquant.recipes.read_ahead import Batch, read_ahead
from voxelquant.recipes.training_source import SyntheticSource

SLEEP_CYCLES = 20_000_000  # some 10 ms


def slow_batches(count: int) -> Iterator[Batch]:
    """Points are filled with the batch's number, late."""
    (frame,) = generate_frames(1, [0], key_frames=1, device="cuda")
    for number in range(count):
        torch.cuda._sleep(SLEEP_CYCLES)
        points = torch.full_like(frame.points, number)
        yield [type(frame)(**{**vars(frame), "points": points})]


def test_every_batch_is_whole_and_stays_so_while_it_is_used() -> None:
    for number, (frame,) in enumerate(read_ahead(slow_batches(20), "cuda")):
        points = frame.points
        del frame
        torch.cuda._sleep(SLEEP_CYCLES)  # in the meantime the next one is made
        assert (points == number).all()


def test_frames_ahead_are_those_of_the_source() -> None:
    def draw(ahead: bool) -> list[torch.Tensor]:
        source = SyntheticSource(seed=3, pool_size=4, turnover=2, device="cuda")
        batches = source.batches(0, 2)
        batches = read_ahead(batches, "cuda") if ahead else batches
        return [frame.points.cpu() for _ in range(12) for frame in next(batches)]

    for found, expected in zip(draw(True), draw(False), strict=True):
        assert torch.equal(found, expected)
