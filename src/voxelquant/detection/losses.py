"""Losses of the CenterPoint head: a focal loss on heatmaps, L1 on boxes at their centres.

Yin 2021 (arXiv:2006.11275); the focal loss is CenterNet's (Zhou 2019, arXiv:1904.07850).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from voxelquant.detection.head_spec import HeadSpec
from voxelquant.detection.targets import TaskTargets
from voxelquant.numerics import constant_on

_MIN_PROBABILITY = 1e-4  # keeps the logarithms finite
_MASK_SUM_OFFSET = 1e-4  # keeps a batch without boxes finite; it is part of the published loss
_VELOCITY = slice(6, 8)  # columns of anno_box


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

    All tasks are computed at once: one by one, their few hundred launches would take a host longer
    than the whole forward takes a GPU.

    Args:
        preds: Per task the raw maps `reg, height, dim, rot, hm` and, with velocity, `vel`;
            [b, channels, H, W] each.
        targets: Per task, batched.
        spec: Loss weights and whether there is a velocity head.
    """
    hm_loss = _focal_losses([maps["hm"] for maps in preds], targets)  # [t]
    elements = _box_errors(preds, targets, spec)  # [t, n_codes]
    weights = constant_on(elements.device, spec.loss.code_weights)
    loc_loss = (elements * weights).sum(dim=1)  # [t]
    loss = hm_loss + spec.loss.weight * loc_loss
    columns = (
        loss,
        hm_loss.detach(),
        loc_loss.detach(),
        elements.detach(),
        _mask_of(targets).sum(dim=(0, 2)),
    )
    by_task = zip(*(column.unbind() for column in columns), strict=True)
    return LossTerms(loss.sum(), tuple(TaskLoss(*values) for values in by_task))


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
    return _focal_losses([hm_logits], [targets])[0]


def _focal_losses(logits: Sequence[Tensor], targets: Sequence[TaskTargets]) -> Tensor:
    """`fast_focal_loss` of every task, [t]; c counts the classes of all of them."""
    counts = [heatmap.shape[1] for heatmap in logits]
    goals = torch.cat([target.hm for target in targets], dim=1)  # [b, c, H, W]
    p = torch.cat(tuple(logits), dim=1).float().sigmoid()
    p = p.clamp(_MIN_PROBABILITY, 1 - _MIN_PROBABILITY)
    pull_down = (1 - p).log() * p.square() * (1 - goals).pow(4)
    of_task = _membership(tuple(counts), p.device)  # [c, t]
    negative = (pull_down.sum(dim=(0, 2, 3))[:, None] * of_task).sum(dim=0)
    first_class = constant_on(p.device, (0, *accumulate(counts[:-1])), torch.int64)
    classes = torch.stack([target.cat for target in targets], dim=1) + first_class[:, None]
    places = classes * (p.shape[2] * p.shape[3]) + _cells_of(targets)  # [b, t, max_objs]
    p_at_box = p.flatten(1).gather(1, places.flatten(1)).view_as(places)
    mask = _mask_of(targets)
    positive = (mask * p_at_box.log() * (1 - p_at_box).square()).sum(dim=(0, 2))
    return -(positive + negative) / mask.sum(dim=(0, 2)).clamp_min(1)


def _box_errors(
    preds: Sequence[Mapping[str, Tensor]], targets: Sequence[TaskTargets], spec: HeadSpec
) -> Tensor:
    """Mean absolute error of each regressed number at the boxes' centres, [t, n_codes] float32.

    Two boxes in one cell are both compared with that cell's prediction.
    """
    names = [name for name, _ in spec.regression_heads]
    values = torch.cat([maps[name] for maps in preds for name in names], dim=1).float()
    values = values.view(len(values), len(preds), spec.n_codes, -1)  # [b, t, codes, HW]
    cells = _cells_of(targets)[:, :, None].expand(-1, -1, spec.n_codes, -1)
    wanted = torch.stack([target.anno_box for target in targets], dim=1).transpose(2, 3)
    if not spec.with_velocity:
        wanted = torch.cat((wanted[:, :, : _VELOCITY.start], wanted[:, :, _VELOCITY.stop :]), dim=2)
    mask = _mask_of(targets)[:, :, None]
    error = (values.gather(3, cells) - wanted).abs() * mask  # [b, t, codes, max_objs]
    return error.sum(dim=(0, 3)) / (mask.sum(dim=(0, 3)) + _MASK_SUM_OFFSET)


def _mask_of(targets: Sequence[TaskTargets]) -> Tensor:
    """[b, t, max_objs] float32, 1 where a slot holds a box."""
    return torch.stack([target.mask for target in targets], dim=1).float()


def _cells_of(targets: Sequence[TaskTargets]) -> Tensor:
    """[b, t, max_objs] int64, iy * W + ix."""
    return torch.stack([target.ind for target in targets], dim=1)


def _membership(class_counts: tuple[int, ...], device: torch.device) -> Tensor:
    """[c, t] float32, 1 where a class belongs to a task."""
    tasks = range(len(class_counts))
    rows = [float(own == task) for own in tasks for _ in range(class_counts[own]) for task in tasks]
    return constant_on(device, tuple(rows)).view(-1, len(class_counts))


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
