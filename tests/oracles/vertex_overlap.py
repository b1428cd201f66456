"""The original detectors' overlap of two rectangles, step by step in plain Python.

Nothing of the library is used: rectangles are tuples, arithmetic is double precision.
"""

import math
from itertools import pairwise

Rectangle = tuple[float, float, float, float, float]  # x, y, l, w, θ
Point = tuple[float, float]

MARGIN_M = 0.01


def corners(rectangle: Rectangle) -> list[Point]:
    x, y, length, width, theta = rectangle
    turn = complex(math.cos(theta), math.sin(theta))
    signs = ((-1, -1), (1, -1), (1, 1), (-1, 1))
    turned = [complex(sx * length / 2, sy * width / 2) * turn for sx, sy in signs]
    return [(x + corner.real, y + corner.imag) for corner in turned]


def excess(point: Point, rectangle: Rectangle) -> float:
    """How far a point stands out of a rectangle along the worse of its axes; negative inside."""
    x, y, length, width, theta = rectangle
    seen = complex(point[0] - x, point[1] - y) * complex(math.cos(theta), -math.sin(theta))
    return max(abs(seen.real) - length / 2, abs(seen.imag) - width / 2)


def crossing(p: tuple[Point, Point], q: tuple[Point, Point]) -> Point | None:
    """Where two segments cross, each with an end strictly on either side of the other."""
    (px, py), (qx, qy) = p[0], q[0]
    dpx, dpy = p[1][0] - px, p[1][1] - py
    dqx, dqy = q[1][0] - qx, q[1][1] - qy
    determinant = dpx * dqy - dpy * dqx
    if determinant == 0:
        return None
    along_p = ((qx - px) * dqy - (qy - py) * dqx) / determinant
    along_q = ((qx - px) * dpy - (qy - py) * dpx) / determinant
    if not (0 < along_p < 1 and 0 < along_q < 1):
        return None
    return px + along_p * dpx, py + along_p * dpy


def collected_points(a: Rectangle, b: Rectangle) -> list[Point]:
    edges_a, edges_b = (list(pairwise([*corners(box), corners(box)[0]])) for box in (a, b))
    found = [crossing(p, q) for p in edges_a for q in edges_b]
    points = [point for point in found if point is not None]
    points += [corner for corner in corners(b) if excess(corner, a) < MARGIN_M]
    points += [corner for corner in corners(a) if excess(corner, b) < MARGIN_M]
    return points


def overlap(a: Rectangle, b: Rectangle) -> float:
    points = collected_points(a, b)
    if not points:
        return 0.0
    mean_x = sum(x for x, _ in points) / len(points)
    mean_y = sum(y for _, y in points) / len(points)
    points.sort(key=lambda point: math.atan2(point[1] - mean_y, point[0] - mean_x))
    ring = pairwise([*points, points[0]])
    return abs(sum(x0 * y1 - x1 * y0 for (x0, y0), (x1, y1) in ring)) / 2


def iou(a: Rectangle, b: Rectangle) -> float:
    shared = overlap(a, b)
    return shared / max(a[2] * a[3] + b[2] * b[3] - shared, 1e-8)


def distance_to_a_decision(a: Rectangle, b: Rectangle) -> float:
    """How far all corners are from where they begin to count, and from each other's edges."""
    outs = [excess(corner, a) for corner in corners(b)] + [
        excess(corner, b) for corner in corners(a)
    ]
    return min(min(abs(out - MARGIN_M), abs(out)) for out in outs)
