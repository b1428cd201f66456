"""Sites and neighbours by sorted keys: one sort of everything that sites reach, nine searches.

A key is the level and the cell in one number. The sort
has the upper bound of keys, those of the input and eight for each voxel and further level; what is
not there sorts to the end. So nothing is asked of the host, at the price of sorting the bound
rather than the frame. What differs from its predecessor is a site. For each column of a kernel one
binary search finds the first tap and the keys after it are the others (Spira, 2511.20834). Rows and
entries are those of `ColumnMaps`, bit for bit.
"""

from __future__ import annotations

from math import prod

import torch
import triton
import triton.language as tl
from search_geometry import (
    COLUMNS,
    MAP_FIELDS,
    level_table,
    map_table,
    reached_box,
    read_coords,
    seen_column,
    step_table,
)
from search_problem import FEATURE_WIDTH, SearchProblem, decode_columns
from torch import Tensor

from voxelquant.sparse.backends.triton.overlap import (
    LAUNCH,
    OVERLAP,
    gdc_launch_dependents,
    gdc_wait,
)

_ROWS = 128
_KEYS = 1024


class SortedSearch:
    """Keys of all levels, sorted in one go."""

    def __init__(self, problem: SearchProblem) -> None:
        self.problem = problem
        device = problem.count.device
        capacities = problem.capacities
        sizes = [
            (problem.batch_size * prod(level.spatial_shape[1:])) << level.z_bits
            for level in problem.levels
        ]
        firsts = [sum(sizes[:i]) for i in range(len(sizes) + 1)]
        dtype = torch.int32 if firsts[-1] < 2**31 - 1 else torch.int64
        self.sentinel = torch.iinfo(dtype).max
        fields = level_table(problem.levels)
        reaches = [
            fields[7 * i + 4] * fields[7 * i + 5] * fields[7 * i + 6] for i in range(len(sizes))
        ]
        places = [sum(reaches[:i]) * capacities[0] for i in range(len(sizes) + 1)]
        self.reached = torch.zeros(places[-1], dtype=dtype, device=device)
        self.level_fields = level_table(problem.levels, firsts[:-1], places[:-1])
        self.steps = step_table(problem.levels)
        self.bounds = torch.tensor(firsts, dtype=torch.int64, device=device)
        # One more than fits: what overflows ends there.
        self.keys = torch.zeros(sum(capacities) + 1, dtype=dtype, device=device)
        self.all_sites = torch.zeros(sum(capacities), dtype=torch.int64, device=device)
        self.starts = torch.zeros(len(sizes) + 1, dtype=torch.int32, device=device)
        self.counts = torch.zeros(len(sizes), dtype=torch.int64, device=device)
        widths = [spec.columns for spec in problem.specs]
        ends = [w * capacities[s.out_level] for w, s in zip(widths, problem.specs, strict=True)]
        self.entries = torch.zeros(sum(ends), dtype=torch.int32, device=device)
        self.parts = self.entries.split(ends)
        self.maps = map_table(problem, firsts[:-1], sizes, widths)
        self.tiles = (triton.cdiv(max(capacities), _ROWS), COLUMNS * len(problem.specs))
        self.ordered_features: Tensor | None = torch.zeros(
            (capacities[0], FEATURE_WIDTH), dtype=torch.float16, device=device
        )
        self._order: Tensor | None = None
        self.stages = {
            "sites": self.launch_sites,
            "order": self.launch_order,
            "maps": self.launch_maps,
        }

    @property
    def bytes(self) -> int:
        """Memory held from frame to frame, without what the sort takes."""
        held = (self.reached, self.keys, self.all_sites, self.entries)
        return sum(t.numel() * t.element_size() for t in held)

    def launch_sites(self) -> None:
        """Sort what is reached and keep what differs from its predecessor."""
        p = self.problem
        _write_reached[(triton.cdiv(p.capacities[0], _ROWS),)](
            p.coords_bzyx, p.count, self.reached, p.capacities[0], self.sentinel,
            STEPS=self.steps, TABLE=self.level_fields, LEVELS=len(p.levels), BLOCK=_ROWS, **LAUNCH,
        )  # fmt: skip
        ordered, self._order = torch.sort(self.reached)
        is_new = torch.empty_like(ordered, dtype=torch.int32)
        blocks = (triton.cdiv(len(ordered), _KEYS),)
        _mark_new[blocks](ordered, is_new, len(ordered), self.sentinel, BLOCK=_KEYS, **LAUNCH)
        ranks = torch.cumsum(is_new, 0, dtype=torch.int32)
        _keep_new[blocks](
            ordered, ranks, self.keys, self.bounds, self.starts, len(ordered), len(self.keys) - 1,
            self.sentinel, LEVELS=len(p.levels), BLOCK=_KEYS, **LAUNCH,
        )  # fmt: skip
        self._list_cells()

    def _list_cells(self) -> None:
        p = self.problem
        first_sites = tuple(sum(p.capacities[:i]) for i in range(len(p.levels)))
        _list_cells[(triton.cdiv(max(p.capacities), _KEYS), len(p.levels))](
            self.keys, self.bounds, self.starts, self.counts, self.all_sites,
            CAPACITIES=tuple(p.capacities), FIRST_SITES=first_sites, LEVELS=len(p.levels),
            BLOCK=_KEYS, **LAUNCH,
        )  # fmt: skip

    def launch_order(self) -> None:
        """Features in the order of the rows, which the sort has told."""
        p = self.problem
        _gather_features[(triton.cdiv(p.capacities[0], _ROWS),)](
            p.features, p.count, self._order, self.ordered_features,
            C=p.features.shape[1], WIDTH=FEATURE_WIDTH, BLOCK=_ROWS, **LAUNCH,
        )  # fmt: skip

    def launch_maps(self) -> None:
        """Search every column."""
        _search_columns[self.tiles](
            self.maps, self.keys, self.starts, self.all_sites, self.counts, self.entries,
            FIELDS=MAP_FIELDS, COLUMNS=COLUMNS, KZ=4, BLOCK=_ROWS, **LAUNCH,
        )  # fmt: skip

    def cells(self, level: int) -> Tensor:
        """`[n]` int64 cell of each row of a level."""
        sites = self.all_sites.split(self.problem.capacities)[level]
        return sites[: int(self.counts[level])]

    def table(self, number: int) -> Tensor:
        """`[taps, n]` int64 input row of each tap, -1 where there is none."""
        spec = self.problem.specs[number]
        entries = self.parts[number].view(spec.columns, -1)
        return decode_columns(entries[:, : int(self.counts[spec.out_level])], spec.geometry)


@triton.jit
def _write_reached(
    coords_ptr, count_ptr, reached_ptr, capacity, sentinel,
    STEPS: tl.constexpr, TABLE: tl.constexpr, LEVELS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Keys of all that each voxel reaches, the sentinel where there is nothing."""
    if OVERLAP:
        gdc_wait()
        gdc_launch_dependents()
    rows, there, b, z, y, x = read_coords(coords_ptr, count_ptr, BLOCK)
    for level in tl.static_range(LEVELS):
        _write_level(
            reached_ptr, capacity, sentinel, rows, b, z, y, x, there, STEPS, TABLE, level, LEVELS
        )


@triton.jit
def _write_level(
    reached_ptr, capacity, sentinel, rows, b, z, y, x, there,
    STEPS: tl.constexpr, TABLE: tl.constexpr, LEVEL: tl.constexpr, LEVELS: tl.constexpr,
):  # fmt: skip
    COLUMN_BITS: tl.constexpr = TABLE[LEVEL * 9]
    SIZE_Y: tl.constexpr = TABLE[LEVEL * 9 + 2]
    SIZE_X: tl.constexpr = TABLE[LEVEL * 9 + 3]
    REACH_Z: tl.constexpr = TABLE[LEVEL * 9 + 4]
    REACH_Y: tl.constexpr = TABLE[LEVEL * 9 + 5]
    REACH_X: tl.constexpr = TABLE[LEVEL * 9 + 6]
    FIRST_KEY: tl.constexpr = TABLE[LEVEL * 9 + 7]
    FIRST_PLACE: tl.constexpr = TABLE[LEVEL * 9 + 8]
    z_lo, z_hi, y_lo, y_hi, x_lo, x_hi, some = reached_box(z, y, x, there, STEPS, LEVEL, LEVELS)
    for number in tl.static_range(REACH_Z * REACH_Y * REACH_X):
        in_z = z_lo + number % REACH_Z
        in_x = x_lo + number // REACH_Z % REACH_X
        in_y = y_lo + number // (REACH_Z * REACH_X)
        reached = some & (in_z <= z_hi) & (in_y <= y_hi) & (in_x <= x_hi)
        line = b.to(tl.int64) * SIZE_Y + in_y
        key = (line * SIZE_X + in_x) * COLUMN_BITS + in_z + FIRST_KEY
        key = tl.where(reached, key, sentinel).to(reached_ptr.dtype.element_ty)
        place = FIRST_PLACE + number * capacity + rows
        tl.store(reached_ptr + place, key, mask=rows < capacity)


@triton.jit
def _mark_new(keys_ptr, new_ptr, n, sentinel, BLOCK: tl.constexpr):
    if OVERLAP:
        gdc_wait()
        gdc_launch_dependents()
    places = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    key = tl.load(keys_ptr + places, mask=places < n, other=0)
    before = tl.load(keys_ptr + places - 1, mask=(places > 0) & (places < n), other=-1)
    tl.store(new_ptr + places, ((key != before) & (key != sentinel)).to(tl.int32), mask=places < n)


@triton.jit
def _keep_new(
    keys_ptr, ranks_ptr, kept_ptr, bounds_ptr, starts_ptr, n, capacity, sentinel,
    LEVELS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Keys that differ from their predecessors, and where each level begins among them."""
    if OVERLAP:
        gdc_wait()
        gdc_launch_dependents()
    places = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    there = places < n
    key = tl.load(keys_ptr + places, mask=there, other=0)
    has_before = there & (places > 0)
    before = tl.load(keys_ptr + places - 1, mask=has_before, other=-1)
    rank = tl.load(ranks_ptr + places, mask=there, other=0)
    is_new = there & (key != before) & (key != sentinel)
    tl.store(kept_ptr + rank - 1, key, mask=is_new & (rank <= capacity))
    earlier = tl.load(ranks_ptr + places - 1, mask=has_before, other=0)
    earlier, rank = tl.minimum(earlier, capacity), tl.minimum(rank, capacity)
    for level in tl.static_range(LEVELS + 1):
        bound = tl.load(bounds_ptr + level)
        tl.store(
            starts_ptr + level + places * 0, earlier, mask=there & (before < bound) & (key >= bound)
        )
        # Where even the last key lies before a level, the level begins behind it.
        ends = (places == n - 1) & (key < bound)
        tl.store(starts_ptr + level + places * 0, rank, mask=ends)


@triton.jit
def _list_cells(
    keys_ptr, bounds_ptr, starts_ptr, counts_ptr, sites_ptr,
    CAPACITIES: tl.constexpr, FIRST_SITES: tl.constexpr, LEVELS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Cells and number of the sites of each level."""
    if OVERLAP:
        gdc_wait()
        gdc_launch_dependents()
    for level in tl.static_range(LEVELS):
        if tl.program_id(1) == level:
            start = tl.load(starts_ptr + level)
            count = tl.minimum(tl.load(starts_ptr + level + 1) - start, CAPACITIES[level])
            if tl.program_id(0) == 0:
                tl.store(counts_ptr + level, count.to(tl.int64))
            rows = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
            key = tl.load(keys_ptr + start + rows, mask=rows < count, other=0).to(tl.int64)
            cell = key - tl.load(bounds_ptr + level)
            tl.store(sites_ptr + FIRST_SITES[level] + rows, cell, mask=rows < count)


@triton.jit
def _gather_features(
    x_ptr, count_ptr, order_ptr, out_ptr, C: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr
):
    """The input's keys come first in the order, and its places there are its rows."""
    if OVERLAP:
        gdc_wait()
        gdc_launch_dependents()
    rows = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    there = rows < tl.load(count_ptr)
    source = tl.load(order_ptr + rows, mask=there, other=0)
    channels = tl.arange(0, WIDTH)
    has = there[:, None] & (channels < C)[None, :]
    values = tl.load(x_ptr + source[:, None] * C + channels[None, :], mask=has, other=0.0)
    tl.store(out_ptr + rows[:, None] * WIDTH + channels[None, :], values, mask=there[:, None])


@triton.jit
def _search_columns(
    table_ptr, keys_ptr, starts_ptr, sites_ptr, counts_ptr, entries_ptr,
    FIELDS: tl.constexpr, COLUMNS: tl.constexpr, KZ: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """A column of taps of `BLOCK` output sites: a binary search, then steps."""
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
    kernel_z, in_z = tl.load(spec_ptr + 10).to(tl.int32), tl.load(spec_ptr + 7)
    first_key = column * tl.load(spec_ptr + 6) + tl.load(spec_ptr + 21)
    wanted = first_key + tl.maximum(z0, 0)
    start = tl.load(starts_ptr + tl.load(spec_ptr + 20))
    end = tl.load(starts_ptr + tl.load(spec_ptr + 20) + 1)
    low, high = rows * 0 + start, tl.where(there & seen, end, start)
    while tl.max((low < high).to(tl.int32), 0) > 0:
        middle = (low + high) // 2
        key = tl.load(keys_ptr + middle, mask=low < high, other=0)
        beyond = (low < high) & (key < wanted)
        high = tl.where((low < high) & (key >= wanted), middle, high)
        low = tl.where(beyond, middle + 1, low)
    bits = rows * 0
    for step in tl.static_range(KZ):
        held = there & seen & (low + step < end)
        key = tl.load(keys_ptr + low + step, mask=held, other=-1).to(tl.int64)
        z = key - first_key
        tap = (z - z0).to(tl.int32)
        held &= (z >= 0) & (z < in_z) & (tap >= 0) & (tap < kernel_z)
        bits |= tl.where(held, 1 << tl.where(held, tap, 0), 0)
    out = entries_ptr + tl.load(spec_ptr + 19) + number * tl.load(spec_ptr + 2) + rows
    tl.store(out, ((low - start) << kernel_z) | bits, mask=there)
