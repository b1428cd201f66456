"""The ends of the sparse part: features put into the order of rows, and the dense map."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from voxelquant.sparse.backends.triton.bits import bits_below, popcount64
from voxelquant.sparse.backends.triton.overlap import (
    LAUNCH,
    OVERLAP,
    gdc_launch_dependents,
    gdc_wait,
)
from voxelquant.sparse.backends.triton.site_index import SiteIndex
from voxelquant.sparse.backends.triton.site_kernels import FLAG_OUTSIDE

_BLOCK_X = 128
_BLOCK_C = 32
_ROWS = 128
_OUTSIDE: tl.constexpr = tl.constexpr(FLAG_OUTSIDE)


def order_features(index: SiteIndex, channels: int, out: Tensor) -> None:
    """Write features and cells of the frame in the order of the first level's rows.

    Sites outside of the grid raise a flag.

    Args:
        index: the sites, launched.
        channels: of a voxel.
        out: `[capacity, stride]` float16, stride >= channels; the columns beyond become zero.
    """
    level = index.levels[0]
    _order_features[(triton.cdiv(level.capacity, _ROWS),)](
        index.frame.fields,
        index.words,
        index.sites[0],
        out,
        BATCH=index.batch_size,
        SIZE_Z=level.spatial_shape[0],
        SIZE_Y=level.spatial_shape[1],
        SIZE_X=level.spatial_shape[2],
        Z_BITS=level.z_bits,
        CELLS=level.word_cells,
        SEGMENTS=level.segments,
        C=channels,
        STRIDE=out.shape[1],
        WIDTH=triton.next_power_of_2(out.shape[1]),
        BLOCK=_ROWS,
        **LAUNCH,
    )


@triton.jit
def _order_features(
    frame_ptr,
    words_ptr,
    sites_ptr,
    out_ptr,
    BATCH: tl.constexpr,
    SIZE_Z: tl.constexpr,
    SIZE_Y: tl.constexpr,
    SIZE_X: tl.constexpr,
    Z_BITS: tl.constexpr,
    CELLS: tl.constexpr,
    SEGMENTS: tl.constexpr,
    C: tl.constexpr,
    STRIDE: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
):
    if OVERLAP:
        gdc_wait()
        gdc_launch_dependents()
    count = tl.load(frame_ptr + 2)
    if tl.program_id(0) * BLOCK >= count:
        return
    features_ptr = tl.load(frame_ptr).to(tl.pointer_type(tl.float16))
    coords_ptr = tl.load(frame_ptr + 1).to(tl.pointer_type(tl.int32))
    rows = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    there = rows < count
    b = tl.load(coords_ptr + rows * 4, mask=there, other=0)
    z = tl.load(coords_ptr + rows * 4 + 1, mask=there, other=0)
    y = tl.load(coords_ptr + rows * 4 + 2, mask=there, other=0)
    x = tl.load(coords_ptr + rows * 4 + 3, mask=there, other=0)
    inside = (b >= 0) & (b < BATCH) & (z >= 0) & (y >= 0) & (x >= 0)
    inside &= (z < SIZE_Z) & (y < SIZE_Y) & (x < SIZE_X)
    outside = tl.max((there & (inside == 0)).to(tl.int32), 0)
    if outside > 0:
        tl.atomic_or(frame_ptr + 3, outside.to(tl.int64) * _OUTSIDE)
    there &= inside
    channels = tl.arange(0, WIDTH)
    has = there[:, None] & (channels < C)[None, :]
    values = tl.load(features_ptr + rows[:, None] * C + channels[None, :], mask=has, other=0.0)
    column = (b * SIZE_Y + y) * SIZE_X + x
    word = tl.load(words_ptr + column * SEGMENTS + z // CELLS, mask=there, other=0)
    word = word.to(tl.uint64, bitcast=True)
    rank = (word >> CELLS).to(tl.int32) + popcount64(word & bits_below(z % CELLS))
    cell = (column.to(sites_ptr.dtype.element_ty) << Z_BITS) | z
    tl.store(sites_ptr + rank, cell, mask=there)
    held = there[:, None] & (channels < STRIDE)[None, :]
    tl.store(out_ptr + rank[:, None] * STRIDE + channels[None, :], values, mask=held)


def densify(index: SiteIndex, level_number: int, features: Tensor, out: Tensor) -> None:
    """Write rows onto the dense grid, the height folded into channels: channel = c * Z + z.

    Every cell is written, so `out` needs no clearing. A frame that raised a flag leaves NaN.

    Args:
        index: the sites, launched.
        level_number: level of the features.
        features: `[capacity, c]` float16.
        out: `[b, c * Z, Y, X]` float16.
    """
    level = index.levels[level_number]
    size_z, size_y, size_x = level.spatial_shape
    c = features.shape[1]
    grid = (
        index.batch_size * size_y * triton.cdiv(size_x, _BLOCK_X),
        triton.cdiv(c, _BLOCK_C),
        size_z,
    )
    _densify[grid](
        features,
        index.words[index.first_words[level_number] :],
        index.frame.flags,
        out,
        CELLS=level.word_cells,
        SEGMENTS=level.segments,
        C=c,
        SIZE_Z=size_z,
        SIZE_Y=size_y,
        SIZE_X=size_x,
        BLOCK_X=_BLOCK_X,
        BLOCK_C=_BLOCK_C,
        **LAUNCH,
    )


@triton.jit
def _densify(
    x_ptr,
    words_ptr,
    flags_ptr,
    out_ptr,
    CELLS: tl.constexpr,
    SEGMENTS: tl.constexpr,
    C: tl.constexpr,
    SIZE_Z: tl.constexpr,
    SIZE_Y: tl.constexpr,
    SIZE_X: tl.constexpr,
    BLOCK_X: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Program (line and run of cells, channels, z).

    Sizes are known to the compiler, so that neighbours along x leave in wide stores.
    """
    if OVERLAP:
        gdc_wait()
        gdc_launch_dependents()
    RUNS: tl.constexpr = (SIZE_X + BLOCK_X - 1) // BLOCK_X
    line = tl.program_id(0) // RUNS  # b * Y + y
    x = (tl.program_id(0) % RUNS) * BLOCK_X + tl.arange(0, BLOCK_X)
    channels = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    z = tl.program_id(2)
    inside = x < SIZE_X
    place = (line * SIZE_X + x) * SEGMENTS + z // CELLS
    word = tl.load(words_ptr + place, mask=inside, other=0).to(tl.uint64, bitcast=True)
    active = inside & (((word >> (z % CELLS).to(tl.uint64)) & 1) != 0)
    rank = (word >> CELLS).to(tl.int32) + popcount64(word & bits_below(z % CELLS))
    raised = tl.load(flags_ptr) != 0
    has = (active & (raised == 0))[:, None] & (channels < C)[None, :]
    values = tl.load(x_ptr + rank[:, None] * C + channels[None, :], mask=has, other=0.0)
    if raised:
        values += float("nan")
    batch = line // SIZE_Y
    y = line - batch * SIZE_Y
    corner = out_ptr + ((batch * C).to(tl.int64) * SIZE_Z + z) * (SIZE_Y * SIZE_X) + y * SIZE_X
    places = channels[:, None] * (SIZE_Z * SIZE_Y * SIZE_X) + x[None, :]
    tl.store(corner + places, tl.trans(values), mask=inside[None, :] & (channels < C)[:, None])
