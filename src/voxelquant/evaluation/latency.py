"""How long a call takes, as its caller experiences it."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from voxelquant.errors import BadInputError


@dataclass(frozen=True)
class Latency:
    """Wall time of one call: the middle of the distribution and its spread."""

    median_ms: float
    p20_ms: float
    p80_ms: float
    repeats: int

    def __str__(self) -> str:
        return f"{self.median_ms:.2f} ms ({self.p20_ms:.2f}..{self.p80_ms:.2f}, {self.repeats}x)"


def measure_latency(
    run: Callable[[], object],
    *,
    device: torch.device | str = "cpu",
    warmup: int = 3,
    repeats: int = 20,
    before: Callable[[], object] | None = None,
) -> Latency:
    """Time calls one by one, after warm-up.

    On a GPU every call is timed from an idle device until the current stream has done all of it:
    kernels that are only queued are not done. The stream alone is waited for in this time, as a
    caller would who wants the result; to wait for a whole device that is idle already takes
    microseconds more. Nothing is subtracted and no call is discarded.

    Args:
        run: What to time; its result is dropped.
        device: Where its work happens.
        warmup: Calls before the first timed one (allocation, autotuning, caches).
        repeats: Timed calls.
        before: Called before each timed call, outside of its time.

    Raises:
        BadInputError: Fewer than two timed calls.
    """
    if repeats < 2 or warmup < 0:
        raise BadInputError(
            f"got warmup {warmup} and repeats {repeats}; need at least 0 and 2 to know a spread"
        )
    device = torch.device(device)
    wait_for_result = _wait_of(device)
    for _ in range(warmup):
        run()
    times_ms = []
    for _ in range(repeats):
        if before is not None:
            before()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        started = time.perf_counter()
        run()
        wait_for_result()
        times_ms.append((time.perf_counter() - started) * 1e3)
    return summarise_times(times_ms)


def summarise_times(times_ms: list[float]) -> Latency:
    """Median and spread of at least two times."""
    fifths = statistics.quantiles(times_ms, n=5, method="inclusive")
    return Latency(statistics.median(times_ms), fifths[0], fifths[-1], len(times_ms))


def _wait_of(device: torch.device) -> Callable[[], object]:
    if device.type == "cuda":
        return torch.cuda.current_stream(device).synchronize
    return lambda: None
