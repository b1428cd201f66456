"""Streets: a circular arc with lanes, cycle lanes, parking strips and side walks on gentle ground.

Objects are laid out in road coordinates: s along the street, d to the left of its centre line.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from voxelquant.data.synthetic.hashing import Dice

LANE_M = 3.5
CYCLE_LANE_M = 1.5
PARKING_M = 2.7
KERB_HEIGHT_M = 0.13  # of the side walk and all beyond it


@dataclass(frozen=True)
class Road:
    """One street a scene, [b, 1] float64 each; side 0 is right (d < 0), side 1 left."""

    curvature_per_m: Tensor
    lanes: Tensor  # [b, 2] int64 a side
    kerb_m: Tensor  # [b, 2] |d| where the traffic ends and the parking strip begins
    walk_m: Tensor  # [b, 2] width of the side walk
    slope_x: Tensor
    slope_y: Tensor
    bend_per_m: Tensor  # ground height = slope_x x + slope_y y + bend x^2

    @property
    def walk_start_m(self) -> Tensor:
        """Distance |d| at which the side walk begins, [b, 2]."""
        return self.kerb_m + PARKING_M

    @property
    def walk_end_m(self) -> Tensor:
        """Distance |d| at which the side walk ends, [b, 2]."""
        return self.walk_start_m + self.walk_m

    def at(self, rows: Tensor) -> "Road":
        """The streets of the given scenes."""
        return Road(**{name: value[rows] for name, value in vars(self).items()})

    def place(self, s_m: Tensor, d_m: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """World x, y and road heading at road coordinates, [b, n] float64 each."""
        heading = self.curvature_per_m * s_m
        half = heading / 2
        chord = s_m * torch.where(half.abs() < 1e-9, 1.0, torch.sin(half) / _away_from_zero(half))
        x = chord * torch.cos(half) - d_m * torch.sin(heading)
        y = chord * torch.sin(half) + d_m * torch.cos(heading)
        return x, y, heading

    def height(self, x: Tensor, y: Tensor) -> Tensor:
        """Ground height above the scene's origin, [b, n]."""
        return self.slope_x * x + self.slope_y * y + self.bend_per_m * x * x

    def rise(self, d_m: Tensor) -> Tensor:
        """Height above the roadway of what stands at d: the kerb's beyond it, [b, n]."""
        start = torch.where(d_m < 0, self.walk_start_m[:, :1], self.walk_start_m[:, 1:])
        return torch.where(d_m.abs() > start, KERB_HEIGHT_M, 0.0)

    def gradient(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Slope of the ground along x and y at x, [b, n] each."""
        return self.slope_x + 2 * self.bend_per_m * x, self.slope_y + 0 * x


def _away_from_zero(value: Tensor) -> Tensor:
    return torch.where(value.abs() < 1e-9, 1.0, value)


def draw_roads(dice: Dice) -> Road:
    """One street for each scene of the dice."""
    lanes = 1 + dice.choice("road.lanes", 2, [0.5, 0.5])
    return Road(
        curvature_per_m=dice.uniform("road.curvature", 1, -1 / 220, 1 / 220),
        lanes=lanes,
        kerb_m=lanes * LANE_M + CYCLE_LANE_M,
        walk_m=dice.uniform("road.walk", 2, 2.6, 5.0),
        slope_x=dice.uniform("road.slope_x", 1, -0.03, 0.03),
        slope_y=dice.uniform("road.slope_y", 1, -0.012, 0.012),
        bend_per_m=dice.uniform("road.bend", 1, -1 / 5000, 1 / 5000),
    )
