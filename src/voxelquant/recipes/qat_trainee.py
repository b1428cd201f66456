"""What quantization-aware training trains: a fake-quant detector with its ranges, and how."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from voxelquant.data.frame import Frame
from voxelquant.detection.config import DetectorConfig
from voxelquant.detection.dense_graph import DenseGraph
from voxelquant.detection.detector import CenterPoint
from voxelquant.detection.distill import distillation_loss
from voxelquant.detection.losses import centerpoint_loss
from voxelquant.detection.targets import TaskTargets
from voxelquant.quant.range_trainer import RangeTrainer
from voxelquant.recipes.distributed import World
from voxelquant.recipes.train import DetectorTrainee
from voxelquant.recipes.training_batch import TrainingBatch
from voxelquant.recipes.training_loop import Predict, adam


@dataclass(frozen=True)
class QatOptions:
    """What a training with fake quantization does beside the schedule.

    Attributes:
        amp: bfloat16 autocast of all that is not fake-quantized.
        graphs: on one GPU, neck and head are launched as CUDA graphs.
        freeze_bn: neck and head normalise by their running statistics, which stay.
        task_weight: factor on the loss of the labels; 0 needs none.
        distill: factor on the distance to the teacher.
        teacher: the float detector, in eval mode; needed where `distill` is above 0.
    """

    amp: bool = False
    graphs: bool = True
    freeze_bn: bool = False
    task_weight: float = 1.0
    distill: float = 0.0
    teacher: CenterPoint | None = None


class QatTrainee(DetectorTrainee):
    """A fake-quant detector: every weight trains, straight through the rounding.

    Args:
        model: fake-quant detector on its device, calibrated.
        config: training settings, grid and classes.
        ranges: trainer of its ranges.
        options: losses and modes.
    """

    def __init__(
        self,
        model: CenterPoint,
        config: DetectorConfig,
        ranges: RangeTrainer,
        options: QatOptions | None = None,
    ) -> None:
        self.ranges = ranges
        self.options = options or QatOptions()
        super().__init__(model, config, amp=self.options.amp, graphed=self.options.graphs)

    def build_optimizer(self) -> torch.optim.AdamW:
        """Every weight and bias; learned ranges apart, without decay and at a rate of their own."""
        learned = {id(growth) for growth in self.ranges.learned}
        weights = [p for p in self.parameters if id(p) not in learned]
        groups: list[dict[str, object]] = [{"params": weights}]
        if learned:
            factor = self.ranges.policy.range_lr_factor
            own = {"params": self.ranges.learned, "weight_decay": 0.0, "lr_factor": factor}
            groups.append(own)
        return adam(groups, self.schedule)

    def set_mode(self) -> None:
        """Training mode, but for batch norms that are to keep their statistics."""
        self.model.train()
        if not self.options.freeze_bn:
            return
        for module in self.model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()

    def record(self, batch_size: int) -> Predict:
        """Runs the model with neck and head as graphs; its losses are of maps."""
        dense = DenseGraph(self.detector, batch_size, amp=self.amp)
        return partial(self.detector, dense=dense)

    def assign(self, frames: list[Frame]) -> list[TaskTargets]:
        """Targets of each task; none where labels play no part."""
        return super().assign(frames) if self.options.task_weight > 0.0 else []

    def loss(self, predict: Predict, batch: TrainingBatch) -> Tensor:
        """Loss of the labels, distance to the teacher, or both."""
        predictions = self.predict(predict, batch.x)
        parts = []
        if self.options.task_weight > 0.0:
            task = centerpoint_loss(predictions, batch.targets, self.spec).total
            parts.append(self.options.task_weight * task)
        if self.options.distill > 0.0:
            assert self.options.teacher is not None
            with torch.no_grad():
                wanted = self.predict(self.options.teacher, batch.x)
            distance = distillation_loss(predictions, wanted, self.spec)
            parts.append(self.options.distill * distance)
        return torch.stack(parts).sum()

    def before_update(self, step: int) -> None:
        """Frozen ranges get no gradient."""
        self.ranges.before_update(step)

    def after_update(self, step: int, world: World) -> None:
        """Ranges move, in step on all processes."""
        self.ranges.after_update(step, world.largest)
