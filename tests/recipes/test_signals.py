"""Processes as threads over one store: what they hear of each other, and in which order."""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
import torch.distributed as dist

from voxelquant.errors import AnotherProcessFailedError, BadInputError
from voxelquant.recipes import signals as module
from voxelquant.recipes.signals import Signals

Store = dist.HashStore  # type: ignore[attr-defined]


@pytest.fixture
def at_exit(monkeypatch: pytest.MonkeyPatch) -> list[Callable[[], None]]:
    """What a process would do when it ends."""
    registered: list[Callable[[], None]] = []
    monkeypatch.setattr(module.atexit, "register", registered.append)
    return registered


def test_all_wait_for_the_last() -> None:
    store, arrived = Store(), []

    def work(rank: int) -> list[int]:
        signals = Signals(store, 3)
        for meeting in range(20):
            arrived.append((meeting, rank))
            signals.meet()
            assert sum(m == meeting for m, _ in arrived) == 3
        return sorted(arrived)

    with ThreadPoolExecutor(3) as pool:
        assert len({len(seen) for seen in pool.map(work, range(3))}) == 1


def test_who_waits_for_a_process_that_failed_ends_after_it_has_spoken(at_exit) -> None:
    store, said = Store(), []

    def fail() -> None:
        try:
            with Signals(store, 2).ending_together():
                raise BadInputError("the frame is damaged")
        except BadInputError as error:
            time.sleep(0.2)  # whoever does not wait is gone by now
            said.append(str(error))
        [leave] = at_exit
        leave()

    def wait() -> None:
        signals = Signals(store, 2)
        with pytest.raises(AnotherProcessFailedError), signals.ending_together():
            signals.meet()
        said.append("gone")

    with ThreadPoolExecutor(2) as pool:
        waiting, failing = pool.submit(wait), pool.submit(fail)
        failing.result(timeout=5)
        waiting.result(timeout=5)
    assert said == ["the frame is damaged", "gone"]


def test_only_the_first_of_several_errors_is_told(at_exit) -> None:
    store = Store()
    with pytest.raises(BadInputError), Signals(store, 2).ending_together():
        raise BadInputError("no such file")
    store.add("spoken", 1)
    with pytest.raises(AnotherProcessFailedError), Signals(store, 2).ending_together():
        raise BadInputError("no such file")
    with pytest.raises(ZeroDivisionError), Signals(store, 2).ending_together():
        _ = 1 / 0  # a defect of ours keeps its traceback
    assert len(at_exit) == 1


def test_a_failure_after_a_meeting_keeps_nobody_from_what_the_rest_began() -> None:
    store = Store()
    store.add("meeting 1", 1)  # the other was here,
    store.add("failed", 1)  # and failed later
    signals = Signals(store, 2)
    signals.meet()
    with pytest.raises(AnotherProcessFailedError):
        signals.meet()


def test_patience_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PATIENCE", timedelta(seconds=0.05))
    with pytest.raises(TimeoutError, match="got 1 of 2 processes within"):
        Signals(Store(), 2).meet()
