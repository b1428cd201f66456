"""Batches of the next steps made while the GPU is busy with this one."""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Generator, Iterator
from contextlib import AbstractContextManager
from typing import Generic, TypeVar

import torch

Batch = TypeVar("Batch")

_LOOK_EVERY_S = 0.1  # how often a thread that waits looks whether it is still wanted
# Batches in line on a GPU: as many steps as it takes to generate frames of the synthetic world, so
# that nothing waits for them. One of four frames takes some 200 MB.
_BATCHES_AHEAD = 6
_BEFORE_OTHERS = -1  # priority of a stream; what is made ahead is small, and the host waits for it


def read_ahead(
    batches: Iterator[Batch], device: torch.device | str
) -> Generator[Batch, None, None]:
    """The same batches in the same order, on a GPU some steps ahead in a thread of their own.

    What makes a batch there, launches and waits, happens on a stream of its own. On a CPU, where
    nothing would be gained, batches pass as they come. What is done with a batch on a GPU is to be
    launched before the next one is asked for: then its memory may be used again.

    Args:
        batches: of every step, on the device; used by nobody else.
        device: where the training happens.

    Raises:
        Exception: what making a batch raises, when its turn comes.
    """
    device = torch.device(device)
    if device.type != "cuda":
        yield from batches
        return
    stream = torch.cuda.Stream(device, priority=_BEFORE_OTHERS)
    ahead = BatchesAhead(batches, stream, count=_BATCHES_AHEAD)
    try:
        yield from ahead
    finally:
        ahead.stop()


class BatchesAhead(Iterator[Batch], Generic[Batch]):
    """A thread that makes batches before they are asked for.

    Args:
        batches: what makes them.
        stream: on which it does; None if no GPU takes part.
        count: how many it holds ready.
    """

    def __init__(
        self, batches: Iterator[Batch], stream: torch.cuda.Stream | None, *, count: int = 1
    ) -> None:
        self._batches = batches
        self._stream = stream
        self._made: queue.Queue[tuple[Batch, torch.cuda.Event | None] | BaseException | None]
        self._made = queue.Queue(maxsize=count)
        # Batches that were used, each with what the stream has to wait for before their memory,
        # which is the stream's own, may hold something else.
        self._used: queue.SimpleQueue[tuple[Batch, torch.cuda.Event]] = queue.SimpleQueue()
        self._in_use: Batch | None = None
        self._ended = False
        self._unwanted = threading.Event()
        if stream is not None:
            # What batches are made of may still be on its way, on the stream that made it.
            stream.wait_stream(torch.cuda.current_stream(stream.device))
        self._thread = threading.Thread(target=self._make, name="read ahead", daemon=True)
        self._thread.start()

    def __next__(self) -> Batch:
        """The next batch, for the current stream to use."""
        self._give_back()
        if self._ended:
            raise StopIteration
        made = self._made.get()
        if made is None:
            self._ended = True
            raise StopIteration
        if isinstance(made, BaseException):
            self._ended = True
            raise made
        batch, ready = made
        if ready is not None:
            torch.cuda.current_stream().wait_event(ready)
            self._in_use = batch
        return batch

    def stop(self) -> None:
        """End the thread, whatever it has made."""
        self._ended = True
        self._unwanted.set()
        self._thread.join()
        if self._stream is not None:
            # The memory of batches that are dropped now is the stream's.
            self._stream.wait_stream(torch.cuda.current_stream(self._stream.device))

    def _give_back(self) -> None:
        """Let go of the batch that was used, once all that was launched for it is done."""
        if self._in_use is not None:
            self._used.put((self._in_use, torch.cuda.current_stream().record_event()))
            self._in_use = None

    def _make(self) -> None:
        on_stream: AbstractContextManager[object] = contextlib.nullcontext()
        if self._stream is not None:
            torch.cuda.set_device(self._stream.device)  # of this thread
            on_stream = torch.cuda.stream(self._stream)
        with on_stream:
            try:
                for batch in self._batches:
                    if not self._hand_over((batch, self._mark())):
                        return
                    del batch  # it is the user's now
                    self._drop_used()
                self._hand_over(None)
            except BaseException as error:  # raised where the batch is waited for
                self._hand_over(error)

    def _mark(self) -> torch.cuda.Event | None:
        """When what was launched until now is done."""
        return None if self._stream is None else self._stream.record_event()

    def _drop_used(self) -> None:
        with contextlib.suppress(queue.Empty):
            while self._stream is not None:
                batch, done = self._used.get_nowait()
                self._stream.wait_event(done)
                del batch

    def _hand_over(
        self, made: tuple[Batch, torch.cuda.Event | None] | BaseException | None
    ) -> bool:
        """Put a batch in line; whether it was still wanted."""
        while not self._unwanted.is_set():
            with contextlib.suppress(queue.Full):
                self._made.put(made, timeout=_LOOK_EVERY_S)
                return True
        return False
