"""The solids that objects are made of, in coordinates of the object's own box.

x runs from -1 (rear) to 1 (front), y from -1 (right) to 1 (left), z from 0 (ground) to 1 (top), so
one description serves every size. No part of an annotated object leaves its box.
"""

from dataclasses import dataclass, replace

# CYLINDER: elliptic, upright, and a cone where tapered; DISC: a cylinder that lies across;
# ROUNDED_BOX: a box within an ellipsoid that cuts its edges and corners.
BOX, CYLINDER, ELLIPSOID, DISC, ROUNDED_BOX = range(5)

Span = tuple[float, float]


@dataclass(frozen=True)
class Part:
    """One convex solid of an object, filling x by y by z of the object's box.

    `taper_x` and `taper_y` say by which share the top is narrower than the bottom. A part with a
    `swing` moves along x by up to that much to both sides, as legs and arms do.
    """

    solid: int
    x: Span
    y: Span
    z: Span
    material: str
    taper_x: float = 0.0
    taper_y: float = 0.0
    swing: float = 0.0


def box(x: Span, y: Span, z: Span, material: str, taper: Span = (0.0, 0.0)) -> Part:
    """A box whose top is narrower by `taper` along x and y."""
    return Part(BOX, x, y, z, material, *taper)


def rounded(x: Span, y: Span, z: Span, material: str, taper: Span = (0.0, 0.0)) -> Part:
    """A box like `box`, with rounded edges and corners."""
    return Part(ROUNDED_BOX, x, y, z, material, *taper)


def disc(x: Span, y: Span, z: Span, material: str) -> Part:
    """A cylinder whose axis points to the side: a wheel."""
    return Part(DISC, x, y, z, material)


def upright(x: Span, y: Span, z: Span, material: str, taper: float = 0.0) -> Part:
    """An upright cylinder, or a cone where tapered."""
    return Part(CYLINDER, x, y, z, material, taper, taper)


def blob(x: Span, y: Span, z: Span, material: str) -> Part:
    """An ellipsoid."""
    return Part(ELLIPSOID, x, y, z, material)


def swinging(part: Part, swing: float) -> Part:
    """The part, moving back and forth; a negative swing starts backwards."""
    return replace(part, swing=swing)


ALL = (-1.0, 1.0)
INNER = (-0.97, 0.97)
