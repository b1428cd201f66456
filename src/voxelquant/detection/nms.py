"""Non-maximum suppression of one task's boxes, over its classes together.

The overlaps are computed on the device of the boxes and only for pairs close enough to overlap.
The greedy pass always runs on the CPU: it is a chain of up to a thousand dependent steps, each a
bit-wise OR of one row; on a GPU every step would cost a kernel launch, while the matrix they need
is one copy of a megabyte.
"""

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from voxelquant.detection.head_spec import NmsSpec
from voxelquant.geometry import bev_rectangles, near_pairs, rotated_iou_bev_pairs


def rotated_nms(boxes_det3d: Tensor, scores: Tensor, spec: NmsSpec) -> Tensor:
    """Keep the best box of every cluster that overlaps seen from above; heights are ignored.

    The best `pre_max_size` boxes take part; a box is dropped when its overlap with a better one
    that was kept is *above* `iou_threshold`; the best `post_max_size` are returned. Equal scores
    keep their order.

    Args:
        boxes_det3d: [n, 9] or [n, 7].
        scores: [n].
        spec: Limits and threshold.

    Returns:
        Rows to keep, [kept] int64, best score first, on the device of the boxes.
    """
    order = scores.argsort(descending=True, stable=True)[: spec.pre_max_size]
    rectangles = bev_rectangles(boxes_det3d[order].float())
    better, worse = near_pairs(rectangles, rectangles)
    ordered = better < worse
    better, worse = better[ordered], worse[ordered]
    iou = rotated_iou_bev_pairs(rectangles[better], rectangles[worse])
    suppresses = torch.zeros((len(order), len(order)), dtype=torch.bool, device=order.device)
    suppresses[better, worse] = iou > spec.iou_threshold
    kept = _keep_greedily(suppresses.cpu().numpy(), spec.post_max_size)
    return order[torch.tensor(kept, dtype=torch.int64, device=order.device)]


def circle_nms(
    centers_xy: Tensor, scores: Tensor, *, min_radius_m2: float, post_max_size: int
) -> Tensor:
    """Keep the best box of every cluster of centres; all boxes take part.

    Args:
        centers_xy: [n, 2] metres.
        scores: [n].
        min_radius_m2: A box is dropped when its *squared* distance to a better one that was kept
            is at most this (the configs call it `min_radius`).
        post_max_size: How many boxes are returned.

    Returns:
        Rows to keep, [kept] int64, best score first, on the device of the centres.
    """
    order = scores.argsort(descending=True, stable=True)
    xy = centers_xy[order].float().cpu().numpy()
    alive = np.ones(len(xy), dtype=bool)
    kept: list[int] = []
    for row in range(len(xy)):
        if not alive[row]:
            continue
        kept.append(row)
        if len(kept) == post_max_size:
            break
        alive &= np.square(xy - xy[row]).sum(axis=1) > min_radius_m2
    return order[torch.tensor(kept, dtype=torch.int64, device=order.device)]


def _keep_greedily(suppresses: npt.NDArray[np.bool_], post_max_size: int) -> list[int]:
    """Rows, best first, that no kept row suppresses."""
    suppressed = np.zeros(len(suppresses), dtype=bool)
    kept: list[int] = []
    for row in range(len(suppresses)):
        if suppressed[row]:
            continue
        kept.append(row)
        if len(kept) == post_max_size:
            break
        suppressed |= suppresses[row]
    return kept
