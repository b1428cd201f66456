"""How much memory of a GPU a piece of work takes."""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch

T = TypeVar("T")


@dataclass(frozen=True)
class GpuMemory:
    """Bytes beyond those that were in use before, of tensors.

    What torch's allocator reserves is not among them: it also hands out free space in blocks that
    it reserved before and that other tensors keep from being given back, so what it newly reserves
    for a piece of work may be less than the work holds, and depends on what ran earlier.

    Attributes:
        held: of live tensors when the work was done, its result included.
        peak: of live tensors at worst, during the work.
    """

    held: int
    peak: int


def measure_memory(work: Callable[[], T], device: torch.device | str) -> tuple[T, GpuMemory]:
    """Result of some work, and what it took; what no tensor uses is given back first."""
    gc.collect()
    torch.cuda.synchronize(device)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    result = work()
    torch.cuda.synchronize(device)
    return result, GpuMemory(
        held=torch.cuda.memory_allocated(device) - before,
        peak=torch.cuda.max_memory_allocated(device) - before,
    )
