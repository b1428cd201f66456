"""The frame at hand: what a plan's kernels read of the host."""

from __future__ import annotations

import torch
from torch import Tensor


class Frame:
    """Where features and coordinates of the frame lie, how many voxels it has, and its flags.

    One small copy hands all of it over, so a graph that was captured once reads every frame where
    the caller has it.

    Attributes:
        fields: `[4]` int64 on the device: address of the features, address of the coordinates,
            number of voxels, flags.
        flags: `[1]` the last of them, 0 when a frame is handed over.
    """

    def __init__(self, device: torch.device) -> None:
        self.fields = torch.zeros(4, dtype=torch.int64, device=device)
        self.flags = self.fields[3:]
        # Not pinned: the driver has taken such a copy's bytes before the call returns, so the next
        # frame may be written here while the device has yet to begin the one before.
        self._here = torch.zeros(4, dtype=torch.int64)
        self._as_numbers = self._here.numpy()
        self._held: tuple[Tensor, Tensor] | None = None

    def hand_over(self, features: Tensor, coords_bzyx: Tensor) -> None:
        """Name the frame of the launches that follow on this stream.

        Args:
            features: `[n, c]` float16, contiguous, on the device; kept until the next frame.
            coords_bzyx: `[n, 4]` int32, the same.
        """
        here = self._as_numbers
        here[0], here[1], here[2] = features.data_ptr(), coords_bzyx.data_ptr(), len(features)
        self.fields.copy_(self._here, non_blocking=True)
        self._held = features, coords_bzyx
