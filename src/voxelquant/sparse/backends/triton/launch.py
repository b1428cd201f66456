"""Launches that do not look up what was compiled by the value of every argument.

Triton specializes a kernel on types, constants and alignment, and works them out anew for every
launch, which takes the host longer than the launch itself. A training step has a hundred launches
and waits for the host.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

# Triton compiles for pointers at multiples of this, or for any.
_ALIGNMENT_BYTES = 16


class Launcher:
    """Launches one kernel.

    Args:
        kernel: takes tensors, then integers, then constants. None of the integers is specialized
            on (`do_not_specialize`), and all fit into 32 bits: only then are types, constants and
            alignment all that compiled kernels differ in.
    """

    def __init__(self, kernel: Any) -> None:
        self._kernel = kernel
        self._compiled: dict[tuple[Any, ...], Any] = {}

    def __call__(
        self,
        grid: tuple[int, int, int],
        tensors: tuple[Tensor, ...],
        integers: tuple[int, ...],
        constants: tuple[Any, ...],
        *,
        warps: int = 4,
        stages: int = 3,
    ) -> None:
        """Launch on the device of the tensors; a grid without programs does nothing."""
        if 0 in grid:
            return
        device = tensors[0].device
        key = (device, constants, warps, stages, *[tensor.dtype for tensor in tensors])
        is_aligned = all(tensor.data_ptr() % _ALIGNMENT_BYTES == 0 for tensor in tensors)
        compiled = self._compiled.get(key) if is_aligned else None
        with torch.cuda.device_of(tensors[0]):
            if compiled is not None:
                compiled[grid](*tensors, *integers, *constants)
                return
            made = self._kernel[grid](
                *tensors, *integers, *constants, num_warps=warps, num_stages=stages
            )
        if is_aligned and made is not None:  # the interpreter compiles nothing
            self._compiled[key] = made
