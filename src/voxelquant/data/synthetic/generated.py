"""Frames of the world by number, made when they are asked for and written nowhere."""

from __future__ import annotations

import torch

from voxelquant.data.frame import Frame
from voxelquant.data.synthetic.config import WorldConfig, describe_world
from voxelquant.data.synthetic.frames import generate_frames
from voxelquant.errors import DatasetError
from voxelquant.plural import counted

_FRAMES_AT_ONCE = {"cpu": 1, "cuda": 16}  # on a GPU one alone takes several times as long


class GeneratedFrames:
    """The first key frame of scenes 0, 1, 2, ... of a seed.

    Args:
        seed: world seed.
        count: number of frames.
        device: where they are made and stay.
        config: the world.

    Raises:
        DatasetError: a negative seed, or no frame.

    Example:
        >>> frames = GeneratedFrames(seed=7, count=3)
        >>> len(frames), frames[2].points.shape[1]
        (3, 5)
    """

    split = "synthetic"

    def __init__(
        self,
        seed: int,
        count: int,
        *,
        device: torch.device | str = "cpu",
        config: WorldConfig | None = None,
    ) -> None:
        if seed < 0 or count < 1:
            raise DatasetError(
                f"got seed {seed} and {counted(count, 'frame')}, need >= 0 and at least 1"
            )
        self.seed = seed
        self.count = count
        self.device = torch.device(device)
        self.config = config or WorldConfig()
        self._first = 0
        self._run: list[Frame] = []  # frames from `_first` on

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Frame:
        if not 0 <= index < self.count:
            raise IndexError(index)
        size = _FRAMES_AT_ONCE.get(self.device.type, 1)
        first = index // size * size
        if not self._run or first != self._first:
            scenes = range(first, min(first + size, self.count))
            self._run = generate_frames(
                self.seed, scenes, key_frames=1, device=self.device, config=self.config
            )
            self._first = first
        return self._run[index - first]

    def __str__(self) -> str:
        return describe_world(self.seed, self.config)

    @property
    def identity(self) -> str:
        """What decides about every frame, however many are taken."""
        return f"{self}, {self.config}"
