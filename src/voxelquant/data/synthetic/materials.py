"""How strongly a surface answers the laser."""

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

DIFFUSE_CEILING = 100.0  # an HDL-32E reports diffuse reflectors as 0..100, retro-reflectors above


@dataclass(frozen=True)
class Material:
    """Calibrated intensity (raw, 0..255) at normal incidence, and what it depends on.

    At an angle the answer is `intensity * cos ** falloff`: small for rough surfaces, large for
    glossy ones, which mirror the beam away.
    """

    name: str
    intensity: float
    spread: float  # of the object's own factor, as an exponent of two
    falloff: float
    lost: float = 0.0  # share of rays that never come back (glass, wire mesh, leaves)
    texture: float = 1.3  # of patches of one surface, as an exponent of two
    relief_m: float = 0.0  # deviation of its depth; 0 for what boxes are drawn around
    retro: bool = False  # made to send light back; everything else saturates at 100


MATERIALS = (
    Material("asphalt", 12.0, 1.0, 0.6, texture=0.5),
    Material("pavement", 28.0, 1.1, 0.6, texture=0.8),
    Material("grass", 38.0, 0.8, 0.4, relief_m=0.006),
    Material("marking", 80.0, 0.4, 0.5, texture=1.0),
    Material("facade", 28.0, 1.0, 0.6, relief_m=0.05),
    Material("concrete", 28.0, 0.7, 0.6),
    Material("glass", 5.0, 0.9, 1.2, lost=0.55, texture=0.8),
    Material("paint", 32.0, 1.5, 0.8, texture=0.8),
    Material("dark", 4.0, 0.7, 0.6, 0.1),
    Material("metal", 26.0, 1.0, 0.8),
    Material("retro", 170.0, 0.6, 0.3, retro=True),
    Material("reflector", 170.0, 0.8, 0.5, retro=True),
    Material("leaves", 24.0, 0.8, 0.6, 0.05),
    Material("bark", 16.0, 0.6, 0.5),
    Material("cloth", 20.0, 1.3, 0.5),
    Material("skin", 26.0, 0.4, 0.5),
    Material("plastic", 34.0, 0.7, 0.6),
    Material("canvas", 36.0, 0.6, 0.5),
)

MATERIAL_INDEX = {material.name: index for index, material in enumerate(MATERIALS)}


@dataclass(frozen=True)
class MaterialTable:
    """The columns of `MATERIALS`, [materials] float32 each."""

    intensity: Tensor
    spread: Tensor
    falloff: Tensor
    lost: Tensor
    texture: Tensor
    relief_m: Tensor
    ceiling: Tensor  # highest intensity that is reported


@lru_cache(maxsize=8)
def material_table(device: torch.device) -> MaterialTable:
    """All materials on a device."""

    def column(values: list[float]) -> Tensor:
        return torch.tensor(values, dtype=torch.float32, device=device)

    return MaterialTable(
        intensity=column([material.intensity for material in MATERIALS]),
        spread=column([material.spread for material in MATERIALS]),
        falloff=column([material.falloff for material in MATERIALS]),
        lost=column([material.lost for material in MATERIALS]),
        texture=column([material.texture for material in MATERIALS]),
        relief_m=column([material.relief_m for material in MATERIALS]),
        ceiling=column([255.0 if material.retro else DIFFUSE_CEILING for material in MATERIALS]),
    )
