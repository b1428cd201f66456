"""The frame at hand: what a plan's kernels read of the host."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from voxelquant.sparse.backends.triton.overlap import (
    LAUNCH,
    OVERLAP,
    gdc_launch_dependents,
    gdc_wait,
)


class Frame:
    """Where features and coordinates of the frame lie, how many voxels it has, and its flags.

    The host writes three numbers into its own memory, and the first kernel fetches them. So nothing
    is copied or launched to hand a frame over, and a graph that was captured once reads every frame
    where the caller has it.

    Attributes:
        fields: `[4]` int64 on the device: address of the features, address of the coordinates,
            number of voxels, flags.
        flags: `[1]` the last of them, 0 when a frame is fetched.
    """

    def __init__(self, device: torch.device) -> None:
        self.fields = torch.zeros(4, dtype=torch.int64, device=device)
        self.flags = self.fields[3:]
        # Pinned memory has an address that kernels can read.
        self._here = torch.zeros(4, dtype=torch.int64, pin_memory=device.type == "cuda")
        self._as_numbers = self._here.numpy()
        self._held: tuple[Tensor, Tensor] | None = None

    def hand_over(self, features: Tensor, coords_bzyx: Tensor) -> None:
        """Name the frame that `fetch` shall fetch; the one before must have been fetched.

        Args:
            features: `[n, c]` float16, contiguous, on the device; kept until the next frame.
            coords_bzyx: `[n, 4]` int32, the same.
        """
        here = self._as_numbers
        here[0], here[1], here[2] = features.data_ptr(), coords_bzyx.data_ptr(), len(features)
        self._held = features, coords_bzyx

    def fetch(self) -> None:
        """Bring the fields to the device, before any kernel that reads them.

        By one program, once: a thousand that read the host's memory get in each other's way.
        """
        _fetch_fields[(1,)](self._here, self.fields, num_warps=1, **LAUNCH)


@triton.jit
def _fetch_fields(here_ptr, fields_ptr):
    if OVERLAP:
        gdc_wait()
        gdc_launch_dependents()
    at = tl.arange(0, 4)
    tl.store(fields_ptr + at, tl.load(here_ptr + at))
