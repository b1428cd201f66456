"""Ray casting: for every ray the nearest surface, with no loop over rays or objects.

A solid is tested only against the columns and rings of its angular window. Window by window the
work is expanded into flat (ray, solid) pairs, intersected in the solids' unit frames, and reduced
by a minimum over (range, solid) packed into one integer, which is exact and free of races.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from voxelquant.data.hashing import mix_bits, quarter_uniforms
from voxelquant.data.synthetic.config import LidarConfig
from voxelquant.data.synthetic.intersect import (
    Vector,
    enter_boxes,
    enter_round_solids,
    enter_rounded_boxes,
)
from voxelquant.data.synthetic.parts import BOX, CYLINDER, DISC, ELLIPSOID, ROUNDED_BOX
from voxelquant.data.synthetic.sensor import Beams
from voxelquant.data.synthetic.solids import Solids

NOTHING = torch.iinfo(torch.int64).max
_INDEX_BITS = 31
_CLUMP_M = 0.35  # size of the clumps of leaves that crowns are made of
_CLUMP_FREE_PATH_M = 0.5


@dataclass(frozen=True)
class Windows:
    """Rays that can meet a solid: columns [first, first + columns) modulo a turn, and rings."""

    first_column: Tensor  # [q] int64, may be negative
    columns: Tensor  # [q] int64
    first_ring: Tensor  # [q] int64
    rings: Tensor  # [q] int64; 0 where no ray can meet the solid


@dataclass(frozen=True)
class Pairs:
    """Flat list of rays to test against solids."""

    solid: Tensor  # [pairs] int64, row of Solids
    column: Tensor  # [pairs] int64, revolution * columns + column
    ring: Tensor  # [pairs] int64


def angular_windows(solids: Solids, phase_rad: Tensor, lidar: LidarConfig) -> Windows:
    """Columns and rings under which the bounding box of each solid is seen, rounded outwards."""
    x, y, z = solids.corners_m.unbind(-1)  # [q, 8]
    azimuth = torch.atan2(y, x)
    middle = torch.atan2(y.mean(1), x.mean(1))
    turn = 2 * torch.pi
    away = azimuth - middle[:, None]
    away = away - turn * torch.round(away / turn)
    step = lidar.column_step_rad
    start = (phase_rad.float()[solids.revolution] - middle - away.amax(1)) / step
    stop = (phase_rad.float()[solids.revolution] - middle - away.amin(1)) / step
    first = torch.floor(start).long()
    columns = (torch.ceil(stop).long() - first + 1).clamp(1, lidar.columns)
    excess = (solids.origin[:, :2].abs() - 1).clamp_min(0) * solids.half_m[:, :2]
    around = (excess < 0.5).all(1)  # the LiDAR stands under or on the solid: look everywhere
    columns = torch.where(around, lidar.columns, columns)
    nearest = (torch.sqrt((excess * excess).sum(1)) * 0.97 - 0.1).clamp_min(0.05)
    farthest = torch.sqrt(x * x + y * y).amax(1)
    top, bottom = z.amax(1), z.amin(1)
    highest = torch.atan2(top, torch.where(top > 0, nearest, farthest))
    lowest = torch.atan2(bottom, torch.where(bottom > 0, farthest, nearest))
    lowest_ring = (lowest - lidar.lowest_elevation_rad) / lidar.ring_step_rad
    highest_ring = (highest - lidar.lowest_elevation_rad) / lidar.ring_step_rad
    first_ring = torch.ceil(lowest_ring - 0.05).long().clamp(0, lidar.rings)
    last_ring = torch.floor(highest_ring + 0.05).long().clamp(-1, lidar.rings - 1)
    return Windows(first, columns, first_ring, (last_ring - first_ring + 1).clamp_min(0))


def expand_windows(windows: Windows, solids: Solids, chosen: Tensor, lidar: LidarConfig) -> Pairs:
    """One pair for each ray of the windows of the `chosen` solids, [c] int64."""
    rings = windows.rings[chosen]
    counts = windows.columns[chosen] * rings
    ends = counts.cumsum(0)
    owner = torch.repeat_interleave(counts)
    total = len(owner)
    place = torch.arange(total, device=chosen.device) - (ends - counts)[owner]
    row = torch.div(place, rings.clamp_min(1)[owner], rounding_mode="floor")
    ring = place - row * rings[owner] + windows.first_ring[chosen][owner]
    column = torch.remainder(windows.first_column[chosen][owner] + row, lidar.columns)
    base = (solids.revolution[chosen] * lidar.columns)[owner]
    return Pairs(chosen[owner], base + column, ring)


def cast(
    solids: Solids, beams: Beams, phase_rad: Tensor, leaf_depth_m: Tensor, lidar: LidarConfig
) -> Tensor:
    """Nearest solid of every ray as a packed key (see `unpack`), [r * rays] int64.

    `leaf_depth_m` [r * rays] is how deep a ray gets into a clump of leaves before one answers.
    """
    windows = angular_windows(solids, phase_rad, lidar)
    nearest = torch.full_like(leaf_depth_m, NOTHING, dtype=torch.int64)
    boxes, rounded = solids.solid == BOX, solids.solid == ROUNDED_BOX
    for solid, alike in ((BOX, boxes), (ROUNDED_BOX, rounded), (CYLINDER, ~boxes & ~rounded)):
        chosen = torch.nonzero(alike)[:, 0]
        pairs = expand_windows(windows, solids, chosen, lidar)
        line = rays_in_unit_frames(pairs, solids, beams)
        enter, leave = _cross(pairs, solids, line, solid)
        ray = pairs.column * lidar.rings + pairs.ring
        depth = torch.zeros_like(enter)
        leafy = torch.nonzero(solids.leafy[pairs.solid] & (enter < leave))[:, 0]
        x, y, z = (o[leafy] + d[leafy] * enter[leafy] for o, d in zip(*line, strict=True))
        clump_m = _clump_depth_m(solids, pairs.solid[leafy], (x, y, z))
        depth[leafy] = leaf_depth_m[ray[leafy]] + clump_m
        hit = (enter < leave) & (enter > 0.3) & (depth < leave - enter)
        hit_range = torch.where(hit, enter + depth, torch.inf)
        key = (hit_range.view(torch.int32).long() << _INDEX_BITS) | pairs.solid
        nearest.scatter_reduce_(0, ray, key, "amin")
    return nearest


def _cross(
    pairs: Pairs, solids: Solids, line: tuple[Vector, Vector], solid: int
) -> tuple[Tensor, Tensor]:
    """Where each pair's ray enters and leaves its solid, [pairs] each."""
    origin, direction = line
    taper_x, taper_y = (taper[pairs.solid] for taper in solids.taper.T.contiguous())
    if solid == BOX:
        return enter_boxes(origin, direction, (taper_x, taper_y))
    if solid == ROUNDED_BOX:
        return enter_rounded_boxes(origin, direction, (taper_x, taper_y))
    (ox, oy, oz), (dx, dy, dz) = origin, direction
    kind = solids.solid[pairs.solid]
    lying = kind == DISC
    origin = (ox, torch.where(lying, oz, oy), torch.where(lying, oy, oz))
    direction = (dx, torch.where(lying, dz, dy), torch.where(lying, dy, dz))
    return enter_round_solids(origin, direction, taper_x, kind == ELLIPSOID)


def _clump_depth_m(solids: Solids, rows: Tensor, place: Vector) -> Tensor:
    """How far behind the hull of a crown the first clump of leaves hangs, [pairs] float32.

    Exponential, and the same for all rays that enter a crown at one place, sweep after sweep.
    """
    half = solids.half_m.T.contiguous()
    cells = [
        torch.floor(axis * (half[number][rows] / _CLUMP_M)).long()
        for number, axis in enumerate(place)
    ]
    owner = solids.thing[rows] * 64 + solids.part[rows]
    words = mix_bits((cells[0] << 40) + (cells[1] << 28) + (cells[2] << 16) + owner)
    return -torch.log1p(-quarter_uniforms(words)[0]) * _CLUMP_FREE_PATH_M


def unpack(keys: Tensor) -> tuple[Tensor, Tensor]:
    """Range in metres (inf: no solid) and row of the solid for packed keys."""
    range_m = (keys >> _INDEX_BITS).to(torch.int32).view(torch.float32)
    solid = keys & ((1 << _INDEX_BITS) - 1)
    missed = torch.isinf(range_m) | (keys == NOTHING)
    return torch.where(missed, torch.inf, range_m), torch.where(missed, -1, solid)


def rays_in_unit_frames(pairs: Pairs, solids: Solids, beams: Beams) -> tuple[Vector, Vector]:
    """Origin and direction of each pair's ray in the unit frame of its solid, [pairs] float32."""
    cos_elevation = beams.cos_elevation[pairs.ring]
    x = cos_elevation * beams.cos_azimuth.view(-1)[pairs.column]
    y = cos_elevation * beams.sin_azimuth.view(-1)[pairs.column]
    z = beams.sin_elevation[pairs.ring]
    rows = solids.to_unit.view(-1, 9).T.contiguous()  # [9, q]
    along_x, along_y, along_z = (
        rows[3 * axis][pairs.solid] * x
        + rows[3 * axis + 1][pairs.solid] * y
        + rows[3 * axis + 2][pairs.solid] * z
        for axis in range(3)
    )
    x, y, z = (column[pairs.solid] for column in solids.origin.T.contiguous())
    return (x, y, z), (along_x, along_y, along_z)
