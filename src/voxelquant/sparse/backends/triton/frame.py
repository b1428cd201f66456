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

_PENDING = -1  # in place of flags that have yet to arrive


class Frame:
    """Where features and coordinates of the frame lie, how many voxels it has, and its flags.

    The host writes three numbers into its own memory, and the first kernel fetches them. So nothing
    is copied or launched to hand a frame over, and a graph that was captured once reads every frame
    where the caller has it.

    Attributes:
        fields: `[4]` int64 on the device: address of the features, address of the coordinates,
            number of voxels, flags.
        flags: `[1]` the last of them, 0 when a frame is fetched.
        tallies: `[n]` int32 counters of `make_tallies`, 0 when a frame is fetched.

    Whoever queues frames without waiting for each calls `begin` before and launches `report` after
    the kernels that fetch and raise flags; then one frame may wait behind the one that runs.
    """

    def __init__(self, device: torch.device) -> None:
        self.fields = torch.zeros(4, dtype=torch.int64, device=device)
        self.flags = self.fields[3:]
        self.tallies = torch.zeros(0, dtype=torch.int32, device=device)
        # Pinned memory has an address that kernels can read. The last field is of the way back.
        self._here = torch.zeros(5, dtype=torch.int64, pin_memory=device.type == "cuda")
        self._as_numbers = self._here.numpy()
        self._stream: torch.cuda.Stream | None = None  # of the frame that was begun last
        self._held: tuple[Tensor, Tensor] | None = None

    def hand_over(self, features: Tensor, coords_bzyx: Tensor) -> None:
        """Name the frame that `fetch` shall fetch, once the one before has been fetched.

        Args:
            features: `[n, c]` float16, contiguous, on the device; kept until the next frame.
            coords_bzyx: `[n, 4]` int32, the same.
        """
        self._wait_until_fetched()
        here = self._as_numbers
        here[0], here[1], here[2] = features.data_ptr(), coords_bzyx.data_ptr(), len(features)
        self._held = features, coords_bzyx

    def make_tallies(self, count: int) -> Tensor:
        """Counters for kernels to add to; once, before anything is launched."""
        assert len(self.tallies) == 0
        self.tallies = torch.zeros(count, dtype=torch.int32, device=self.fields.device)
        return self.tallies

    def fetch(self) -> None:
        """Bring the fields to the device and empty the tallies, before any kernel that needs them.

        By one program, once: a thousand that read the host's memory get in each other's way.
        """
        count = len(self.tallies)
        _fetch_fields[(1,)](
            self._here,
            self.fields,
            self.tallies,
            TALLIES=count,
            BLOCK=triton.next_power_of_2(max(count, 1)),
            num_warps=1,
            **LAUNCH,
        )

    def begin(self) -> None:
        """Tell that launches follow, on the current stream, which end in a report."""
        self._wait_until_fetched()
        self._as_numbers[4] = _PENDING
        if self.fields.is_cuda:
            self._stream = torch.cuda.current_stream(self.fields.device)

    def report(self) -> None:
        """Send the flags to the host, on the current stream."""
        self._here[4:].copy_(self.flags, non_blocking=True)

    def wait(self) -> bool:
        """Wait for the frame that was begun last; whether it raised no flag."""
        if self._stream is not None:
            self._stream.synchronize()
        return bool(self._as_numbers[4] == 0)

    def _wait_until_fetched(self) -> None:
        while self._as_numbers[4] == _PENDING and self._stream is not None:
            if self._stream.query():  # which raises what went wrong on the device
                return


@triton.jit
def _fetch_fields(here_ptr, fields_ptr, tallies_ptr, TALLIES: tl.constexpr, BLOCK: tl.constexpr):
    if OVERLAP:
        gdc_wait()
        gdc_launch_dependents()
    at = tl.arange(0, 4)
    tl.store(fields_ptr + at, tl.load(here_ptr + at))
    tally = tl.arange(0, BLOCK)
    tl.store(tallies_ptr + tally, tally * 0, mask=tally < TALLIES)
