"""Frames of the next step made while the GPU is busy with this one."""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Generator, Iterator
from contextlib import AbstractContextManager

import torch
from torch import Tensor

from voxelquant.data.frame import Frame

_LOOK_EVERY_S = 0.1  # how often a thread that waits looks whether it is still wanted
Batch = list[Frame]


def read_ahead(
    batches: Iterator[Batch], device: torch.device | str
) -> Generator[Batch, None, None]:
    """The same batches in the same order, on a GPU one step ahead in a thread of their own.

    What makes a batch there, launches and waits, happens on a stream of its own. On a CPU, where
    nothing would be gained, batches pass as they come.

    Args:
        batches: frames of every step, on the device; used by nobody else.
        device: where the training happens.

    Raises:
        Exception: what making a batch raises, when its turn comes.
    """
    device = torch.device(device)
    if device.type != "cuda":
        yield from batches
        return
    ahead = BatchesAhead(batches, torch.cuda.Stream(device))
    try:
        yield from ahead
    finally:
        ahead.stop()


class BatchesAhead(Iterator[Batch]):
    """A thread that makes batches, one more than was asked for.

    Args:
        batches: what makes them.
        stream: on which it does; None if no GPU takes part.
    """

    def __init__(self, batches: Iterator[Batch], stream: torch.cuda.Stream | None) -> None:
        self._batches = batches
        self._stream = stream
        self._made: queue.Queue[tuple[Batch, torch.cuda.Event | None] | BaseException | None]
        self._made = queue.Queue(maxsize=1)
        self._unwanted = threading.Event()
        if stream is not None:
            # What batches are made of may still be on its way, on the stream that made it.
            stream.wait_stream(torch.cuda.current_stream(stream.device))
        self._thread = threading.Thread(target=self._make, name="read ahead", daemon=True)
        self._thread.start()

    def __next__(self) -> Batch:
        """The next batch, for the current stream to use."""
        made = self._made.get()
        if made is None:
            raise StopIteration
        if isinstance(made, BaseException):
            raise made
        batch, ready = made
        if ready is not None:
            current = torch.cuda.current_stream()
            current.wait_event(ready)
            for tensor in _on_gpu(batch):
                tensor.record_stream(current)  # its memory is not the other stream's to reuse
        return batch

    def stop(self) -> None:
        """End the thread, whatever it has made."""
        self._unwanted.set()
        self._thread.join()

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
                self._hand_over(None)
            except BaseException as error:  # raised where the batch is waited for
                self._hand_over(error)

    def _mark(self) -> torch.cuda.Event | None:
        """When what was launched until now is done."""
        return None if self._stream is None else self._stream.record_event()

    def _hand_over(
        self, made: tuple[Batch, torch.cuda.Event | None] | BaseException | None
    ) -> bool:
        """Put a batch in line; whether it was still wanted."""
        while not self._unwanted.is_set():
            with contextlib.suppress(queue.Full):
                self._made.put(made, timeout=_LOOK_EVERY_S)
                return True
        return False


def _on_gpu(batch: Batch) -> Iterator[Tensor]:
    for frame in batch:
        for value in vars(frame).values():
            if isinstance(value, Tensor) and value.is_cuda:
                yield value
