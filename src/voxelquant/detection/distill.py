"""Distillation: how far a head is from that of a teacher, where it matters.

A heatmap is empty almost everywhere, so a mean over all of its cells says little. Compared are the
cells in which the teacher sees an object, and those in which the student sees one most wrongly.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from voxelquant.detection.head_spec import HeadSpec
from voxelquant.detection.losses import regressions_at

# Of each task and frame, and as many again that are none.
MOST_POSITIVES = 500


def distillation_loss(
    student: Sequence[Mapping[str, Tensor]], teacher: Sequence[Mapping[str, Tensor]], spec: HeadSpec
) -> Tensor:
    """Distance of a student's maps to its teacher's; needs no labels.

    Positives are the cells whose teacher's score is above the decoder's threshold, the 500 highest
    of each task and frame; negatives the 500 others with the student's highest scores. The sum over
    both of the Kullback-Leibler divergence of the heatmaps, and over positives of the weighted L1
    distance of the regressions, is divided by the number of positives, so that its terms weigh as
    those of `centerpoint_loss`.

    Args:
        student: per task the raw maps `reg, height, dim, rot, hm` and, with velocity, `vel`;
            [b, channels, H, W] each.
        teacher: the same maps of the float model, on the same input.
        spec: threshold, loss weights and codes.

    Returns:
        [] float32, the sum over tasks; 0 where both agree.
    """
    tasks = zip(student, teacher, strict=True)
    return torch.stack([_task_distance(own, wanted, spec) for own, wanted in tasks]).sum()


def _task_distance(
    student: Mapping[str, Tensor], teacher: Mapping[str, Tensor], spec: HeadSpec
) -> Tensor:
    logits = student["hm"].float().flatten(2)  # [b, classes, HW]
    wanted = teacher["hm"].detach().float().flatten(2)
    seen = wanted.sigmoid().amax(1)  # [b, HW]
    most = min(MOST_POSITIVES, seen.shape[1])
    threshold = spec.decode.score_threshold
    scores, positive = seen.topk(most, dim=1)  # [b, k]
    is_positive = (scores > threshold).float()
    others = logits.detach().sigmoid().amax(1).masked_fill(seen > threshold, -1.0)
    alarms, negative = others.topk(most, dim=1)
    is_negative = (alarms >= 0.0).float()
    heat = (_divergence(logits, wanted, positive) * is_positive).sum()
    heat = heat + (_divergence(logits, wanted, negative) * is_negative).sum()
    error = regressions_at(student, positive, spec) - regressions_at(teacher, positive, spec)
    weights = error.new_tensor(spec.loss.code_weights)
    boxes = ((error.abs() * weights).sum(2) * is_positive).sum()
    return (heat + spec.loss.weight * boxes) / is_positive.sum().clamp_min(1.0)


def _divergence(logits: Tensor, wanted: Tensor, cells: Tensor) -> Tensor:
    """KL(teacher ‖ student) of each cell, summed over classes: `[b, k]`."""
    at = cells[:, None].expand(-1, logits.shape[1], -1)
    own, other = logits.gather(2, at), wanted.gather(2, at)
    target = other.sigmoid()
    cross = binary_cross_entropy_with_logits(own, target, reduction="none")
    entropy = binary_cross_entropy_with_logits(other, target, reduction="none")
    return (cross - entropy).sum(1)
