"""Non-maximum suppression of one task's boxes, over its classes together.

Greedy suppression is a chain: whether a box counts depends on all better ones. It always runs on
the host. The boxes are few (a thousand rectangles are 20 kB, one copy), a thousand dependent steps
cost less there than a thousand kernel launches, and every machine keeps the same boxes.

`rotated_nms` walks the chain in blocks. Within a block of the best boxes left, the overlap matrix
is small; the boxes that the block keeps then clear the rest in one go, so that most overlaps are
never computed. The overlap is the original's, which counts corners up to 1 cm outside as inside
(`voxelquant.geometry.vertex_overlap`), so that the same boxes are kept.
"""

import numpy as np
import torch
from torch import Tensor

from voxelquant.detection.head_spec import NmsSpec
from voxelquant.geometry import bev_rectangles, vertex_iou_above

_BLOCK = 64  # smaller: more calls; larger: overlaps computed in vain


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
    rectangles = bev_rectangles(boxes_det3d[order].detach().float().cpu())
    left = torch.arange(len(order))
    kept = [left[:0]]
    while len(left) > 0 and sum(map(len, kept)) < spec.post_max_size:
        block, left = left[:_BLOCK], left[_BLOCK:]
        clashes = vertex_iou_above(rectangles[block], rectangles[block], spec.iou_threshold)
        kept.append(block[_keep_greedily(clashes)])
        if len(left) > 0:
            cleared = vertex_iou_above(rectangles[kept[-1]], rectangles[left], spec.iou_threshold)
            left = left[~cleared.any(dim=0)]
    return order[torch.cat(kept)[: spec.post_max_size].to(order.device)]


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
    xy = centers_xy[order].detach().float().cpu().numpy()
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


def _keep_greedily(clashes: Tensor) -> Tensor:
    """Rows, best first, that clash with no kept row before them, [kept] int64."""
    rows = clashes.numpy()
    suppressed = np.zeros(len(rows), dtype=bool)
    kept = []
    for row in range(len(rows)):
        if not suppressed[row]:
            kept.append(row)
            suppressed |= rows[row]
    return torch.tensor(kept, dtype=torch.int64)
