"""Clocks of a GPU against kernels that sleep for a known share of its time."""

import pytest
import torch

from voxelquant.evaluation.gpu_memory import measure_memory
from voxelquant.evaluation.gpu_timing import (
    cache_evictor,
    measure_busy,
    measure_events,
    measure_in_order,
)

if not torch.cuda.is_available():
    pytest.skip("no CUDA device here", allow_module_level=True)

CYCLES = 2_000_000  # about a millisecond
SIZE = 64 * 2**20


def sleep() -> None:
    torch.cuda._sleep(CYCLES)


def test_events_and_profiler_agree() -> None:
    events = measure_events(sleep, repeats=5)
    busy = measure_busy(sleep, repeats=5)
    assert busy is not None
    assert busy.launches == 1
    assert busy.busy_ms == pytest.approx(events.median_ms, rel=0.1)


def test_host_time_is_not_in_events() -> None:
    """Some thousand tiny launches take the host longer than the GPU."""
    x = torch.zeros(8, device="cuda")

    def many() -> None:
        for _ in range(300):
            x.add_(1)

    busy = measure_busy(many, repeats=3)
    assert busy is not None
    assert busy.launches == 300
    assert measure_events(many, repeats=5).median_ms < 300 * 0.008


def test_each_step_has_its_own_time() -> None:
    steps = [sleep, lambda: torch.cuda._sleep(3 * CYCLES), sleep]
    first, second, third = measure_in_order(steps, device="cuda", repeats=5)
    assert second == pytest.approx(3 * first, rel=0.2)
    assert third == pytest.approx(first, rel=0.2)


def test_memory_of_a_piece_of_work() -> None:
    def work() -> torch.Tensor:
        scratch = torch.empty(3 * SIZE, dtype=torch.int8, device="cuda")
        return torch.empty_like(scratch[:SIZE])

    kept, memory = measure_memory(work, "cuda")
    assert kept.numel() == memory.held == SIZE
    assert memory.peak == 4 * SIZE


def test_the_evictor_runs() -> None:
    assert measure_events(cache_evictor("cuda"), repeats=3).median_ms > 0
