"""What all candidates along one street depend on: the street, the scene's traits, and the light."""

from dataclasses import dataclass

import torch
from torch import Tensor

from voxelquant.data.hashing import Dice
from voxelquant.data.synthetic.class_mix import Mix
from voxelquant.data.synthetic.road import Street
from voxelquant.data.synthetic.scene_kinds import Traits

STRETCH_M = 140.0  # what happens once in a while is drawn for each such length of street


@dataclass(frozen=True)
class Setting:
    """One street of each scene, and when it is looked at."""

    dice: Dice
    street: Street
    traits: Traits[Tensor]
    mix: Mix
    span_m: tuple[float, float]  # s between which something may stand
    duration_s: float
    viewer_mps: Tensor  # [b, 1], how fast the ego vehicle moves along this street
    waits: Tensor  # [b, 1] bool: a red light stops the traffic at the junction
    junction_m: Tensor  # [b, 1], s of the other street's centre line
    stop_m: Tensor  # [b, 1], distance from there at which the traffic stops

    @property
    def stretches(self) -> int:
        """Stretches of the street, at least one."""
        return max(1, round((self.span_m[1] - self.span_m[0]) / STRETCH_M))

    def places(self, spacing_m: float) -> Tensor:
        """Centres of equal pieces of the street of about this length, [1, n] float64."""
        low, high = self.span_m
        return spaced(max(1, round((high - low) / spacing_m)), low, high, self.dice.device)

    def stretch_centres(self) -> Tensor:
        """Centres of the stretches, [1, stretches] float64."""
        return spaced(self.stretches, *self.span_m, self.dice.device)

    def in_groups(self, groups: int, members: int) -> tuple[Tensor, Tensor]:
        """Group of each place and number within its group, [groups * members] int64 each."""
        place = torch.arange(groups * members, device=self.dice.device)
        return torch.div(place, members, rounding_mode="floor"), place % members


def spaced(count: int, low_m: float, high_m: float, device: torch.device) -> Tensor:
    """Centres of `count` equal pieces of [low, high], [1, count] float64."""
    steps = torch.arange(count, dtype=torch.float64, device=device)
    return ((steps + 0.5) * ((high_m - low_m) / count) + low_m)[None]


def sign_of(side: Tensor) -> Tensor:
    """-1 for the right side (0), 1 for the left side (1), float64."""
    return side * 2.0 - torch.ones_like(side, dtype=torch.float64)
