"""Train a CenterPoint detector with the reference's optimiser and one-cycle schedule."""

from __future__ import annotations

import torch
from torch import Tensor

from voxelquant.data.frame import Frame
from voxelquant.detection.config import DetectorConfig
from voxelquant.detection.detector import CenterPoint
from voxelquant.detection.head_spec import HeadSpec
from voxelquant.detection.losses import LossTerms, centerpoint_loss
from voxelquant.detection.targets import assign_targets_batch
from voxelquant.errors import BadInputError
from voxelquant.recipes.training_loop import Predict, Trainee
from voxelquant.sparse import SparseTensor


class DetectorTrainee(Trainee):
    """A detector that learns from labelled frames.

    Args:
        model: the detector on its device.
        config: training settings, grid and classes.
        amp: bfloat16 autocast.
    """

    def __init__(self, model: CenterPoint, config: DetectorConfig, *, amp: bool = False) -> None:
        self.detector = model
        self.spec = config.head_spec
        self.amp = amp
        super().__init__(model, config.train.schedule)

    def loss(self, predict: Predict, frames: list[Frame]) -> Tensor:
        """Focal and box losses of CenterPoint."""
        return detection_loss(self.predict(predict, self.read(frames)), frames, self.spec).total

    def read(self, frames: list[Frame]) -> SparseTensor:
        """Network input of a batch, with the voxel limit of training."""
        return self.detector.read_clouds([frame.points for frame in frames], train=True)

    def predict(self, predict: Predict, x: SparseTensor) -> list[dict[str, Tensor]]:
        """Raw maps of each task in float32."""
        with torch.autocast(x.features.device.type, dtype=torch.bfloat16, enabled=self.amp):
            predictions = predict(x)
        # Losses in float32: exp, log and sums over whole maps lose too much in bfloat16.
        return [{k: v.float() for k, v in task.items()} for task in predictions]


def detection_loss(
    predictions: list[dict[str, Tensor]], frames: list[Frame], spec: HeadSpec
) -> LossTerms:
    """Loss of a batch of labelled frames.

    Raises:
        BadInputError: a frame has no annotations.
    """
    boxes = [_require(frame.boxes_det3d, frame.token) for frame in frames]
    labels = [_require(frame.labels, frame.token) for frame in frames]
    return centerpoint_loss(predictions, assign_targets_batch(boxes, labels, spec), spec)


def _require(value: Tensor | None, token: str) -> Tensor:
    if value is None:
        raise BadInputError(f"frame {token} has no annotations; train on an annotated split")
    return value
