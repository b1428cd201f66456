import threading
from collections.abc import Iterator
from typing import Any

import pytest

from voxelquant.errors import DatasetError
from voxelquant.recipes.read_ahead import BatchesAhead, read_ahead


class Batches(Iterator[Any]):
    """Numbers as batches; knows how many were made, and where."""

    def __init__(self, count: int, *, fails_at: int | None = None) -> None:
        self.count, self.fails_at = count, fails_at
        self.made = 0
        self.threads: set[str] = set()
        self.two_made = threading.Event()

    def __next__(self) -> Any:
        if self.made == self.fails_at:
            raise DatasetError("sweep 3 is truncated")
        if self.made == self.count:
            raise StopIteration
        self.threads.add(threading.current_thread().name)
        self.made += 1
        if self.made == 2:
            self.two_made.set()
        return [self.made]


def test_batches_come_in_order_from_another_thread() -> None:
    batches = Batches(20)
    assert list(BatchesAhead(batches, None)) == [[n] for n in range(1, 21)]
    assert batches.threads == {"read ahead"}


def test_the_next_batch_is_made_before_it_is_asked_for() -> None:
    batches = Batches(20)
    ahead = BatchesAhead(batches, None)
    assert next(ahead) == [1]
    assert batches.two_made.wait(timeout=30)
    ahead.stop()
    assert batches.made <= 3  # one in line, one on its way into it


def test_a_failure_comes_when_its_batch_is_due() -> None:
    ahead = BatchesAhead(Batches(20, fails_at=2), None)
    assert [next(ahead), next(ahead)] == [[1], [2]]
    with pytest.raises(DatasetError, match="sweep 3 is truncated"):
        next(ahead)


def test_after_its_end_it_stays_ended() -> None:
    ahead = BatchesAhead(Batches(2), None)
    assert len(list(ahead)) == 2
    assert next(ahead, None) is None
    failing = BatchesAhead(Batches(20, fails_at=1), None)
    with pytest.raises(DatasetError):
        [next(failing) for _ in range(2)]
    assert next(failing, None) is None
    stopped = BatchesAhead(Batches(20), None)
    stopped.stop()
    assert next(stopped, None) is None


def test_on_a_cpu_nothing_is_made_before_its_time() -> None:
    batches = Batches(20)
    passing = read_ahead(batches, "cpu")
    assert next(passing) == [1]
    assert batches.made == 1
    assert batches.threads == {threading.current_thread().name}
