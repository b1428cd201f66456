"""How strongly a surface answers the laser."""

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor


@dataclass(frozen=True)
class Material:
    """Intensity (raw, 0..255) at normal incidence, and how it varies from object to object."""

    name: str
    intensity: float
    spread: float  # of the object's own factor, as an exponent of two
    lost: float = 0.0  # share of rays that never come back (glass, wire mesh, leaves)


MATERIALS = (
    Material("asphalt", 11.0, 0.9),
    Material("pavement", 20.0, 0.8),
    Material("marking", 62.0, 0.3),
    Material("facade", 40.0, 0.9),
    Material("glass", 9.0, 0.5, 0.55),
    Material("paint", 26.0, 1.3),
    Material("dark", 5.0, 0.4, 0.1),
    Material("metal", 32.0, 0.7),
    Material("retro", 215.0, 0.25),
    Material("leaves", 30.0, 0.8, 0.08),
    Material("bark", 18.0, 0.4),
    Material("cloth", 18.0, 1.0),
    Material("skin", 24.0, 0.3),
    Material("plastic", 40.0, 0.5),
    Material("canvas", 46.0, 0.5),
)

MATERIAL_INDEX = {material.name: index for index, material in enumerate(MATERIALS)}


@lru_cache(maxsize=8)
def material_table(device: torch.device) -> Tensor:
    """Intensity, spread and lost share of each material, [materials, 3] float32."""
    rows = [(material.intensity, material.spread, material.lost) for material in MATERIALS]
    return torch.tensor(rows, dtype=torch.float32, device=device)
