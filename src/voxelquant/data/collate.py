"""Frames of one step, as training and evaluation take them."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from voxelquant.data.frame import Frame
from voxelquant.errors import DatasetError


@dataclass(frozen=True)
class FrameBatch:
    """Frames side by side; clouds and box sets differ in length, so nothing is stacked."""

    frames: tuple[Frame, ...]

    @property
    def tokens(self) -> list[str]:
        """Sample token of each frame."""
        return [frame.token for frame in self.frames]

    @property
    def points(self) -> list[Tensor]:
        """[p, 5] of each frame."""
        return [frame.points for frame in self.frames]

    @property
    def boxes_det3d(self) -> list[Tensor]:
        """[n, 9] of each frame.

        Raises:
            DatasetError: A frame has no annotations.
        """
        return [_annotated(frame.boxes_det3d, frame.token) for frame in self.frames]

    @property
    def labels(self) -> list[Tensor]:
        """[n] of each frame.

        Raises:
            DatasetError: A frame has no annotations.
        """
        return [_annotated(frame.labels, frame.token) for frame in self.frames]

    def __len__(self) -> int:
        return len(self.frames)

    def to(self, device: torch.device | str) -> "FrameBatch":
        """Copy of the batch with every tensor on `device`."""
        return FrameBatch(tuple(frame.to(device) for frame in self.frames))

    def pin_memory(self) -> "FrameBatch":
        """Copy whose tensors a GPU can fetch while the CPU goes on."""
        return FrameBatch(tuple(_pinned(frame) for frame in self.frames))


def collate_frames(frames: Sequence[Frame]) -> FrameBatch:
    """Frames of one step."""
    return FrameBatch(tuple(frames))


def _annotated(value: Tensor | None, token: str) -> Tensor:
    if value is None:
        raise DatasetError(f"sample {token} has no annotations; use an annotated split")
    return value


def _pinned(frame: Frame) -> Frame:
    pinned: dict[str, Any] = {
        name: value.pin_memory() for name, value in vars(frame).items() if isinstance(value, Tensor)
    }
    return replace(frame, **pinned)
