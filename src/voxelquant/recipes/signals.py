"""What the processes of one run tell each other beside their collectives: that one has failed.

A collective waits for every process. Where one of them cannot go on (a frame is damaged, say), the
others would wait for it until the backend's timeout. So each says so here, looks here between two
pieces of work, and meets the others here before a collective.
"""

from __future__ import annotations

import atexit
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Protocol

import torch.distributed as dist

from voxelquant.errors import AnotherProcessFailedError, BadInputError, MissingDependencyError

PATIENCE = timedelta(hours=2)  # for processes that have more to do, or score while others wait
GRACE_S = 10.0  # for processes that are in the middle of something when another has failed
_POLL_S = 0.02


class Store(Protocol):
    """The counters of torch's key-value store."""

    def add(self, key: str, amount: int, /) -> int:
        """Add to a counter, which begins at 0, and return what it is then."""
        ...


class Signals:
    """Counters that the processes of a run share.

    Args:
        store: of the processes of this run alone.
        world_size: number of processes.
    """

    def __init__(self, store: Store, world_size: int) -> None:
        self.store = store
        self.world_size = world_size
        self._meetings = 0

    def meet(self) -> None:
        """Wait until every process is here.

        Raises:
            AnotherProcessFailedError: one of them will not come.
        """
        self._meetings += 1
        meeting = f"meeting {self._meetings}"
        self.store.add(meeting, 1)

        def all_here() -> bool:
            # In this order: whoever failed after it was here must not keep another from a
            # collective that the rest has begun.
            if self._count(meeting) == self.world_size:
                return True
            self.stop_if_another_failed()
            return False

        if not _wait_until(all_here, PATIENCE.total_seconds()):
            raise TimeoutError(
                f"got {self._count(meeting)} of {self.world_size} processes within {PATIENCE}, "
                "need all; look for one that was killed on another machine"
            )

    def part(self, is_main: bool) -> None:
        """Wait for the others a last time; the main process, which may hold the store, goes last.

        Raises:
            AnotherProcessFailedError: one of them failed.
        """
        self.meet()
        if is_main:
            _wait_until(lambda: self._count("parted") == self.world_size - 1, GRACE_S)
        else:
            self.store.add("parted", 1)

    def stop_if_another_failed(self) -> None:
        """Look whether the run is over.

        Raises:
            AnotherProcessFailedError: a process has failed.
        """
        if self._count("failed"):
            raise AnotherProcessFailedError("another process of this run failed, and says why")

    @contextmanager
    def ending_together(self) -> Iterator[None]:
        """What fails inside ends all processes; only the first to fail says why.

        The others wait until it has spoken: torchrun ends all processes when one is gone.
        """
        try:
            yield
        except AnotherProcessFailedError:
            self._leave_after_the_first()
            raise
        except Exception as error:
            if self.store.add("failed", 1) == 1:
                atexit.register(self._let_the_others_go)  # the error is printed before
                raise
            self._leave_after_the_first()
            if isinstance(error, BadInputError | MissingDependencyError):
                raise AnotherProcessFailedError("another process said it before") from error
            raise

    def _let_the_others_go(self) -> None:
        with suppress(dist.DistError):  # the store is gone, and so are all
            self.store.add("spoken", 1)
            _wait_until(lambda: self._count("gone") == self.world_size - 1, GRACE_S)

    def _leave_after_the_first(self) -> None:
        with suppress(dist.DistError):
            _wait_until(lambda: self._count("spoken") > 0, GRACE_S)
            self.store.add("gone", 1)

    def _count(self, key: str) -> int:
        return self.store.add(key, 0)


def _wait_until(holds: Callable[[], bool], seconds: float) -> bool:
    end = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > end:
            return False
        time.sleep(_POLL_S)
    return True
