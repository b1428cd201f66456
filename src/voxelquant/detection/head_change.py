"""How far a head's output moves where it matters, without labels.

The float model's own detections stand in for the objects. Of these *positives* (scores above 0.1
after suppression, the best 500 of a frame) two things are measured of another network on the same
frame:

    head error = |Δ logit of the positive's class| + w · Σ_j c_j · |Δ regression_j|   at its cell,
    churn      = (positives lost + boxes created) / positives,

with the weights w and c_j of the regression in the training loss. A positive is lost if no box of
the other network has its class and overlaps it by half seen from above; a box of the other
network that scores above 0.1 is created if no positive has its class and overlaps it so. The proxy
is the sum of both, pooled over frames: mean head error over all positives plus churn. Errors in
empty cells, 87 % of the map, do not enter.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from voxelquant.detection.decode import Detections, locate_detections
from voxelquant.detection.head_spec import HeadSpec
from voxelquant.geometry import bev_rectangles, rotated_iou_bev

POSITIVE_SCORE = 0.1
MOST_POSITIVES = 500
SAME_BOX_IOU = 0.5


@dataclass(frozen=True)
class HeadChange:
    """Change of one frame against its positives; sums, so that frames can be pooled."""

    head_error: float  # summed over positives
    positives: int
    lost: int
    created: int


@dataclass(frozen=True)
class Positives:
    """What the float model found in one frame, and what its head said there.

    Attributes:
        boxes: the positives.
        tasks: `[k]` int64.
        cells_yx: `[k, 2]` int64.
        outputs: `[k, 1 + codes]`, logit of the class, then the regression vector.
        spec: the head.
    """

    boxes: Detections
    tasks: Tensor
    cells_yx: Tensor
    outputs: Tensor
    spec: HeadSpec

    @classmethod
    def of(cls, preds: Sequence[Mapping[str, Tensor]], spec: HeadSpec) -> Positives:
        """Positives of the float model's raw maps of one frame, `[1, channels, H, W]` each."""
        (located,) = locate_detections(preds, spec)
        found = located.detections
        rows = found.scores.argsort(descending=True, stable=True)
        rows = rows[found.scores[rows] > POSITIVE_SCORE][:MOST_POSITIVES]
        boxes = Detections(found.boxes_det3d[rows], found.scores[rows], found.labels[rows])
        tasks, cells = located.tasks[rows], located.cells_yx[rows]
        outputs = _outputs_at(preds, tasks, cells, boxes.labels, spec)
        return cls(boxes, tasks, cells, outputs, spec)

    def change_in(
        self, preds: Sequence[Mapping[str, Tensor]], detections: Detections
    ) -> HeadChange:
        """How another network's raw maps and boxes of the same frame differ."""
        outputs = _outputs_at(preds, self.tasks, self.cells_yx, self.boxes.labels, self.spec)
        loss = self.spec.loss
        weights = outputs.new_tensor([1.0, *(loss.weight * c for c in loss.code_weights)])
        error = ((outputs - self.outputs).abs() * weights).double().sum()
        shown = detections.scores > POSITIVE_SCORE
        boxes, labels = detections.boxes_det3d[shown], detections.labels[shown]
        overlap = rotated_iou_bev(
            bev_rectangles(self.boxes.boxes_det3d), bev_rectangles(boxes.to(self.boxes.scores))
        )
        same = (overlap >= SAME_BOX_IOU) & (self.boxes.labels[:, None] == labels)
        return HeadChange(
            head_error=float(error),
            positives=len(self.boxes),
            lost=int((~same.any(1)).sum()),
            created=int((~same.any(0)).sum()),
        )


def _outputs_at(
    preds: Sequence[Mapping[str, Tensor]],
    tasks: Tensor,
    cells_yx: Tensor,
    labels: Tensor,
    spec: HeadSpec,
) -> Tensor:
    outputs = cells_yx.new_zeros((len(tasks), 1 + spec.n_codes), dtype=torch.float32)
    for task, maps in enumerate(preds):
        mine = (tasks == task).nonzero().squeeze(1)
        iy, ix = cells_yx[mine].unbind(1)
        logit = maps["hm"][0, labels[mine] - spec.label_offsets[task], iy, ix]
        codes = [maps[name][0, :, iy, ix].T for name, _ in spec.regression_heads]
        outputs[mine] = torch.cat([logit[:, None], *codes], dim=1).float()
    return outputs
