"""The frame at hand: what a plan's kernels read of the host."""

from __future__ import annotations

import torch
from torch import Tensor

_PLACES = 256  # frames that may be handed over before the device has taken the first


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
        # Pinned, so that the host does not wait for a copy; the device takes it when it is its turn,
        # so a place serves again only when all frames before are known to be done.
        pinned = device.type == "cuda"
        self._places = torch.zeros((_PLACES, 4), dtype=torch.int64, pin_memory=pinned)
        self._numbers = self._places.numpy()
        self._next = 0
        self._held: tuple[Tensor, Tensor] | None = None

    def hand_over(self, features: Tensor, coords_bzyx: Tensor) -> None:
        """Name the frame of the launches that follow on this stream.

        Args:
            features: `[n, c]` float16, contiguous, on the device; kept until the next frame.
            coords_bzyx: `[n, 4]` int32, the same.
        """
        if self._next == _PLACES:
            if self.fields.is_cuda:
                torch.cuda.synchronize(self.fields.device)
            self._next = 0
        here = self._numbers[self._next]
        here[0], here[1], here[2] = features.data_ptr(), coords_bzyx.data_ptr(), len(features)
        self.fields.copy_(self._places[self._next], non_blocking=True)
        self._next += 1
        self._held = features, coords_bzyx
