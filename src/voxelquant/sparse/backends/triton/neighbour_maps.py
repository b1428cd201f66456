"""Kernel maps built by a few kernels, equal to those of `sparse/neighbour_search.py`.

The occupied cells of a grid are a bitmap; the number of bits set before a cell is the row of its
site where rows are in row-major order, and its place in a list of rows where they are not. The
outputs of a strided convolution are marked in a bitmap of their own, which orders them without a
sort and serves the submanifold map on them as well. Their number is the one thing that the host
has to wait for.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from voxelquant.sparse.backends.triton import neighbour_kernels as kernels
from voxelquant.sparse.backends.triton.launch import Launcher
from voxelquant.sparse.conv_geometry import ConvGeometry, Triple
from voxelquant.sparse.kernel_map import KernelMap

_WORD_BITS = 64
_BLOCK_WORDS = 2048  # words whose bits one program counts
_SUMS = 1024  # sums of blocks that are added at once
_LIST_WORDS = 64  # a warp for itself: its loop ends with its fullest word
_BLOCK_ROWS = 256
_OWN_CELL = ConvGeometry((1, 1, 1))

_mark_readers = Launcher(kernels.mark_readers)
_count_bits = Launcher(kernels.count_bits)
_rank_bits = Launcher(kernels.rank_bits)
_place_rows = Launcher(kernels.place_rows)
_list_cells = Launcher(kernels.list_cells)
_look_up_taps = Launcher(kernels.look_up_taps)
_scatter_pairs = Launcher(kernels.scatter_pairs)
_turn_table = Launcher(kernels.turn_table)


@dataclass(frozen=True)
class SiteBitmap:
    """The occupied cells of a grid.

    Attributes:
        words: `[words]` int64, a row of cells along x in `row_words` of them.
        ranks: `[words]` int32 bits before each word; undefined where a word is empty.
        total: int32 number of occupied cells, without an axis.
        spatial_shape: grid (z, y, x).
        rows: `[n]` int32 row of the site of each rank; None where row and rank are the same.
    """

    words: Tensor
    ranks: Tensor
    total: Tensor
    spatial_shape: Triple
    rows: Tensor | None = None

    @property
    def row_words(self) -> int:
        """Words of a row of cells along x."""
        return _row_words(self.spatial_shape)


def build_kernel_map(
    coords_bzyx: Tensor,
    spatial_shape: Triple,
    batch_size: int,
    geometry: ConvGeometry,
    bitmap: SiteBitmap | None = None,
) -> tuple[KernelMap, Tensor, SiteBitmap | None]:
    """Kernel map of a convolution on active sites.

    Args:
        coords_bzyx: `[n, 4]` integer unique coordinates inside the grid.
        spatial_shape: grid (z, y, x).
        batch_size: number of samples.
        geometry: kernel geometry.
        bitmap: that of the sites, where it is known.

    Returns:
        The map, the output coordinates `[m, 4]` int32, and the bitmap of new outputs.

    Raises:
        GeometryError: no output is left of the grid.
    """
    coords = coords_bzyx.contiguous()
    if not geometry.subm:
        return _strided_map(coords, spatial_shape, batch_size, geometry)
    if bitmap is None:
        bitmap = _index_sites(coords, spatial_shape, batch_size)
    table = _submanifold_table(coords, geometry, bitmap)
    kernel_map = KernelMap(table, len(coords), geometry.taps // 2, mirrored=True)
    return kernel_map, coords_bzyx, None


def transpose_table(table: Tensor, n_in: int) -> Tensor:
    """`[k, n_in]` int32 output row that reads each input row through each tap; n_out for none."""
    taps, n_out = table.shape
    turned = table.new_full((taps, n_in), n_out)
    operands = (table.contiguous(), turned)
    _turn_table((_programs(n_out), taps, 1), operands, (n_in, n_out), (_BLOCK_ROWS,))
    return turned


def _index_sites(coords: Tensor, spatial_shape: Triple, batch_size: int) -> SiteBitmap:
    bitmap = _mark(coords, spatial_shape, batch_size, _OWN_CELL)
    n = len(coords)
    rows = bitmap.ranks.new_empty(n)
    _place_rows(
        (_programs(n), 1, 1),
        (coords, bitmap.words, bitmap.ranks, rows),
        (n, *spatial_shape[:2], bitmap.row_words),
        (_BLOCK_ROWS,),
    )
    return replace(bitmap, rows=rows)


def _submanifold_table(coords: Tensor, geometry: ConvGeometry, bitmap: SiteBitmap) -> Tensor:
    n = len(coords)
    table = bitmap.ranks.new_empty((geometry.taps, n))
    in_order = bitmap.rows is None
    rows_or_any = bitmap.ranks if bitmap.rows is None else bitmap.rows
    kz, ky, _ = geometry.kernel_size
    _look_up_taps(
        (_programs(n), kz * ky, 1),
        (coords, bitmap.words, bitmap.ranks, rows_or_any, table),
        (n, *bitmap.spatial_shape, bitmap.row_words),
        (_constants(geometry), in_order, _BLOCK_ROWS),
    )
    return table


def _strided_map(
    coords: Tensor, spatial_shape: Triple, batch_size: int, geometry: ConvGeometry
) -> tuple[KernelMap, Tensor, SiteBitmap]:
    n = len(coords)
    out_shape = geometry.output_shape(spatial_shape)
    bitmap = _mark(coords, out_shape, batch_size, geometry)
    m = int(bitmap.total.item())
    out_coords = bitmap.ranks.new_empty((m, 4))
    _list_cells(
        (len(bitmap.words) // _LIST_WORDS if m else 0, 1, 1),
        (bitmap.words, bitmap.ranks, out_coords),
        (*out_shape[:2], bitmap.row_words),
        (_LIST_WORDS,),
        warps=1,
    )
    table = bitmap.ranks.new_full((geometry.taps, m), n)
    _scatter_pairs(
        (_programs(n) if m else 0, 1, 1),
        (coords, bitmap.words, bitmap.ranks, table),
        (n, m, *out_shape, bitmap.row_words),
        (_constants(geometry), _BLOCK_ROWS),
    )
    return KernelMap(table, n), out_coords, bitmap


def _mark(coords: Tensor, out_shape: Triple, batch_size: int, geometry: ConvGeometry) -> SiteBitmap:
    """Bitmap of the outputs that read any of the sites."""
    row_words = _row_words(out_shape)
    blocks = -(-batch_size * out_shape[0] * out_shape[1] * row_words // _BLOCK_WORDS)
    words = torch.zeros(blocks * _BLOCK_WORDS, dtype=torch.int64, device=coords.device)
    sums = words.new_empty(blocks + 1, dtype=torch.int32)  # of every block, then of all
    ranks = words.new_empty(len(words), dtype=torch.int32)
    n = len(coords)
    _mark_readers(
        (_programs(n), 1, 1),
        (coords, words),
        (n, *out_shape, row_words),
        (_constants(geometry), _BLOCK_ROWS),
    )
    _count_bits((blocks, 1, 1), (words, sums), (), (_BLOCK_WORDS,))
    _rank_bits((blocks, 1, 1), (words, sums, ranks), (), (_BLOCK_WORDS, _SUMS))
    return SiteBitmap(words, ranks, sums[blocks], out_shape)


def _row_words(spatial_shape: Triple) -> int:
    return -(-spatial_shape[2] // _WORD_BITS)


def _programs(rows: int) -> int:
    return -(-rows // _BLOCK_ROWS)


def _constants(geometry: ConvGeometry) -> tuple[int, ...]:
    """Kernel, stride, padding and dilation by axis, as the kernels read them."""
    return (
        *geometry.kernel_size,
        *geometry.stride,
        *geometry.effective_padding,
        *geometry.dilation,
    )
