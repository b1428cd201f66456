"""Rotated overlap as the CUDA kernel computes it whose boxes the original detectors keep.

The overlap of two rectangles is taken as the polygon through

- the points where an edge of one crosses an edge of the other, and
- the corners of either that lie in the other, where "in" reaches `CORNER_MARGIN_M` too far,

sorted by their angle around their mean. Corners that are truly inside and crossings are the
vertices of the intersection; a corner just outside of the other rectangle is a vertex too many,
which makes the overlap larger, by up to the margin times the length of an edge. Rectangles that
are less than the margin apart "overlap".

`overlap.rotated_iou_bev_pairs` is exact and is what everybody should use who need not decide as
the original does. Everything here is rounded to the dtype of the boxes, on coordinates as they
are: with float32 and 50 m, an overlap is right to some 1e-5 of the perimeter.
"""

import torch
from torch import Tensor

from voxelquant.geometry.boxes import box_corners_bev
from voxelquant.geometry.overlap import near_pairs, require_pairs, rotated_iou_bev_pairs

CORNER_MARGIN_M = 0.01
_MIN_UNION_M2 = 1e-8
_MAX_PAIRS = 1 << 16  # bounds the working memory to about 100 MB
_Points = tuple[Tensor, Tensor]  # x and y


def vertex_iou_above(a: Tensor, b: Tensor, threshold: float) -> Tensor:
    """Which rectangles of `a` and `b` overlap by more than the threshold, corners with a margin.

    Args:
        a: [n, 5] `x, y, l, w, θ`, float32 or float64.
        b: [m, 5], same dtype and device.
        threshold: at least 0; reached but not passed is not above.

    Returns:
        [n, m] bool.

    Raises:
        GeometryError: Not rectangles, or two dtypes or devices.
    """
    rows, cols = near_pairs(a, b, slack_m=2 * CORNER_MARGIN_M)
    first, second = a[rows], b[cols]
    iou = rotated_iou_bev_pairs(first, second)
    # Most pairs are far below, or have no corner within the margin: then the polygon is the
    # intersection, and the exact overlap, which costs a fifth, decides.
    undecided = _may_pass(first, second, iou, threshold).nonzero().squeeze(1)
    undecided = undecided[_has_corner_within_margin(first[undecided], second[undecided])]
    if len(undecided) > 0:
        iou[undecided] = vertex_iou_bev_pairs(first[undecided], second[undecided])
    above = torch.zeros((len(a), len(b)), dtype=torch.bool, device=a.device)
    above[rows, cols] = iou > threshold
    return above


def vertex_iou_bev_pairs(a: Tensor, b: Tensor) -> Tensor:
    """Intersection over union of rectangle k of `a` with rectangle k of `b`, corners with a margin.

    Args:
        a: [n, 5] `x, y, l, w, θ`, float32 or float64.
        b: [n, 5], same dtype and device.

    Returns:
        [n], at least 0; above 1 where rectangles are hardly larger than the margin.

    Raises:
        GeometryError: Not rectangles, other lengths, or two dtypes or devices.

    Example:
        >>> squares = torch.tensor([[0.0, 0.0, 1.0, 1.0, 0.0], [1.0, 0.0, 1.0, 1.0, 0.0]])
        >>> apart = squares[1:] + torch.tensor([0.005, 0, 0, 0, 0])
        >>> vertex_iou_bev_pairs(squares[:1], apart)  # a gap of 5 mm, counted as overlap
        tensor([0.0025])
    """
    require_pairs(a, b)
    chunks = zip(a.split(_MAX_PAIRS), b.split(_MAX_PAIRS), strict=True)
    return torch.cat([_iou(*chunk) for chunk in chunks])


def _iou(a: Tensor, b: Tensor) -> Tensor:
    (x_a, y_a), (x_b, y_b) = _corners(a), _corners(b)  # [4, n] each
    crosses, x_cross, y_cross = _edge_crossings((x_a, y_a), (x_b, y_b))  # [16, n]
    b_in_a = _excess_m(a, (x_b, y_b)) < CORNER_MARGIN_M
    a_in_b = _excess_m(b, (x_a, y_a)) < CORNER_MARGIN_M
    valid = torch.cat((crosses, b_in_a, a_in_b))  # [24, n]
    area = _star_area(valid, torch.cat((x_cross, x_b, x_a)), torch.cat((y_cross, y_b, y_a)))
    return area / (a[:, 2] * a[:, 3] + b[:, 2] * b[:, 3] - area).clamp_min(_MIN_UNION_M2)


def _may_pass(a: Tensor, b: Tensor, iou: Tensor, threshold: float) -> Tensor:
    """Whether pairs of a given exact overlap may pass the threshold with the margin, [n].

    All vertices lie in both rectangles grown by the margin on every side, whose intersection is
    larger than the exact one by at most the two rims.
    """
    areas = a[:, 2] * a[:, 3] + b[:, 2] * b[:, 3]
    sides = (a[:, 2:4] + b[:, 2:4]).sum(1)
    rims = 2 * CORNER_MARGIN_M * sides + 8 * CORNER_MARGIN_M**2
    overlap = iou / (1 + iou) * areas + rims
    return overlap * (1 + threshold) >= areas * threshold


def _has_corner_within_margin(a: Tensor, b: Tensor) -> Tensor:
    """Whether a corner of one rectangle is outside of the other, by less than the margin, [n]."""
    excess = torch.cat((_excess_m(a, _corners(b)), _excess_m(b, _corners(a))))  # [8, n]
    return ((excess >= 0) & (excess < CORNER_MARGIN_M)).any(0)


def _corners(box: Tensor) -> _Points:
    """Corners of rectangles, [4, n] each."""
    x, y = box_corners_bev(box).permute(2, 1, 0).contiguous()
    return x, y


def _excess_m(box: Tensor, corners: _Points) -> Tensor:
    """How far corners, [4, n], stand out of the rectangle of their column, along its own axes.

    Negative inside; the larger of the two axes.
    """
    dx, dy = corners[0] - box[:, 0], corners[1] - box[:, 1]
    cos, sin = box[:, 4].cos(), box[:, 4].sin()
    along, across = dx * cos + dy * sin, dy * cos - dx * sin
    return torch.maximum(along.abs() - box[:, 2] / 2, across.abs() - box[:, 3] / 2)


def _edge_crossings(a: _Points, b: _Points) -> tuple[Tensor, Tensor, Tensor]:
    """Where each edge of `a` crosses each of `b`: whether, x and y, [16, n] each.

    Edges that only touch, or lie on one line, do not cross.
    """
    p0 = tuple(part[:, None] for part in a)  # [4, 1, n]: the edge from p0 to p1
    p1 = tuple(part.roll(-1, 0)[:, None] for part in a)
    q0 = tuple(part[None] for part in b)  # [1, 4, n]
    q1 = tuple(part.roll(-1, 0)[None] for part in b)
    end_q0, end_q1 = _side(p0, p1, q0), _side(p0, p1, q1)  # of p: [4, 4, n]
    end_p0, end_p1 = _side(q0, q1, p0), _side(q0, q1, p1)  # of q
    crosses = (end_q0 * end_q1 < 0) & (end_p0 * end_p1 < 0)
    whole = torch.where(crosses, end_q1 - end_q0, 1)
    x, y = ((end_q1 * u - end_q0 * v) / whole for u, v in zip(q0, q1, strict=True))
    return crosses.flatten(0, 1), x.flatten(0, 1), y.flatten(0, 1)


def _side(start: tuple[Tensor, ...], end: tuple[Tensor, ...], point: tuple[Tensor, ...]) -> Tensor:
    """Doubled area of the triangle start, end, point: positive where the point lies to the left."""
    (x0, y0), (x1, y1), (x, y) = start, end, point
    return (x1 - x0) * (y - y0) - (x - x0) * (y1 - y0)


def _star_area(valid: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Area of the polygon through the valid points in the order of their angle around their mean.

    Args:
        valid: [k, n] bool.
        x: [k, n].
        y: [k, n].

    Returns:
        [n]; 0 where fewer than three points are valid.
    """
    count = valid.sum(0).clamp_min(1)
    dx, dy = (part - torch.where(valid, part, 0).sum(0) / count for part in (x, y))
    angle = torch.where(valid, torch.atan2(dy, dx), torch.inf)
    used = int(count.max()) if count.numel() else 1
    order = angle.T.sort(dim=1, stable=True).indices[:, :used]  # valid ones first
    x, y, valid = (part.T.gather(1, order) for part in (x, y, valid))  # [n, used]
    # Points that are not there coincide with the first one, and add no area.
    x, y = ((torch.where(valid, part, part[:, :1]) - part[:, :1]) for part in (x, y))
    return (x[:, :-1] * y[:, 1:] - y[:, :-1] * x[:, 1:]).sum(1).abs() / 2
