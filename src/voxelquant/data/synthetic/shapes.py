"""All shapes as one table of tensors: families of variants, variants of parts."""

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from voxelquant.data.synthetic import rider_shapes, street_shapes, vehicle_shapes
from voxelquant.data.synthetic.materials import MATERIAL_INDEX
from voxelquant.data.synthetic.parts import Part
from voxelquant.data.synthetic.taxonomy import KINDS

_VARIANTS: dict[str, tuple[tuple[Part, ...], ...]] = {
    "car": vehicle_shapes.CARS,
    "truck": vehicle_shapes.TRUCKS,
    "construction_vehicle": vehicle_shapes.DIGGERS,
    "bus": vehicle_shapes.BUSES,
    "trailer": vehicle_shapes.TRAILERS,
    "barrier": street_shapes.BARRIERS,
    "motorcycle": rider_shapes.MOTORCYCLES,
    "bicycle": rider_shapes.BICYCLES,
    "pedestrian": rider_shapes.PEOPLE,
    "traffic_cone": street_shapes.CONES,
    "building": street_shapes.BUILDINGS,
    "wall": street_shapes.WALLS,
    "pole": street_shapes.POLES,
    "tree": street_shapes.TREES,
    "bush": street_shapes.BUSHES,
    "sign": street_shapes.SIGNS,
    "bin": street_shapes.BINS,
    "tower": street_shapes.TOWERS,
    "high_wall": street_shapes.HIGH_WALLS,
    "tall_tree": street_shapes.TREES,
    "motorcycle, ridden": rider_shapes.MOTORCYCLES_RIDDEN,
    "bicycle, ridden": rider_shapes.BICYCLES_RIDDEN,
    "worker": rider_shapes.WORKERS,
    "sitting": rider_shapes.SITTING,
}
FAMILIES = tuple(_VARIANTS)  # the first ones in the order of KINDS, then special outfits
FAMILY_INDEX = {name: index for index, name in enumerate(FAMILIES)}
assert FAMILIES[: len(KINDS)] == tuple(kind.name for kind in KINDS)


@dataclass(frozen=True)
class ShapeTable:
    """All variants of all families as tensors; missing parts have solid -1."""

    solid: Tensor  # [v, parts] int64
    spans: Tensor  # [v, parts, 6] float64: x_lo, x_hi, y_lo, y_hi, z_lo, z_hi
    taper: Tensor  # [v, parts, 2] float64
    material: Tensor  # [v, parts] int64
    swing: Tensor  # [v, parts] float64
    first: Tensor  # [families] int64, row of a family's first variant
    count: Tensor  # [families] int64


@lru_cache(maxsize=8)
def shape_table(device: torch.device) -> ShapeTable:
    """The templates on a device."""
    variants = [variant for family in _VARIANTS.values() for variant in family]
    parts = max(len(variant) for variant in variants)
    solid = torch.full((len(variants), parts), -1)
    spans = torch.zeros((len(variants), parts, 6), dtype=torch.float64)
    taper = torch.zeros((len(variants), parts, 2), dtype=torch.float64)
    material = torch.zeros((len(variants), parts), dtype=torch.int64)
    swing = torch.zeros((len(variants), parts), dtype=torch.float64)
    for row, variant in enumerate(variants):
        for column, part in enumerate(variant):
            solid[row, column] = part.solid
            spans[row, column] = torch.tensor([*part.x, *part.y, *part.z], dtype=torch.float64)
            taper[row, column] = torch.tensor([part.taper_x, part.taper_y], dtype=torch.float64)
            swing[row, column] = part.swing
            material[row, column] = MATERIAL_INDEX[part.material]
    counts = torch.tensor([len(family) for family in _VARIANTS.values()])
    first = counts.cumsum(0) - counts
    tensors = (solid, spans, taper, material, swing, first, counts)
    return ShapeTable(*(tensor.to(device) for tensor in tensors))
