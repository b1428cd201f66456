"""Launches that overlap: a kernel begins while the one before it ends.

CUDA's programmatic dependent launch (Hopper and later): a kernel's programs may be placed as soon
as all of those before it have said so, and wait for the memory of their predecessors where they
first need it. Between kernels of ten microseconds this hides most of the cost of a launch.

The rule that makes it safe: every kernel waits before it allows its successor to begin. Then, while
a kernel has not waited yet, all but its direct predecessor are complete, memory included.
"""

import torch
import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

__all__ = ["LAUNCH", "OVERLAP", "gdc_launch_dependents", "gdc_wait"]


def _overlaps() -> bool:
    if triton.knobs.runtime.interpret or not torch.cuda.is_available():
        return False
    return torch.cuda.get_device_capability()[0] >= 9


OVERLAP: tl.constexpr = tl.constexpr(_overlaps())
LAUNCH: dict[str, bool] = {"launch_pdl": True} if OVERLAP.value else {}
