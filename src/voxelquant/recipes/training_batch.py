"""What a training step reads: frames, and all that follows from them without the weights."""

from __future__ import annotations

from dataclasses import dataclass, field

from voxelquant.data.frame import Frame
from voxelquant.detection.targets import TaskTargets
from voxelquant.sparse import SparseTensor


@dataclass(frozen=True)
class TrainingBatch:
    """Frames of a step with the network's input.

    Attributes:
        frames: augmented.
        x: their voxels, with the kernel maps of the backbone.
        targets: per task; empty where no loss asks for labels.
    """

    frames: list[Frame]
    x: SparseTensor
    targets: list[TaskTargets] = field(default_factory=list)
