"""Kinds of scenes: what a street looks like as a whole, drawn once for each scene.

A kind gives every trait a range; a scene draws its own values within the ranges of its kind.
"""

from dataclasses import astuple, dataclass, fields
from typing import Generic, TypeVar

import torch
from torch import Tensor

from voxelquant.data.hashing import Dice

Trait = TypeVar("Trait", tuple[float, float], Tensor)


@dataclass(frozen=True)
class Traits(Generic[Trait]):
    """What is drawn about a scene: the range of a kind, or the values of a batch, [b, 1] float64.

    Shares are of the places there are.
    """

    lanes: Trait  # a side, rounded down
    walk_m: Trait  # width of a side walk
    speed_mps: Trait  # of free traffic; lanes differ
    standstill: Trait  # chance that the traffic stands, whatever the light
    traffic: Trait  # share of the places in the lanes
    parked: Trait  # share of the places along the kerb
    people: Trait  # root of the share of the places for groups on the side walk
    houses: Trait  # share of the plots along the street
    setback_m: Trait  # of the houses' centres behind the side walk
    high_walls: Trait  # share of the places for walls along the side walk
    towers: Trait  # share of the places for high buildings behind
    greens: Trait  # share of the places before the houses
    backdrop: Trait  # share of the places for trees further away
    furniture: Trait  # share of the places for poles, trees and signs at the kerb
    valley_per_m: Trait  # how the ground bends upwards to both sides
    crossing: Trait  # chance of a street across
    lot: Trait  # chance of a parking lot
    depot: Trait  # chance of a yard of large vehicles


AVENUE = Traits(
    lanes=(2.0, 3.6),
    walk_m=(3.0, 6.0),
    speed_mps=(5.0, 13.0),
    standstill=(0.12, 0.12),
    traffic=(0.15, 0.5),
    parked=(0.05, 0.5),
    people=(0.0, 1.15),
    houses=(0.6, 1.0),
    setback_m=(9.5, 20.0),
    high_walls=(0.0, 0.1),
    towers=(0.2, 0.8),
    greens=(0.1, 0.6),
    backdrop=(0.4, 1.0),
    furniture=(0.4, 0.8),
    valley_per_m=(-1 / 1200, 1 / 1000),
    crossing=(0.6, 0.6),
    lot=(0.1, 0.1),
    depot=(0.03, 0.03),
)
RESIDENTIAL = Traits(
    lanes=(1.0, 2.2),
    walk_m=(2.2, 4.0),
    speed_mps=(3.0, 9.0),
    standstill=(0.12, 0.12),
    traffic=(0.05, 0.25),
    parked=(0.2, 0.9),
    people=(0.0, 0.95),
    houses=(0.65, 1.0),
    setback_m=(11.0, 22.0),
    high_walls=(0.0, 0.2),
    towers=(0.0, 0.3),
    greens=(0.3, 0.9),
    backdrop=(0.6, 1.0),
    furniture=(0.3, 0.7),
    valley_per_m=(-1 / 900, 1 / 700),
    crossing=(0.45, 0.45),
    lot=(0.1, 0.1),
    depot=(0.0, 0.0),
)
OPEN = Traits(
    lanes=(1.0, 3.6),
    walk_m=(2.0, 4.0),
    speed_mps=(6.0, 14.0),
    standstill=(0.4, 0.4),
    traffic=(0.02, 0.3),
    parked=(0.0, 0.15),
    people=(0.0, 0.4),
    houses=(0.0, 0.06),
    setback_m=(14.0, 26.0),
    high_walls=(0.0, 0.0),
    towers=(0.0, 0.3),
    greens=(0.0, 0.1),
    backdrop=(0.0, 0.3),
    furniture=(0.02, 0.3),
    valley_per_m=(-1 / 900, 1 / 1200),
    crossing=(0.25, 0.25),
    lot=(0.08, 0.08),
    depot=(0.2, 0.2),
)
LOTS = Traits(
    lanes=(1.0, 2.5),
    walk_m=(2.0, 3.0),
    speed_mps=(2.0, 7.0),
    standstill=(0.18, 0.18),
    traffic=(0.03, 0.2),
    parked=(0.0, 0.5),
    people=(0.0, 0.7),
    houses=(0.4, 1.0),
    setback_m=(9.5, 20.0),
    high_walls=(0.0, 0.3),
    towers=(0.1, 0.5),
    greens=(0.1, 0.5),
    backdrop=(0.5, 1.0),
    furniture=(0.2, 0.6),
    valley_per_m=(-1 / 1200, 1 / 1000),
    crossing=(0.2, 0.2),
    lot=(0.75, 0.75),
    depot=(0.7, 0.7),
)
NARROW = Traits(
    lanes=(1.0, 1.3),
    walk_m=(1.8, 3.0),
    speed_mps=(2.5, 8.0),
    standstill=(0.12, 0.12),
    traffic=(0.05, 0.25),
    parked=(0.0, 0.8),
    people=(0.0, 0.9),
    houses=(0.6, 1.0),
    setback_m=(7.5, 9.5),
    high_walls=(0.3, 1.0),
    towers=(0.2, 0.8),
    greens=(0.0, 0.3),
    backdrop=(0.3, 0.8),
    furniture=(0.1, 0.5),
    valley_per_m=(-1 / 1500, 1 / 1500),
    crossing=(0.4, 0.4),
    lot=(0.03, 0.03),
    depot=(0.0, 0.0),
)
KINDS_OF_SCENES = (AVENUE, RESIDENTIAL, OPEN, LOTS, NARROW)
_SHARES = [0.30, 0.25, 0.21, 0.13, 0.11]


def draw_kinds(dice: Dice) -> Tensor:
    """Index into KINDS_OF_SCENES for each scene, [b, 1] int64."""
    return dice.choice("scene.kind", 1, _SHARES)


def draw_traits(dice: Dice, kind: Tensor) -> Traits[Tensor]:
    """Traits of scenes of the given kinds, uniform within the kind's ranges."""
    table = torch.tensor(
        [astuple(k) for k in KINDS_OF_SCENES], dtype=torch.float64, device=dice.device
    )
    low, high = table[kind[:, 0]].unbind(-1)  # [b, traits] each
    names = [field.name for field in fields(Traits)]
    drawn = low + dice.uniform("scene.traits", len(names)) * (high - low)
    return Traits(**{name: drawn[:, i : i + 1] for i, name in enumerate(names)})
