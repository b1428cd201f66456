"""Sites and neighbours by a hash table of columns: nine look-ups, and the entries of `ColumnMaps`.

The tables are those of `search_hash.py`, their values the occupied cells of a column and the row of
the first one. Rows of a column lie together; where columns lie is left to the hash, and to the race
of the programs that number them.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from search_geometry import COLUMNS, MAP_FIELDS, reached_box, read_coords, seen_column
from search_hash import HashSearch, find_keys, insert_keys
from search_problem import FEATURE_WIDTH, SearchProblem, decode_columns
from torch import Tensor

from voxelquant.sparse.backends.triton.bits import bits_below, popcount64
from voxelquant.sparse.backends.triton.overlap import (
    LAUNCH,
    OVERLAP,
    gdc_launch_dependents,
    gdc_wait,
)

_ROWS = 128
_SLOTS = 1024  # of which a program numbers the cells; tables have at least as many


class ColumnHashSearch(HashSearch):
    """A table of columns for each level."""

    def __init__(self, problem: SearchProblem) -> None:
        super().__init__(problem)
        if any(level.spatial_shape[0] > 64 for level in problem.levels):
            raise ValueError("got columns of more than 64 cells, need at most 64")
        total = len(self.keys)
        self.columns = self._cleared[total : 2 * total]
        blocks = []
        for level, slots in enumerate(self.slots):
            blocks += [level] * (slots // _SLOTS)
        self.blocks = torch.tensor(blocks, dtype=torch.int32, device=problem.count.device)
        n_levels = len(problem.levels)
        fields = torch.tensor(self.level_fields, dtype=torch.int64).view(n_levels, -1)
        self.level_rows = fields.to(problem.count.device)
        self.ordered_features = torch.zeros(
            (problem.capacities[0], FEATURE_WIDTH), dtype=torch.float16, device=problem.count.device
        )
        self.stages = {
            "sites": self.launch_sites,
            "order": self.launch_order,
            "maps": self.launch_maps,
        }

    def _clearable(self, slots: int, levels: int, device: torch.device) -> Tensor:
        return torch.zeros(2 * slots + levels, dtype=torch.int64, device=device)

    def width(self, number: int) -> int:
        """Numbers that a map holds for an output site."""
        return self.problem.specs[number].columns

    def launch_sites(self) -> None:
        """Insert the columns of all levels, then number their cells."""
        self._cleared.zero_()
        p = self.problem
        _insert_columns[(triton.cdiv(p.capacities[0], _ROWS),)](
            p.coords_bzyx, p.count, self.keys, self.columns,
            STEPS=self.steps, TABLE=self.level_fields, LEVELS=len(p.levels), BLOCK=_ROWS, **LAUNCH,
        )  # fmt: skip
        _number_columns[(len(self.blocks),)](
            self.keys, self.columns, self.rows, self.all_sites, self.counts,
            self.blocks, self.level_rows, FIELDS=self.level_rows.shape[1], BLOCK=_SLOTS, **LAUNCH,
        )  # fmt: skip

    def launch_order(self) -> None:
        """Features in the order of the rows."""
        p, level = self.problem, self.problem.levels[0]
        _order_by_columns[(triton.cdiv(level.capacity, _ROWS),)](
            p.features, p.coords_bzyx, p.count, self.keys, self.columns, self.rows,
            self.ordered_features, *level.spatial_shape[1:], SLOTS=self.slots[0],
            C=p.features.shape[1], WIDTH=FEATURE_WIDTH, BLOCK=_ROWS, **LAUNCH,
        )  # fmt: skip

    def launch_maps(self) -> None:
        """Look up every column."""
        _look_up_columns[self.tiles](
            self.maps, self.keys, self.columns, self.rows, self.all_sites, self.counts,
            self.entries, FIELDS=MAP_FIELDS, COLUMNS=COLUMNS, BLOCK=_ROWS, **LAUNCH,
        )  # fmt: skip

    def table(self, number: int) -> Tensor:
        """`[taps, n]` int64 input row of each tap, -1 where there is none."""
        return decode_columns(super().table(number), self.problem.specs[number].geometry)


@triton.jit
def _insert_columns(
    coords_ptr, count_ptr, keys_ptr, columns_ptr,
    STEPS: tl.constexpr, TABLE: tl.constexpr, LEVELS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    if OVERLAP:
        gdc_wait()
        gdc_launch_dependents()
    if tl.program_id(0) * BLOCK >= tl.load(count_ptr):
        return
    _, there, b, z, y, x = read_coords(coords_ptr, count_ptr, BLOCK)
    for level in tl.static_range(LEVELS):
        there = _insert_level(keys_ptr, columns_ptr, b, z, y, x, there, STEPS, TABLE, level, LEVELS)


@triton.jit
def _insert_level(
    keys_ptr, columns_ptr, b, z, y, x, there,
    STEPS: tl.constexpr, TABLE: tl.constexpr, LEVEL: tl.constexpr, LEVELS: tl.constexpr,
):  # fmt: skip
    """Insert the columns that sites reach on a level; returns who set a bit that was not set."""
    SIZE_Y: tl.constexpr = TABLE[LEVEL * 11 + 2]
    SIZE_X: tl.constexpr = TABLE[LEVEL * 11 + 3]
    REACH_Y: tl.constexpr = TABLE[LEVEL * 11 + 5]
    REACH_X: tl.constexpr = TABLE[LEVEL * 11 + 6]
    FIRST: tl.constexpr = TABLE[LEVEL * 11 + 7]
    SLOTS: tl.constexpr = TABLE[LEVEL * 11 + 8]
    z_lo, z_hi, y_lo, y_hi, x_lo, x_hi, there = reached_box(z, y, x, there, STEPS, LEVEL, LEVELS)
    run = ((bits_below(z_hi & 63) << 1) | 1) & ~bits_below(z_lo & 63)
    is_new = there & False
    for dy in tl.static_range(REACH_Y):
        for dx in tl.static_range(REACH_X):
            key = ((b.to(tl.int64) * SIZE_Y) + y_lo + dy) * SIZE_X + x_lo + dx + 1
            reached = there & (y_lo + dy <= y_hi) & (x_lo + dx <= x_hi)
            place, _ = insert_keys(keys_ptr + FIRST, key, reached, SLOTS)
            ptr = columns_ptr + FIRST + place
            old = tl.load(ptr, mask=reached, other=0).to(tl.uint64, bitcast=True)
            missing = reached & ((old & run) != run)
            old = tl.atomic_or(ptr, run.to(tl.int64, bitcast=True), mask=missing)
            is_new |= missing & ((old.to(tl.uint64, bitcast=True) & run) != run)
    return is_new


@triton.jit
def _number_columns(
    keys_ptr, columns_ptr, rows_ptr, sites_ptr, counts_ptr, blocks_ptr, levels_ptr,
    FIELDS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Rows of the cells of columns, in the order of the slots of a program."""
    if OVERLAP:
        gdc_wait()
        gdc_launch_dependents()
    places = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    columns = tl.load(columns_ptr + places).to(tl.uint64, bitcast=True)
    if tl.max((columns != 0).to(tl.int32), 0) == 0:
        return
    level = tl.load(blocks_ptr + tl.program_id(0))
    count = popcount64(columns).to(tl.int64)
    base = tl.atomic_add(counts_ptr + level, tl.sum(count, 0))
    row = base + tl.cumsum(count, 0) - count
    tl.store(rows_ptr + places, row.to(tl.int32), mask=columns != 0)
    first_cell = (tl.load(keys_ptr + places) - 1) * tl.load(levels_ptr + level * FIELDS)
    first_site = tl.load(levels_ptr + level * FIELDS + 9)
    capacity = tl.load(levels_ptr + level * FIELDS + 10)
    while tl.max((columns != 0).to(tl.int32), 0) > 0:
        lower = columns & (columns - 1)
        cell = first_cell + popcount64((columns ^ lower) - 1)
        held = (columns != 0) & (row < capacity)
        tl.store(sites_ptr + first_site + row, cell, mask=held)
        columns = lower
        row += 1


@triton.jit
def _order_by_columns(
    x_ptr, coords_ptr, count_ptr, keys_ptr, columns_ptr, rows_ptr, out_ptr, size_y, size_x,
    SLOTS: tl.constexpr, C: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    if OVERLAP:
        gdc_wait()
        gdc_launch_dependents()
    if tl.program_id(0) * BLOCK >= tl.load(count_ptr):
        return
    rows, there, b, z, y, x = read_coords(coords_ptr, count_ptr, BLOCK)
    key = (b.to(tl.int64) * size_y + y) * size_x + x + 1
    place, found = find_keys(keys_ptr, key, there, tl.full([1], SLOTS, tl.int64))
    column = tl.load(columns_ptr + place, mask=found, other=0).to(tl.uint64, bitcast=True)
    row = tl.load(rows_ptr + place, mask=found, other=0) + popcount64(column & bits_below(z))
    channels = tl.arange(0, WIDTH)
    has = there[:, None] & (channels < C)[None, :]
    values = tl.load(x_ptr + rows[:, None] * C + channels[None, :], mask=has, other=0.0)
    tl.store(out_ptr + row[:, None] * WIDTH + channels[None, :], values, mask=found[:, None])


@triton.jit
def _look_up_columns(
    table_ptr, keys_ptr, columns_ptr, rows_ptr, sites_ptr, counts_ptr, entries_ptr,
    FIELDS: tl.constexpr, COLUMNS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """A column of taps of `BLOCK` output sites."""
    if OVERLAP:
        gdc_wait()
        gdc_launch_dependents()
    spec_ptr = table_ptr + tl.program_id(1) // COLUMNS * FIELDS
    number = tl.program_id(1) % COLUMNS
    count = tl.load(counts_ptr + tl.load(spec_ptr))
    if (tl.program_id(0) * BLOCK >= count) | (number >= tl.load(spec_ptr + 11)):
        return
    rows = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    there = rows < count
    cell = tl.load(sites_ptr + tl.load(spec_ptr + 1) + rows, mask=there, other=0)
    column, z0, seen = seen_column(spec_ptr, cell, number)
    first = tl.load(spec_ptr + 21)
    place, found = find_keys(keys_ptr + first, column + 1, there & seen, tl.load(spec_ptr + 22))
    word = tl.load(columns_ptr + first + place, mask=found, other=0).to(tl.uint64, bitcast=True)
    row = tl.load(rows_ptr + first + place, mask=found, other=0)
    kernel_z = tl.load(spec_ptr + 10).to(tl.int32)
    start = tl.minimum(tl.maximum(z0, 0), 63)
    row += popcount64(word & bits_below(start))
    window = (word >> start.to(tl.uint64)) << (start - z0).to(tl.uint64)
    window = (window & bits_below(z0 * 0 + kernel_z)).to(tl.int32)
    out = entries_ptr + tl.load(spec_ptr + 19) + number * tl.load(spec_ptr + 2) + rows
    tl.store(out, (row << kernel_z) | window, mask=there)
