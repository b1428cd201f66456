"""What the nearest surface along each ray is like: its incidence, material, owner and texture."""

from dataclasses import dataclass

import torch
from torch import Tensor

from voxelquant.data.synthetic.ground import GroundHits, Vector
from voxelquant.data.synthetic.intersect import ROUNDING
from voxelquant.data.synthetic.parts import BOX, ROUNDED_BOX
from voxelquant.data.synthetic.solids import Solids

_TEXTURE_M = 0.4  # size of the patches within which a surface answers alike
_LEAF_COS = 0.7  # leaves hang at all angles


@dataclass(frozen=True)
class Surfaces:
    """The surface that each ray meets first, [r, rays]; the ground where `thing` is -1."""

    range_m: Tensor  # float32; inf: the sky
    cos: Tensor  # float32, of incidence
    material: Tensor  # int64
    thing: Tensor  # int64, column of the scene's objects
    patch: Tensor  # int64, number of a patch of the surface, equal from sweep to sweep


def nearest_surfaces(
    solids: Solids,
    hits: tuple[Tensor, Tensor],
    ground: GroundHits,
    ground_material: Tensor,
    direction: Vector,
) -> Surfaces:
    """The nearer of the ground and the solids; `hits` is range and row of `solids`, [r, rays]."""
    solid_range, solid = hits
    on_ground = ground.range_m < solid_range
    solid = torch.where(on_ground, -1, solid)
    range_m = torch.minimum(ground.range_m, solid_range)
    reach = torch.where(torch.isfinite(ground.range_m), 1.0, 0.0)
    cells = [torch.floor(place * (reach / _TEXTURE_M)).long() for place in ground.xy_m]
    patch = _number_patches(cells[0], cells[1], 0)
    rays = torch.nonzero(solid.view(-1) >= 0)[:, 0]
    rows = solid.view(-1)[rays]
    ray = [axis.reshape(-1)[rays] for axis in direction]
    cos_hit, patch_hit = _on_solids(solids, rows, range_m.view(-1)[rays], ray)

    def merge(of_ground: Tensor, of_solids: Tensor) -> Tensor:
        return of_ground.reshape(-1).index_copy(0, rays, of_solids).view_as(range_m)

    return Surfaces(
        range_m=range_m,
        cos=merge(ground.cos, cos_hit),
        material=merge(ground_material, solids.material[rows]),
        thing=merge(torch.full_like(solid, -1), solids.thing[rows]),
        patch=merge(patch, patch_hit),
    )


def _on_solids(
    solids: Solids, rows: Tensor, reach: Tensor, ray: list[Tensor]
) -> tuple[Tensor, Tensor]:
    """Cosine of incidence and patch where rays meet solids, [hits] each."""
    to_unit = solids.to_unit.view(-1, 9).T.contiguous()
    half, origin = solids.half_m.T.contiguous(), solids.origin.T.contiguous()
    best = torch.zeros_like(reach)
    cos_box, along, square, ball = best, best, best, best
    cells = []
    for axis in range(3):
        unit = sum(to_unit[3 * axis + part][rows] * ray[part] for part in range(3))
        place = origin[axis][rows] + reach * unit
        extent = half[axis][rows]
        closer = place.abs() >= best
        cos_box = torch.where(closer, (unit * extent).abs(), cos_box)
        best = torch.maximum(best, place.abs())
        along = along + place * unit  # gradient of |p|^2 in metres, times the direction
        square = square + (place / extent) ** 2
        ball = ball + place * place
        cells.append(torch.floor(place * (extent / _TEXTURE_M)).long())
    cos_round = (along.abs() / torch.sqrt(square + 1e-9)).clamp_max(1.0)
    solid = solids.solid[rows]
    flat = (solid == BOX) | ((solid == ROUNDED_BOX) & (ball < ROUNDING - 0.01))
    cos = torch.where(flat, cos_box, cos_round)
    cos = torch.where(solids.leafy[rows], _LEAF_COS, cos)
    owner = solids.thing[rows] * 64 + solids.part[rows] + 1
    return cos, _number_patches(cells[0], cells[1] + cells[2] * 4096, owner)


def _number_patches(first: Tensor, second: Tensor, owner: Tensor | int) -> Tensor:
    """One number for a cell of a surface; shifts apart what no scene is large enough to reach."""
    return (first << 40) + (second << 20) + owner
