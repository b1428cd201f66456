"""The frame at hand: where a plan's kernels find features and coordinates."""

from __future__ import annotations

import torch
from torch import Tensor


class Frame:
    """Features and coordinates of the frame at hand, where the caller has them, and its flags.

    Kernels that were captured once find every frame by its addresses, which the first launch of a
    frame leaves at `fields`.

    Attributes:
        fields: `[4]` int64 on the device: address of the features, address of the coordinates,
            number of voxels, flags.
        flags: `[1]` the last of them, 0 when a frame begins.
        features: `[n, c]` float16.
        coords_bzyx: `[n, 4]` int32.
    """

    def __init__(self, device: torch.device) -> None:
        self.fields = torch.zeros(4, dtype=torch.int64, device=device)
        self.flags = self.fields[3:]
        self.features = torch.zeros((0, 1), dtype=torch.float16, device=device)
        self.coords_bzyx = torch.zeros((0, 4), dtype=torch.int32, device=device)

    def __len__(self) -> int:
        return len(self.features)

    def hand_over(self, features: Tensor, coords_bzyx: Tensor) -> None:
        """Name the frame of the launches that follow.

        Args:
            features: `[n, c]` float16, contiguous, on the device; kept until the next frame.
            coords_bzyx: `[n, 4]` int32, the same.
        """
        self.features, self.coords_bzyx = features, coords_bzyx
