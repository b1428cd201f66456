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
from voxelquant.sparse.backends.triton.row_groups import RowGroups, enter_groups
from voxelquant.sparse.backends.triton.site_index import SiteIndex
from voxelquant.sparse.conv_geometry import ConvGeometry

MAX_KERNEL_Z = 4
_ROWS = 128  # output sites that a program maps at a time
_PROGRAMS = 2048
_FIELDS: tl.constexpr = tl.constexpr(21)  # that tell the kernel of a map
_BOUNDS: tl.constexpr = tl.constexpr(6)  # that tell it where things of a map lie


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
        groups: for each spec its rows by the taps along z that they see, see `row_groups`.
    """

    def __init__(self, index: SiteIndex, specs: Sequence[MapSpec]) -> None:
        self.index = index
        self.specs = tuple(specs)
        for spec in specs:
            reason = why_unsupported(spec.geometry)
            if reason is not None:
                raise GeometryError(f"got {reason}; run this network layer by layer")
        capacities = [index.levels[spec.out_level].capacity for spec in specs]
        sizes = [spec.columns * size for spec, size in zip(specs, capacities, strict=True)]
        self._all = torch.zeros(sum(sizes), dtype=torch.int32, device=index.words.device)
        self.entries: tuple[Tensor, ...] = tuple(
            part.view(spec.columns, -1)
            for part, spec in zip(self._all.split(sizes), specs, strict=True)
        )
        heights = [spec.geometry.kernel_size[0] for spec in specs]
        places = [RowGroups.strips(kz) * n for kz, n in zip(heights, capacities, strict=True)]
        self._rows = torch.zeros(sum(places), dtype=torch.int32, device=index.words.device)
        groups = [1 << kz for kz in heights]
        self._tallies = index.frame.make_tallies(sum(groups))
        self.groups = tuple(
            RowGroups(rows.view(-1, size), counts)
            for rows, size, counts in zip(
                self._rows.split(places), capacities, self._tallies.split(groups), strict=True
            )
        )
        bounds = [
            (
                spec.out_level,
                index.first_sites[spec.out_level],
                capacities[number],
                sum(sizes[:number]),
                sum(places[:number]),
                sum(groups[:number]),
            )
            for number, spec in enumerate(specs)
        ]
        self._bounds = torch.tensor(bounds, dtype=torch.int64, device=index.words.device)

    @property
    def bytes(self) -> int:
        """Memory held."""
        return self._all.nbytes + self._rows.nbytes

    def launch(self, only: slice = slice(None), *, overlap: bool = True) -> None:
        """Build the maps of the frame that the index holds.

        Args:
            only: which of them.
            overlap: whether the launch may begin while its one predecessor ends.
        """
        specs = self.specs[only]
        fields: tuple[int, ...] = ()
        for spec in specs:
            fields += self._map_fields(spec)
        tiles = sum(
            triton.cdiv(self.index.levels[spec.out_level].capacity, _ROWS) for spec in specs
        )
        _build_maps[(min(tiles, _PROGRAMS),)](
            self.index.frame.flags,
            self._bounds[only],
            self.index.words,
            self.index.all_sites,
            self.index.counts,
            self._all,
            self._rows,
            self._tallies,
            SPECS=fields,
            N_MAPS=len(specs),
            MAPS=triton.next_power_of_2(len(specs)),
            BLOCK=_ROWS,
            **(LAUNCH if overlap else {}),
        )

    def _map_fields(self, spec: MapSpec) -> tuple[int, ...]:
        """What the kernel knows of a map; in the order in which `_map_rows` reads it."""
        index, geometry = self.index, spec.geometry
        source, target = index.levels[spec.in_level], index.levels[spec.out_level]
        fields = (
            target.z_bits,
            *target.spatial_shape[1:],
            index.first_words[spec.in_level],
            source.word_cells,
            source.segments,
            *source.spatial_shape,
            *geometry.kernel_size,
            *geometry.stride,
            *geometry.effective_padding,
            *geometry.dilation[1:],
            int(spec.inverse),
        )
        assert len(fields) == _FIELDS.value
        return fields


@triton.jit
def _build_maps(
    flags_ptr,
    bounds_ptr,
    words_ptr,
    sites_ptr,
    counts_ptr,
    entries_ptr,
    rows_ptr,
    tallies_ptr,
    SPECS: tl.constexpr,
    N_MAPS: tl.constexpr,
    MAPS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """All maps, `BLOCK` output sites at a time, dealt out to the programs in turn.

    `bounds` `[maps, 6]`: level of the outputs, its first site, its capacity, first entry, first
    place of rows in groups, first tally of these.
    """
    if OVERLAP:
        gdc_wait()
        gdc_launch_dependents()
    if tl.load(flags_ptr) != 0:
        # Rows may be missing, or too many: the entries of an earlier frame lead nowhere worse.
        return
    numbers = tl.arange(0, MAPS)
    levels = tl.load(bounds_ptr + numbers * _BOUNDS, mask=numbers < N_MAPS, other=0)
    counts = tl.load(counts_ptr + levels, mask=numbers < N_MAPS, other=0)
    tiles = (counts + BLOCK - 1) // BLOCK
    ends = tl.cumsum(tiles, 0)
    for tile in range(tl.program_id(0), tl.max(ends, 0), tl.num_programs(0)):
        number = tl.sum((ends <= tile).to(tl.int32), 0)
        count = tl.sum(tl.where(numbers == number, counts, 0), 0)
        first = tl.sum(tl.where(numbers < number, tiles, 0), 0)
        rows = (tile - first) * BLOCK + tl.arange(0, BLOCK)
        bound_ptr = bounds_ptr + number * _BOUNDS
        first_site = tl.load(bound_ptr + 1)
        capacity = tl.load(bound_ptr + 2)
        out_ptr = entries_ptr + tl.load(bound_ptr + 3) + rows
        group_ptr = rows_ptr + tl.load(bound_ptr + 4)
        tally_ptr = tallies_ptr + tl.load(bound_ptr + 5)
        cell = tl.load(sites_ptr + first_site + rows, mask=rows < count, other=0)
        for spec in tl.static_range(N_MAPS):
            if number == spec:
                there = rows < count
                AT: tl.constexpr = spec * _FIELDS
                taps = _map_rows(cell, there, words_ptr, out_ptr, capacity, SPECS, AT)
                GROUPS: tl.constexpr = 1 << SPECS[AT + 9]
                enter_groups(group_ptr, tally_ptr, rows, taps, there, capacity, GROUPS)


@triton.jit
def _map_rows(cell, there, words_ptr, out_ptr, capacity, SPECS: tl.constexpr, AT: tl.constexpr):
    """Write the entries of some output sites; which taps along z these see in any column.

    Forward, tap t of output o reads the cell `s * o - p + d * t`; inverse, it reads the cell o with
    `s * o - p + d * t = i`, where there is one.
    """
    Z_BITS: tl.constexpr = SPECS[AT]
    OUT_Y: tl.constexpr = SPECS[AT + 1]
    OUT_X: tl.constexpr = SPECS[AT + 2]
    SEGMENTS: tl.constexpr = SPECS[AT + 5]
    SIZE_Z: tl.constexpr = SPECS[AT + 6]
    SIZE_Y: tl.constexpr = SPECS[AT + 7]
    SIZE_X: tl.constexpr = SPECS[AT + 8]
    KERNEL_Z: tl.constexpr = SPECS[AT + 9]
    KERNEL_Y: tl.constexpr = SPECS[AT + 10]
    KERNEL_X: tl.constexpr = SPECS[AT + 11]
    STRIDE_Z: tl.constexpr = SPECS[AT + 12]
    STRIDE_Y: tl.constexpr = SPECS[AT + 13]
    STRIDE_X: tl.constexpr = SPECS[AT + 14]
    PADDING_Z: tl.constexpr = SPECS[AT + 15]
    PADDING_Y: tl.constexpr = SPECS[AT + 16]
    PADDING_X: tl.constexpr = SPECS[AT + 17]
    DILATION_Y: tl.constexpr = SPECS[AT + 18]
    DILATION_X: tl.constexpr = SPECS[AT + 19]
    INVERSE: tl.constexpr = SPECS[AT + 20]
    z = (cell & ((1 << Z_BITS) - 1)).to(tl.int32)
    column = (cell >> Z_BITS).to(tl.int32)
    line = column // OUT_X
    x = column - line * OUT_X
    b = line // OUT_Y
    y = line - b * OUT_Y
    if INVERSE:
        top = z + PADDING_Z
        z0 = tl.maximum(top - KERNEL_Z + STRIDE_Z, 0) // STRIDE_Z  # ceil((top - k + 1) / s)
    else:
        top = z
        z0 = z * STRIDE_Z - PADDING_Z
    taps = cell.to(tl.int32) * 0
    # Unrolled: the words of all columns are asked for at once.
    for tap_y in tl.static_range(KERNEL_Y):
        in_y, valid_y = _seen(y, tap_y * DILATION_Y, STRIDE_Y, PADDING_Y, SIZE_Y, INVERSE)
        for tap_x in tl.static_range(KERNEL_X):
            in_x, valid_x = _seen(x, tap_x * DILATION_X, STRIDE_X, PADDING_X, SIZE_X, INVERSE)
            first_word = ((b * SIZE_Y + in_y) * SIZE_X + in_x) * SEGMENTS
            seen = there & valid_y & valid_x & (z0 < SIZE_Z)
            bits, rank = _window(words_ptr, first_word, z0, seen, SPECS, AT)
            if INVERSE:
                bits = _spread(bits, top - z0 * STRIDE_Z, KERNEL_Z, STRIDE_Z)
            taps |= bits
            entry = (rank << KERNEL_Z) | bits
            tl.store(out_ptr + (tap_y * KERNEL_X + tap_x) * capacity, entry, mask=there)
    return taps


@triton.jit
def _seen(
    place,
    SHIFT: tl.constexpr,
    STRIDE: tl.constexpr,
    PADDING: tl.constexpr,
    SIZE: tl.constexpr,
    INVERSE: tl.constexpr,
):
    """Cell of the input along an axis, and whether there is one."""
    if INVERSE:
        shifted = place + (PADDING - SHIFT)
        cell = shifted // STRIDE
        return cell, (shifted >= 0) & (cell < SIZE) & (cell * STRIDE == shifted)
    else:
        cell = place * STRIDE + (SHIFT - PADDING)
        return cell, (cell >= 0) & (cell < SIZE)


@triton.jit
def _window(words_ptr, first_word, z0, seen, SPECS: tl.constexpr, AT: tl.constexpr):
    """Bits of the cells `z0 ... z0 + kernel - 1` of a column, and the rank of the first of them."""
    FIRST_WORD: tl.constexpr = SPECS[AT + 3]
    CELLS: tl.constexpr = SPECS[AT + 4]
    SEGMENTS: tl.constexpr = SPECS[AT + 5]
    WIDTH: tl.constexpr = SPECS[AT + 9]
    start = tl.maximum(z0, 0)
    place = first_word + start // CELLS
    offset = start % CELLS
    word = tl.load(words_ptr + FIRST_WORD + place, mask=seen, other=0).to(tl.uint64, bitcast=True)
    rank = (word >> CELLS).to(tl.int32) + popcount64(word & bits_below(offset))
    cells = (word & ((1 << CELLS) - 1)) >> offset.to(tl.uint64)
    if SEGMENTS > 1:
        # A window may end in the next word of its column.
        last = seen & (start // CELLS + 1 < SEGMENTS) & (offset + WIDTH > CELLS)
        more = tl.load(words_ptr + FIRST_WORD + place + 1, mask=last, other=0)
        cells |= more.to(tl.uint64, bitcast=True) << (CELLS - offset).to(tl.uint64)
    below = tl.minimum(start - z0, WIDTH).to(tl.uint64)  # cells of the window under the grid
    return ((cells << below) & ((1 << WIDTH) - 1)).to(tl.int32), rank


@triton.jit
def _spread(bits, top, KERNEL: tl.constexpr, STRIDE: tl.constexpr):
    """Bits of consecutive cells of the coarse level, from the lowest, put where their taps are.

    Taps lead downwards here: cell n is seen by tap `top - n * s`. The row of a tap is the first one
    plus the bits of *later* taps.
    """
    spread = bits * 0
    for cell in tl.static_range(4):
        tap = top - cell * STRIDE
        inside = (tap >= 0) & (tap < KERNEL)
        bit = (bits >> cell) & 1
        spread |= tl.where(inside, bit << tl.where(inside, tap, 0), 0)
    return spread
