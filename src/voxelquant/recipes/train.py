"""Train a CenterPoint detector with the reference's optimiser and one-cycle schedule."""

from __future__ import annotations

import torch
from torch import Tensor

from voxelquant.data.frame import Frame
from voxelquant.detection.config import DetectorConfig
from voxelquant.detection.dense_graph import GraphedDetector, LossGraph, can_be_graphed
from voxelquant.detection.detector import CenterPoint
from voxelquant.detection.losses import centerpoint_loss
from voxelquant.detection.targets import TaskTargets, assign_targets_batch
from voxelquant.errors import BadInputError
from voxelquant.recipes.distributed import World
from voxelquant.recipes.training_batch import TrainingBatch
from voxelquant.recipes.training_loop import Predict, Trainee
from voxelquant.sparse import SparseTensor


class DetectorTrainee(Trainee):
    """A detector that learns from labelled frames.

    Args:
        model: the detector on its device.
        config: training settings, grid and classes.
        amp: bfloat16 autocast. On a GPU neck and head are then computed channels last, which is
            what its tensor cores take; state dicts have no order of memory.
        graphed: whether neck and head may be launched as CUDA graphs.
    """

    def __init__(
        self,
        model: CenterPoint,
        config: DetectorConfig,
        *,
        amp: bool = False,
        graphed: bool = True,
    ) -> None:
        self.detector = model
        self.spec = config.head_spec
        self.amp = amp
        self.graphed = graphed
        if amp and next(model.parameters()).is_cuda:
            for dense in (model.neck, model.bbox_head):
                # torch's stubs do not know this overload of `Module.to`.
                dense.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        super().__init__(model, config.train.schedule)

    def prepare(self, frames: list[Frame]) -> TrainingBatch:
        """Voxels, kernel maps and targets."""
        x = self.read(frames)
        self.detector.backbone.build_maps(x)
        return TrainingBatch(frames, x, self.assign(frames))

    def read(self, frames: list[Frame]) -> SparseTensor:
        """Network input of a batch, with the voxel limit of training."""
        return self.detector.read_clouds([frame.points for frame in frames], train=True)

    def assign(self, frames: list[Frame]) -> list[TaskTargets]:
        """Targets of each task, where the points are.

        Raises:
            BadInputError: a frame has no annotations.
        """
        device = frames[0].points.device
        boxes = [_require(frame.boxes_det3d, frame.token) for frame in frames]
        labels = [_require(frame.labels, frame.token) for frame in frames]
        # Boxes may have stayed with the host.
        return assign_targets_batch(boxes, labels, self.spec, device=device)

    def predictor(self, world: World, batch_size: int) -> Predict:
        """Runs the model; alone on a GPU, what follows the backbone is graphs."""
        graphed = self.graphed and world.shard.world_size == 1 and can_be_graphed(self.detector)
        if not graphed:
            return super().predictor(world, batch_size)
        self.set_mode()
        return self.record(batch_size)

    def record(self, batch_size: int) -> Predict:
        """Runs the model with neck, head and loss as graphs."""
        graph = LossGraph(self.detector, batch_size, amp=self.amp)
        return GraphedDetector(self.detector, graph)

    def loss(self, predict: Predict, batch: TrainingBatch) -> Tensor:
        """Focal and box losses of CenterPoint."""
        if isinstance(predict, GraphedDetector):
            with self._autocast(batch.x):
                return predict.loss(batch.x, batch.targets)
        maps = self.predict(predict, batch.x)
        return centerpoint_loss(maps, batch.targets, self.spec).total

    def predict(self, predict: Predict, x: SparseTensor) -> list[dict[str, Tensor]]:
        """Raw maps of each task, in bfloat16 with AMP; losses turn them into float32 themselves."""
        with self._autocast(x):
            return predict(x)

    def _autocast(self, x: SparseTensor) -> torch.autocast:
        return torch.autocast(x.features.device.type, dtype=torch.bfloat16, enabled=self.amp)


def _require(value: Tensor | None, token: str) -> Tensor:
    if value is None:
        raise BadInputError(f"frame {token} has no annotations; train on an annotated split")
    return value
