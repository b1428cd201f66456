"""Kernel maps by columns: what an output site sees of a column of cells, in one number.

Rows are ordered along z within a column, so the sites that a kernel of `kz` taps finds in a column
are consecutive rows. An entry holds the first of them and one bit for each tap, `row << kz | bits`:
nine numbers say what a table of 27 taps says.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from voxelquant.errors import GeometryError
from voxelquant.sparse.backends.triton.bits import bits_below, popcount64
from voxelquant.sparse.backends.triton.overlap import (
    LAUNCH,
    OVERLAP,
    gdc_launch_dependents,
    gdc_wait,
)
from voxelquant.sparse.backends.triton.site_index import SiteIndex
from voxelquant.sparse.conv_geometry import ConvGeometry

MAX_KERNEL_Z = 4
_ROWS = 128  # output sites that a program maps at a time
_PROGRAMS = 2048
_FIELDS = 24


@dataclass(frozen=True)
class MapSpec:
    """One kernel map of a network.

    Attributes:
        in_level: level that the convolution reads.
        out_level: level that it writes.
        geometry: its kernel; of an inverse convolution, that of the convolution it inverts.
        inverse: whether taps lead from the coarse level to the fine one.
    """

    in_level: int
    out_level: int
    geometry: ConvGeometry
    inverse: bool = False

    @property
    def columns(self) -> int:
        """Columns of cells that the kernel sees."""
        return self.geometry.kernel_size[1] * self.geometry.kernel_size[2]


def why_unsupported(geometry: ConvGeometry) -> str | None:
    """What such a map cannot say of a kernel; None if all is well."""
    if geometry.kernel_size[0] > MAX_KERNEL_Z:
        return f"a kernel of {geometry.kernel_size[0]} taps along z, need at most {MAX_KERNEL_Z}"
    if geometry.dilation[0] != 1:
        return f"a dilation of {geometry.dilation[0]} along z, need 1"
    return None


class ColumnMaps:
    """The kernel maps of a network, all built by one launch.

    Args:
        index: the sites.
        specs: what maps are wanted.

    Attributes:
        entries: for each spec `[columns, capacity]` int32; columns in the row-major order of
            `(ky, kx)`.
    """

    def __init__(self, index: SiteIndex, specs: Sequence[MapSpec]) -> None:
        self.index = index
        self.specs = tuple(specs)
        for spec in specs:
            reason = why_unsupported(spec.geometry)
            if reason is not None:
                raise GeometryError(f"got {reason}; run this network layer by layer")
        device = index.words.device
        sizes = [spec.columns * index.levels[spec.out_level].capacity for spec in specs]
        self._all = torch.zeros(sum(sizes), dtype=torch.int32, device=device)
        self.entries: tuple[Tensor, ...] = tuple(
            part.view(spec.columns, -1)
            for part, spec in zip(self._all.split(sizes), specs, strict=True)
        )
        self._table = torch.tensor(self._rows(sizes), dtype=torch.int64, device=device)

    @property
    def bytes(self) -> int:
        """Memory held."""
        return self._all.numel() * self._all.element_size()

    def launch(self, only: slice = slice(None)) -> None:
        """Build the maps of the frame that the index holds.

        Args:
            only: which of them.
        """
        specs = self.specs[only]
        columns = max(spec.columns for spec in specs)
        tiles = sum(
            triton.cdiv(self.index.levels[spec.out_level].capacity, _ROWS) for spec in specs
        )
        _build_maps[(min(tiles, _PROGRAMS),)](
            self._table[only],
            len(specs),
            self.index.words,
            self.index.ranks,
            self.index._all_sites,
            self.index.counts,
            self._all,
            FIELDS=_FIELDS,
            COLUMNS=columns,
            MAPS=triton.next_power_of_2(len(specs)),
            BLOCK=_ROWS,
            num_warps=2,
            **LAUNCH,
        )

    def _rows(self, sizes: list[int]) -> list[list[int]]:
        rows = []
        index = self.index
        first_entry = 0
        for spec, size in zip(self.specs, sizes, strict=True):
            source, target = index.levels[spec.in_level], index.levels[spec.out_level]
            geometry = spec.geometry
            first_site = sum(level.capacity for level in index.levels[: spec.out_level])
            row = [
                spec.out_level,
                first_site,
                target.capacity,
                target.column_bits,
                *target.spatial_shape[1:],
                index.first_words[spec.in_level],
                source.column_bits,
                *source.spatial_shape,
                *geometry.kernel_size,
                *geometry.stride,
                *geometry.effective_padding,
                *geometry.dilation[1:],
                int(spec.inverse),
                first_entry,
            ]
            assert len(row) == _FIELDS
            rows.append(row)
            first_entry += size
        return rows


@triton.jit
def _build_maps(
    table_ptr,
    n_maps,
    words_ptr,
    ranks_ptr,
    sites_ptr,
    counts_ptr,
    entries_ptr,
    FIELDS: tl.constexpr,
    COLUMNS: tl.constexpr,
    MAPS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """All maps, `BLOCK` output sites at a time, dealt out to the programs in turn.

    Forward, tap t of output o reads the cell `s * o - p + d * t`; inverse, it reads the cell o with
    `s * o - p + d * t = i`, where there is one.
    """
    if OVERLAP:
        gdc_wait()
        gdc_launch_dependents()
    numbers = tl.arange(0, MAPS)
    levels = tl.load(table_ptr + numbers * FIELDS, mask=numbers < n_maps, other=0)
    counts = tl.load(counts_ptr + levels, mask=numbers < n_maps, other=0)
    tiles = (counts + BLOCK - 1) // BLOCK
    ends = tl.cumsum(tiles, 0)
    for tile in range(tl.program_id(0), tl.max(ends, 0), tl.num_programs(0)):
        number = tl.sum((ends <= tile).to(tl.int32), 0)
        count = tl.sum(tl.where(numbers == number, counts, 0), 0)
        first = tl.sum(tl.where(numbers < number, tiles, 0), 0)
        rows = (tile - first) * BLOCK + tl.arange(0, BLOCK)
        spec_ptr = table_ptr + number * FIELDS
        _map_rows(
            spec_ptr, rows, rows < count, words_ptr, ranks_ptr, sites_ptr, entries_ptr, COLUMNS
        )


@triton.jit
def _map_rows(
    spec_ptr, rows, there, words_ptr, ranks_ptr, sites_ptr, entries_ptr, COLUMNS: tl.constexpr
):
    cell = tl.load(sites_ptr + tl.load(spec_ptr + 1) + rows, mask=there, other=0)
    out_bits = tl.load(spec_ptr + 3).to(cell.dtype)
    column = cell // out_bits
    z = (cell - column * out_bits).to(tl.int32)
    size_x = tl.load(spec_ptr + 5).to(cell.dtype)
    line = column // size_x
    x = (column - line * size_x).to(tl.int32)
    size_y = tl.load(spec_ptr + 4).to(cell.dtype)
    b = line // size_y
    y = (line - b * size_y).to(tl.int32)
    level_words = words_ptr + tl.load(spec_ptr + 6)
    level_ranks = ranks_ptr + tl.load(spec_ptr + 6)
    in_bits = tl.load(spec_ptr + 7).to(cell.dtype)  # 32 bits, unless the grid has more
    in_z = tl.load(spec_ptr + 8).to(tl.int32)
    in_y_size = tl.load(spec_ptr + 9).to(tl.int32)
    in_x_size = tl.load(spec_ptr + 10).to(tl.int32)
    kernel_z = tl.load(spec_ptr + 11).to(tl.int32)
    kernel_y = tl.load(spec_ptr + 12).to(tl.int32)
    kernel_x = tl.load(spec_ptr + 13).to(tl.int32)
    stride_z = tl.load(spec_ptr + 14).to(tl.int32)
    stride_y = tl.load(spec_ptr + 15).to(tl.int32)
    stride_x = tl.load(spec_ptr + 16).to(tl.int32)
    padding_z = tl.load(spec_ptr + 17).to(tl.int32)
    padding_y = tl.load(spec_ptr + 18).to(tl.int32)
    padding_x = tl.load(spec_ptr + 19).to(tl.int32)
    dilation_y = tl.load(spec_ptr + 20).to(tl.int32)
    dilation_x = tl.load(spec_ptr + 21).to(tl.int32)
    inverse = tl.load(spec_ptr + 22) != 0
    out = entries_ptr + tl.load(spec_ptr + 23) + rows
    capacity = tl.load(spec_ptr + 2)
    # Unrolled: the words of all columns are asked for at once.
    for number in tl.static_range(COLUMNS):
        tap_y = number // kernel_x
        tap_x = number % kernel_x
        in_y, valid_y = _seen(y, tap_y, stride_y, padding_y, dilation_y, in_y_size, inverse)
        in_x, valid_x = _seen(x, tap_x, stride_x, padding_x, dilation_x, in_x_size, inverse)
        wanted = there & (tap_y < kernel_y)
        seen = wanted & valid_y & valid_x
        first_cell = ((b * in_y_size + in_y) * in_x_size + in_x) * in_bits
        if inverse:
            entry = _coarse_entry(
                level_words, level_ranks, first_cell, z, in_z, kernel_z, stride_z, padding_z, seen
            )
        else:
            z0 = z * stride_z - padding_z
            entry = _fine_entry(level_words, level_ranks, first_cell, z0, in_z, kernel_z, seen)
        tl.store(out + number * capacity, entry, mask=wanted)


@triton.jit
def _seen(place, tap, stride, padding, dilation, size, inverse):
    """Cell of the input along an axis, and whether there is one."""
    forward = place * stride - padding + dilation * tap
    shifted = place + padding - dilation * tap
    backward = shifted // stride
    cell = tl.where(inverse, backward, forward)
    valid = (cell >= 0) & (cell < size)
    valid &= (inverse == 0) | ((shifted >= 0) & (backward * stride == shifted))
    return tl.where(valid, cell, 0), valid


@triton.jit
def _window(words_ptr, ranks_ptr, first_cell, z0, size_z, width, seen):
    """Bits of the cells `z0 ... z0 + width - 1` of a column, and the rank of the first of them."""
    start = tl.maximum(z0, 0)
    seen &= start < size_z
    place = first_cell + start
    word = place >> 6
    offset = place & 63
    bits = tl.load(words_ptr + word, mask=seen, other=0).to(tl.uint64, bitcast=True)
    rank = tl.load(ranks_ptr + word, mask=seen, other=0)
    rank += popcount64(bits & bits_below(offset))
    window = bits >> offset.to(tl.uint64)
    # A window may end in the next word of its column, if columns are longer than a word.
    straddles = seen & (offset + width > 64) & ((start + 64 - offset) < size_z)
    if tl.max(straddles.to(tl.int32), 0) > 0:
        more = tl.load(words_ptr + word + 1, mask=straddles, other=0).to(tl.uint64, bitcast=True)
        window |= more << (64 - offset).to(tl.uint64)
    left = tl.minimum(width - (start - z0), size_z - start)  # cells of the window in the column
    left = tl.minimum(tl.maximum(left, 0), 32)
    window = window & bits_below(left)
    return (window << (start - z0).to(tl.uint64)).to(tl.int32), rank


@triton.jit
def _fine_entry(words_ptr, ranks_ptr, first_cell, z0, size_z, kernel_z, seen):
    bits, rank = _window(words_ptr, ranks_ptr, first_cell, z0, size_z, kernel_z, seen)
    return (rank << kernel_z) | bits


@triton.jit
def _coarse_entry(words_ptr, ranks_ptr, first_cell, z, size_z, kernel_z, stride_z, padding_z, seen):
    """Taps lead downwards here: a later tap reads a lower cell.

    Cells o with `s * o = z + p - t` for t = kernel_z - 1 ... 0 are consecutive; their bits are
    spread to the taps that see them. The row of a tap is the first one plus the bits of *later*
    taps.
    """
    top = z + padding_z
    lowest = (tl.maximum(top - kernel_z + stride_z, 0)) // stride_z  # ceil((top - k + 1) / s)
    bits, rank = _window(words_ptr, ranks_ptr, first_cell, lowest, size_z, kernel_z, seen)
    spread = bits * 0
    for step in tl.static_range(4):
        tap = top - (lowest + step) * stride_z
        inside = (tap >= 0) & (tap < kernel_z)
        bit = (bits >> step) & 1
        spread |= tl.where(inside, bit << tl.where(inside, tap, 0), 0)
    return (rank << kernel_z) | spread
