"""What a GPU does during a call: how long it is busy, and how long each part of the call takes.

Wall time holds the host's work too. *Busy* time is that during which at least one kernel, copy or
memset ran: overlapping ones count once.
"""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch

from voxelquant.evaluation.latency import Latency, summarise_times

# Longer than the second-level cache of any GPU so far.
_EVICTION_BYTES = 256 * 2**20
# Device clock cycles that pass in a millisecond, at most: what sleeps too long costs only time.
_CYCLES_PER_MS = 2_000_000


@dataclass(frozen=True)
class BusyTime:
    """GPU time of one call.

    Attributes:
        busy_ms: time during which something ran, overlaps counted once.
        launches: kernels, copies and memsets.
    """

    busy_ms: float
    launches: float


def measure_events(
    run: Callable[[], object], *, warmup: int = 3, repeats: int = 20, between: int = 1
) -> Latency:
    """GPU time from the first to the last kernel of a call, by CUDA events, of the current device.

    Calls are queued behind a waiting kernel, so the host's launches are not in the time unless the
    call itself waits for the GPU.

    Args:
        run: What to time.
        warmup: Calls before the first timed one.
        repeats: Times that are taken.
        between: Calls in each of them.
    """
    for _ in range(warmup):
        run()
    torch.cuda.synchronize()
    host_ms = _host_ms(run) * between
    times_ms = []
    for _ in range(repeats):
        begin, end = _event(), _event()
        _wait_in_queue(host_ms)
        begin.record()
        for _ in range(between):
            run()
        end.record()
        end.synchronize()
        times_ms.append(begin.elapsed_time(end) / between)
    return summarise_times(times_ms)


def measure_busy(run: Callable[[], object], *, repeats: int = 20) -> BusyTime | None:
    """Busy time of a warm call, by torch's profiler; None where it sees no kernel."""
    from torch.profiler import ProfilerActivity, profile

    run()
    torch.cuda.synchronize()
    activities = [ProfilerActivity.CPU, ProfilerActivity.CUDA]
    with profile(activities=activities, acc_events=True) as profiler:
        for _ in range(repeats):
            run()
        torch.cuda.synchronize()
    spans = [
        (event.time_range.start, event.time_range.end)
        for event in profiler.events() or ()
        if event.device_type.name == "CUDA"
    ]
    if not spans:
        return None
    return BusyTime(covered_length(spans) / 1e3 / repeats, len(spans) / repeats)


def covered_length(spans: Iterable[tuple[float, float]]) -> float:
    """Length of the union of some intervals.

    >>> covered_length([(0, 2), (1, 3), (5, 6)])
    4.0
    """
    total, reached = 0.0, -float("inf")
    for begin, end in sorted(spans):
        total += max(0.0, end - max(begin, reached))
        reached = max(reached, end)
    return total


def measure_in_order(
    steps: Sequence[Callable[[], object]],
    *,
    device: torch.device | str,
    warmup: int = 3,
    repeats: int = 20,
) -> list[float]:
    """Median time in ms of each step of a sequence that always runs whole and in order.

    On a GPU the whole pass is queued behind a waiting kernel, so that no step waits for the host.

    Args:
        steps: What to time.
        device: Where their work happens.
        warmup: Passes before the first timed one.
        repeats: Timed passes.
    """
    on_gpu = torch.device(device).type == "cuda"
    for _ in range(warmup):
        for step in steps:
            step()
    passes = [_gpu_pass(steps) if on_gpu else _host_pass(steps) for _ in range(repeats)]
    return [statistics.median(times) for times in zip(*passes, strict=True)]


def cache_evictor(device: torch.device | str) -> Callable[[], object]:
    """A call that leaves nothing of earlier calls in the second-level cache."""
    filler = torch.empty(_EVICTION_BYTES, dtype=torch.int8, device=device)
    return filler.zero_


def _host_pass(steps: Sequence[Callable[[], object]]) -> list[float]:
    times_ms = []
    for step in steps:
        started = time.perf_counter()
        step()
        times_ms.append((time.perf_counter() - started) * 1e3)
    return times_ms


def _gpu_pass(steps: Sequence[Callable[[], object]]) -> list[float]:
    torch.cuda.synchronize()
    started = time.perf_counter()
    for step in steps:
        step()
    host_ms = (time.perf_counter() - started) * 1e3
    torch.cuda.synchronize()
    marks = [_event() for _ in range(len(steps) + 1)]
    _wait_in_queue(host_ms)
    marks[0].record()
    for step, mark in zip(steps, marks[1:], strict=True):
        step()
        mark.record()
    torch.cuda.synchronize()
    return [begin.elapsed_time(end) for begin, end in itertools.pairwise(marks)]


def _event() -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=True)


def _host_ms(run: Callable[[], object]) -> float:
    started = time.perf_counter()
    run()
    elapsed_ms = (time.perf_counter() - started) * 1e3
    torch.cuda.synchronize()
    return elapsed_ms


def _wait_in_queue(host_ms: float) -> None:
    """Keep the GPU from starting until the host has queued what takes it so long, and half more."""
    torch.cuda._sleep(int((1.5 * host_ms + 0.2) * _CYCLES_PER_MS))
