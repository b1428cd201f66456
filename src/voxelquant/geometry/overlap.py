"""Rotated overlap of boxes seen from above.

Exact and without special cases. In the frame of the first rectangle, |x| ≤ hx and |y| ≤ hy, the
second one is a convex polygon with edges y(x). At a given x the overlap reaches from its lower to
its upper edge, both clamped to the first rectangle, hence

    overlap = −∮ clamp(y, −hy, hy) dx,   x within [−hx, hx],

taken counter-clockwise over the four edges of the second rectangle. Each edge has a closed form
(`_clamped_edge_integral`) that is continuous in the corners, so identical, touching, containing
and degenerate rectangles need no tolerance, no point-in-polygon test and no sorting of vertices.
"""

import torch
from torch import Tensor

from voxelquant.errors import GeometryError
from voxelquant.geometry.boxes import box_corners_bev, require_rectangles

_MIN_UNION_M2 = 1e-8  # two rectangles without area overlap by 0, not by 0/0
_MAX_PAIRS = 1 << 18  # bounds the working memory to about 100 MB


def rotated_iou_bev(a: Tensor, b: Tensor) -> Tensor:
    """Intersection over union of every rectangle in `a` with every one in `b`.

    Args:
        a: [n, 5] `x, y, l, w, θ`, float32 or float64.
        b: [m, 5], same dtype and device.

    Returns:
        [n, m] in [0, 1].

    Raises:
        GeometryError: Not rectangles, or two dtypes or devices.

    Example:
        >>> square = torch.tensor([[0.0, 0.0, 2.0, 2.0, 0.0]])
        >>> rotated_iou_bev(square, torch.tensor([[1.0, 0.0, 2.0, 2.0, torch.pi / 2]]))
        tensor([[0.3333]])
    """
    rows, cols = near_pairs(a, b)
    iou = a.new_zeros((len(a), len(b)))
    iou[rows, cols] = rotated_iou_bev_pairs(a[rows], b[cols])
    return iou


def rotated_iou_bev_pairs(a: Tensor, b: Tensor) -> Tensor:
    """Intersection over union of rectangle k of `a` with rectangle k of `b`.

    Args:
        a: [n, 5] `x, y, l, w, θ`, float32 or float64.
        b: [n, 5], same dtype and device.

    Returns:
        [n] in [0, 1].

    Raises:
        GeometryError: Not rectangles, other lengths, or two dtypes or devices.
    """
    require_pairs(a, b)
    if len(a) > _MAX_PAIRS:
        chunks = zip(a.split(_MAX_PAIRS), b.split(_MAX_PAIRS), strict=True)
        return torch.cat([rotated_iou_bev_pairs(*chunk) for chunk in chunks])
    area_a, area_b = (box[:, 2:4].clamp_min(0).prod(dim=1) for box in (a, b))
    overlap = _overlap_area(a, b).clamp_min(0).minimum(torch.minimum(area_a, area_b))
    return overlap / (area_a + area_b - overlap).clamp_min(_MIN_UNION_M2)


def near_pairs(a: Tensor, b: Tensor, *, slack_m: float = 0.0) -> tuple[Tensor, Tensor]:
    """Pairs of rectangles whose circumscribed circles meet: all others cannot overlap.

    Args:
        a: [n, 5] `x, y, l, w, θ`, float32 or float64.
        b: [m, 5], same dtype and device.
        slack_m: circles that are this far apart still count.

    Returns:
        Rows of `a` and of `b`, [pairs] int64 each, sorted by (row of a, row of b).

    Raises:
        GeometryError: Not rectangles, or two dtypes or devices.
    """
    _require_comparable(a, b)
    radius_a, radius_b = (box[:, 2:4].square().sum(dim=1).sqrt() / 2 for box in (a, b))
    dx, dy = (a[:, None, axis] - b[:, axis] for axis in range(2))  # [n, m]
    reach = radius_a[:, None] + radius_b + slack_m
    near = (dx.square() + dy.square()) <= reach.square()
    rows, cols = near.nonzero(as_tuple=True)
    return rows, cols


def rectangles_overlap(a: Tensor, b: Tensor) -> Tensor:
    """Whether every rectangle of `a` shares area with every one of `b`.

    Two rectangles are apart exactly if the direction of a side of one of them separates them.

    Args:
        a: [n, 5] `x, y, l, w, θ`, float32 or float64.
        b: [m, 5], same dtype and device.

    Returns:
        [n, m] bool; False where they merely touch.

    Raises:
        GeometryError: Not rectangles, or two dtypes or devices.

    Example:
        >>> small = torch.tensor([[0.0, 0.0, 1.0, 1.0, 0.3], [9.0, 0.0, 1.0, 1.0, 0.3]])
        >>> rectangles_overlap(small, torch.tensor([[0.0, 0.0, 8.0, 4.0, 0.0]]))
        tensor([[ True],
                [False]])
    """
    _require_comparable(a, b)
    apart = _apart_along_sides(a, b)
    return ~(apart | (apart if a is b else _apart_along_sides(b, a)).T)


def _apart_along_sides(a: Tensor, b: Tensor) -> Tensor:
    """Whether a side of each `a` separates it from each `b`, [n, m]."""
    cos, sin = a[:, 4:5].cos(), a[:, 4:5].sin()
    dx, dy = (b[:, axis] - a[:, axis, None] for axis in range(2))  # [n, m]
    turn = b[:, 4] - a[:, 4:5]
    turn_cos, turn_sin = turn.cos().abs(), turn.sin().abs()
    length, width = b[:, 2], b[:, 3]
    along = (dx * cos + dy * sin).abs() - (length * turn_cos + width * turn_sin) / 2
    across = (dy * cos - dx * sin).abs() - (length * turn_sin + width * turn_cos) / 2
    return (along >= a[:, 2:3] / 2) | (across >= a[:, 3:4] / 2)


def _overlap_area(a: Tensor, b: Tensor) -> Tensor:
    """Area of the intersection of pairs of rectangles, [n]."""
    cos, sin = a[:, 4].cos(), a[:, 4].sin()
    dx, dy = b[:, 0] - a[:, 0], b[:, 1] - a[:, 1]
    b_seen_from_a = torch.stack(
        (dx * cos + dy * sin, dy * cos - dx * sin, *b[:, 2:4].clamp_min(0).T, b[:, 4] - a[:, 4]),
        dim=1,
    )
    start = box_corners_bev(b_seen_from_a)  # [n, 4, 2]
    half_a = a[:, None, 2:4].clamp_min(0) / 2  # [n, 1, 2]
    return -_clamped_edge_integral(start, start.roll(-1, dims=1), half_a).sum(dim=1)


def _clamped_edge_integral(start: Tensor, end: Tensor, half: Tensor) -> Tensor:
    """∫ clamp(y, −hy, hy) dx along segments, over the part with |x| ≤ hx.

    Cut at |x| = hx, the segment runs from (x0, y0) to (x1, y1). It passes y = −hy and y = hy at
    the fractions t and t' (clamped to [0, 1]) of its way, is constant outside of them and linear
    between them: the mean of clamp(y) is clamp(y0) · m + clamp(y1) · (1 − m), m = (t + t') / 2.

    Args:
        start: [n, 4, 2] x and y.
        end: [n, 4, 2].
        half: [n, 1, 2] hx and hy.

    Returns:
        [n, 4].
    """
    (hx, hy), (x, y), (dx, dy) = half.unbind(-1), start.unbind(-1), (end - start).unbind(-1)
    x0, x1 = x.clamp(-hx, hx), end[..., 0].clamp(-hx, hx)
    y0, y1 = (y + dy * _fraction(cut - x, dx) for cut in (x0, x1))
    middle = (_fraction(-hy - y0, y1 - y0) + _fraction(hy - y0, y1 - y0)) / 2
    return (x1 - x0) * (y0.clamp(-hy, hy) * middle + y1.clamp(-hy, hy) * (1 - middle))


def _fraction(part: Tensor, whole: Tensor) -> Tensor:
    """`part / whole` in [0, 1]; any value will do where the whole is nothing."""
    return (part / torch.where(whole == 0, 1, whole)).clamp(0, 1)


def require_pairs(a: Tensor, b: Tensor) -> None:
    """Refuse anything but two equally long lists of comparable BEV rectangles.

    Raises:
        GeometryError: Not rectangles, other lengths, or two dtypes or devices.
    """
    _require_comparable(a, b)
    if len(a) != len(b):
        raise GeometryError(f"pairs of rectangles: got {len(a)} and {len(b)}, need equally many")


def _require_comparable(a: Tensor, b: Tensor) -> None:
    require_rectangles(a)
    require_rectangles(b)
    if a.dtype != b.dtype or a.device != b.device:
        raise GeometryError(
            f"BEV rectangles: got {a.dtype} on {a.device} and {b.dtype} on {b.device}, "
            "need one dtype on one device"
        )
