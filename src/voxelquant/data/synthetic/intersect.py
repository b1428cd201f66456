"""Where a ray enters and leaves a convex solid that fills [-1, 1]^3 of its own frame.

Every function takes origins and directions as three flat tensors and returns the ray parameters
(enter, leave); the ray misses where enter >= leave. A taper t narrows the solid linearly: its half
width at height z is 1 - t/2 - z t/2 for t >= 0 (narrow top) and mirrored for t < 0.
"""

import torch
from torch import Tensor

Vector = tuple[Tensor, Tensor, Tensor]
_TINY = 1e-9
ROUNDING = 1.7  # of rounded boxes: below 2, where edges are met, and above 1, where faces are


def enter_boxes(
    origin: Vector, direction: Vector, taper: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor]:
    """Boxes whose four sides may lean inwards."""
    ox, oy, oz = origin
    dx, dy, dz = direction
    enter, leave = _between(oz, dz)
    for o, d, t in ((ox, dx, taper[0]), (oy, dy, taper[1])):
        # Sides +-p <= width(z): a plane each, leaning by t/2.
        room = 1 - t.abs() / 2 - oz * t / 2
        lean = dz * t / 2
        for side in (1.0, -1.0):
            distance = room - o if side > 0 else room + o  # to the plane, > 0 inside
            approach = lean + d if side > 0 else lean - d  # < 0: coming in
            at = distance / _nonzero(approach)
            enter = torch.where(approach < 0, torch.maximum(enter, at), enter)
            leave = torch.where(approach < 0, leave, torch.minimum(leave, at))
    return enter, leave


def enter_rounded_boxes(
    origin: Vector, direction: Vector, taper: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor]:
    """Boxes within the ball |p|^2 <= `ROUNDING`, which cuts edges and corners but no face."""
    enter, leave = enter_boxes(origin, direction, taper)
    (ox, oy, oz), (dx, dy, dz) = origin, direction
    a = dx * dx + dy * dy + dz * dz
    b = ox * dx + oy * dy + oz * dz
    into, out = _between_roots(a, b, ox * ox + oy * oy + oz * oz - ROUNDING)
    return torch.maximum(enter, into), torch.minimum(leave, out)


def enter_round_solids(
    origin: Vector, direction: Vector, taper: Tensor, ellipsoid: Tensor
) -> tuple[Tensor, Tensor]:
    """Upright cylinders and cones, and ellipsoids where `ellipsoid` is true."""
    ox, oy, oz = origin
    dx, dy, dz = direction
    radius = 1 - taper.abs() / 2 - oz * taper / 2  # of the cone at the origin's height
    growth = -dz * taper / 2
    # |p|^2 = w^2 with w the radius at p's height (cone), or with w^2 = 1 - z^2 (ellipsoid)
    height_a = torch.where(ellipsoid, dz * dz, -growth * growth)
    height_b = torch.where(ellipsoid, oz * dz, -radius * growth)
    height_c = torch.where(ellipsoid, oz * oz - 1, -radius * radius)
    a = dx * dx + dy * dy + height_a
    b = ox * dx + oy * dy + height_b
    c = ox * ox + oy * oy + height_c
    enter, leave = _between_roots(a, b, c)
    low, high = _between(oz, dz)
    return torch.maximum(enter, low), torch.minimum(leave, high)


def _between_roots(a: Tensor, b: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """Ray parameters at which a t^2 + 2 b t + c < 0, for a > 0."""
    root = b * b - a * c
    real = (root > 0) & (a > _TINY)
    root = torch.sqrt(torch.where(real, root, 0.0))
    scale = 1 / torch.where(real, a, 1.0)
    enter = torch.where(real, (-b - root) * scale, torch.inf)
    leave = torch.where(real, (-b + root) * scale, -torch.inf)
    return enter, leave


def _between(origin: Tensor, direction: Tensor) -> tuple[Tensor, Tensor]:
    """Ray parameters at which one coordinate lies in [-1, 1]."""
    inverse = 1 / _nonzero(direction)
    first, second = (-1 - origin) * inverse, (1 - origin) * inverse
    return torch.minimum(first, second), torch.maximum(first, second)


def _nonzero(value: Tensor) -> Tensor:
    return torch.where(value.abs() < _TINY, _TINY, value)
