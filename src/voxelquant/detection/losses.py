"""Losses of the CenterPoint head: a focal loss on heatmaps, L1 on boxes at their centres.

Yin 2021 (arXiv:2006.11275); the focal loss is CenterNet's (Zhou 2019, arXiv:1904.07850).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from voxelquant.detection.head_spec import HeadSpec
from voxelquant.detection.targets import TaskTargets

_MIN_PROBABILITY = 1e-4  # keeps the logarithms finite
_MASK_SUM_OFFSET = 1e-4  # keeps a batch without boxes finite; it is part of the published loss
_WITHOUT_VELOCITY = [0, 1, 2, 3, 4, 5, 8, 9]  # columns of anno_box


@dataclass(frozen=True)
class TaskLoss:
    """Loss of one task; everything but `loss` is detached and for the log."""

    loss: Tensor  # [] hm_loss + weight * loc_loss
    hm_loss: Tensor  # []
    loc_loss: Tensor  # [] Σ code_weights * loc_loss_elem
    loc_loss_elem: Tensor  # [n_codes]
    num_positive: Tensor  # [] boxes of this task in the batch


@dataclass(frozen=True)
class LossTerms:
    """What to minimize, and what it is made of."""

    total: Tensor  # [] plain sum over tasks
    tasks: tuple[TaskLoss, ...]


def centerpoint_loss(
    preds: Sequence[Mapping[str, Tensor]], targets: Sequence[TaskTargets], spec: HeadSpec
) -> LossTerms:
    """Loss of a batch, computed in float32 and without a host synchronisation.

    Args:
        preds: Per task the raw maps `reg, height, dim, rot, hm` and, with velocity, `vel`;
            [b, channels, H, W] each.
        targets: Per task, batched.
        spec: Loss weights and whether there is a velocity head.
    """
    tasks = tuple(
        _task_loss(maps, target, spec) for maps, target in zip(preds, targets, strict=True)
    )
    return LossTerms(torch.stack([task.loss for task in tasks]).sum(), tasks)


def fast_focal_loss(hm_logits: Tensor, targets: TaskTargets) -> Tensor:
    """Focal loss of a heatmap, normalized by the number of boxes of this task in the batch.

    Every cell pulls its prediction p down by p²·(1 − g)⁴, g being the target Gaussian; every box
    pulls it up at its centre by (1 − p)². A batch without boxes is normalized by 1.

    Args:
        hm_logits: [b, classes, H, W] before the sigmoid.
        targets: Batched.

    Returns:
        [] float32.
    """
    p = hm_logits.float().sigmoid().clamp(_MIN_PROBABILITY, 1 - _MIN_PROBABILITY)
    negative = ((1 - p).log() * p.square() * (1 - targets.hm).pow(4)).sum()
    mask = targets.mask.float()
    n_cells = p.shape[2] * p.shape[3]
    p_at_box = p.flatten(1).gather(1, targets.cat * n_cells + targets.ind)  # [b, max_objs]
    positive = (mask * p_at_box.log() * (1 - p_at_box).square()).sum()
    return -(positive + negative) / mask.sum().clamp_min(1)


def box_l1_loss(maps: Mapping[str, Tensor], targets: TaskTargets, spec: HeadSpec) -> Tensor:
    """Mean absolute error of each regressed number at the boxes' centres, [n_codes] float32.

    Two boxes in one cell are both compared with that cell's prediction.

    Args:
        maps: Raw maps of one task, [b, channels, H, W] each.
        targets: Batched.
        spec: Tells the order of the codes and whether velocity is among them.
    """
    pred_at_box = regressions_at(maps, targets.ind, spec)  # [b, max_objs, codes]
    target = targets.anno_box if spec.with_velocity else targets.anno_box[..., _WITHOUT_VELOCITY]
    mask = targets.mask.float()
    error = (pred_at_box - target).abs() * mask[..., None]  # [b, max_objs, codes]
    return error.sum(dim=(0, 1)) / (mask.sum() + _MASK_SUM_OFFSET)


def regressions_at(maps: Mapping[str, Tensor], cells: Tensor, spec: HeadSpec) -> Tensor:
    """What the head regresses at some cells, in the order of `spec.regression_heads`.

    Args:
        maps: Raw maps of one task, [b, channels, H, W] each.
        cells: [b, k] int64, iy * W + ix.
        spec: Tells the order of the codes.

    Returns:
        [b, k, n_codes] float32.
    """
    names = [name for name, _ in spec.regression_heads]
    values = torch.cat([maps[name].float() for name in names], dim=1).flatten(2)  # [b, codes, HW]
    return values.gather(2, cells[:, None].expand(-1, values.shape[1], -1)).transpose(1, 2)


def _task_loss(maps: Mapping[str, Tensor], targets: TaskTargets, spec: HeadSpec) -> TaskLoss:
    hm_loss = fast_focal_loss(maps["hm"], targets)
    elements = box_l1_loss(maps, targets, spec)
    loc_loss = (elements * elements.new_tensor(spec.loss.code_weights)).sum()
    return TaskLoss(
        loss=hm_loss + spec.loss.weight * loc_loss,
        hm_loss=hm_loss.detach(),
        loc_loss=loc_loss.detach(),
        loc_loss_elem=elements.detach(),
        num_positive=targets.mask.float().sum(),
    )
