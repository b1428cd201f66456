"""Streets on gentle ground: a circular arc, and in some scenes a straight street across it.

Objects are laid out in the coordinates of their street: s along it, d to the left of its centre
line. From the middle outwards a side has lanes, a cycle lane, a parking strip and a side walk.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

LANE_M = 3.5
CYCLE_LANE_M = 1.5
PARKING_M = 2.7
KERB_HEIGHT_M = 0.13  # of the side walk and all beyond it


@dataclass(frozen=True)
class Street:
    """Cross-section of one street a scene; side 0 is right (d < 0), side 1 left."""

    lanes: Tensor  # [b, 2] int64 a side
    walk_m: Tensor  # [b, 2] float64, width of the side walk

    @property
    def kerb_m(self) -> Tensor:
        """Distance |d| at which the traffic ends and the parking strip begins, [b, 2]."""
        return self.lanes * LANE_M + CYCLE_LANE_M

    @property
    def walk_start_m(self) -> Tensor:
        """Distance |d| at which the side walk begins, [b, 2]."""
        return self.kerb_m + PARKING_M

    @property
    def walk_end_m(self) -> Tensor:
        """Distance |d| at which the side walk ends, [b, 2]."""
        return self.walk_start_m + self.walk_m


@dataclass(frozen=True)
class SideStreet(Street):
    """A straight street across the main one: a line through a point of its centre, [b, 1] each.

    Its s runs to the left of the main street, from the main street's centre line.
    """

    here: Tensor  # bool: the scene has one
    main_waits: Tensor  # bool: the light is red for the main street
    junction_m: Tensor  # s of the main street where the two meet
    x_m: Tensor
    y_m: Tensor
    heading_rad: Tensor

    def at(self, rows: Tensor) -> "SideStreet":
        """The side streets of the given scenes."""
        return SideStreet(**{name: value[rows] for name, value in vars(self).items()})

    def place(self, s_m: Tensor, d_m: Tensor) -> tuple[Tensor, Tensor]:
        """World x and y at coordinates of this street, [b, n] float64 each."""
        cos, sin = torch.cos(self.heading_rad), torch.sin(self.heading_rad)
        return self.x_m + s_m * cos - d_m * sin, self.y_m + s_m * sin + d_m * cos

    def offset(self, x: Tensor, y: Tensor) -> Tensor:
        """Distance d of points to the left of this street, in the precision of x, [b, n]."""
        cos, sin = torch.cos(self.heading_rad), torch.sin(self.heading_rad)
        return (y - self.y_m.to(y.dtype)) * cos.to(y.dtype) - (x - self.x_m.to(x.dtype)) * sin.to(
            x.dtype
        )


@dataclass(frozen=True)
class Road(Street):
    """The main street, the ground it lies on and the street across, [b, 1] float64 each."""

    curvature_per_m: Tensor
    slope_x: Tensor
    slope_y: Tensor
    bend_x_per_m: Tensor  # ground height = slope_x x + slope_y y + bend_x x^2 + bend_y y^2
    bend_y_per_m: Tensor
    side_street: SideStreet

    def at(self, rows: Tensor) -> "Road":
        """The streets of the given scenes."""
        own = {n: value[rows] for n, value in vars(self).items() if isinstance(value, Tensor)}
        return Road(**own, side_street=self.side_street.at(rows))

    def place(self, s_m: Tensor, d_m: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """World x, y and road heading at road coordinates, [b, n] float64 each."""
        return place_on_arc(self.curvature_per_m, s_m, d_m)

    def height(self, x: Tensor, y: Tensor) -> Tensor:
        """Ground height above the scene's origin, [b, n]."""
        flat = self.slope_x * x + self.slope_y * y
        return flat + self.bend_x_per_m * x * x + self.bend_y_per_m * y * y

    def gradient(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Slope of the ground along x and y at a point, [b, n] each."""
        along_x = self.slope_x + 2 * self.bend_x_per_m * x
        return along_x, self.slope_y + 2 * self.bend_y_per_m * y

    def offsets(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Offset d from the main street, metres beyond the kerb and beyond the side walk, [b, n].

        The latter of the nearer street, below 0 on the roadway and before the end of the side walk.
        In the precision of x. The arc is taken as a parabola, for speed.
        """
        d_m = y - self.curvature_per_m.to(y.dtype) / 2 * x * x
        cross = self.side_street
        across_m = cross.offset(x, y)
        beyond_kerb, beyond_walk = (
            torch.where(
                cross.here,
                torch.minimum(_beyond(d_m, own), _beyond(across_m, others)),
                _beyond(d_m, own),
            )
            for own, others in (
                (self.walk_start_m, cross.walk_start_m),
                (self.walk_end_m, cross.walk_end_m),
            )
        )
        return d_m, beyond_kerb, beyond_walk

    def rise(self, x: Tensor, y: Tensor) -> Tensor:
        """Height above the roadway of what stands at a point: the kerb's beyond it, [b, n]."""
        return torch.where(self.offsets(x, y)[1] > 0, KERB_HEIGHT_M, 0.0)


def _beyond(d_m: Tensor, limits_m: Tensor) -> Tensor:
    """How far offsets lie beyond the limit of their side, [b, n]; limits are [b, 2] float64."""
    limits = limits_m.to(d_m.dtype)
    return d_m.abs() - torch.where(d_m < 0, limits[:, :1], limits[:, 1:])


def place_on_arc(
    curvature_per_m: Tensor, s_m: Tensor, d_m: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """World x, y and heading at arc length s and offset d of a circle through the origin."""
    heading = curvature_per_m * s_m
    half = heading / 2
    chord = s_m * torch.where(half.abs() < 1e-9, 1.0, torch.sin(half) / _away_from_zero(half))
    x = chord * torch.cos(half) - d_m * torch.sin(heading)
    y = chord * torch.sin(half) + d_m * torch.cos(heading)
    return x, y, heading


def _away_from_zero(value: Tensor) -> Tensor:
    return torch.where(value.abs() < 1e-9, 1.0, value)
