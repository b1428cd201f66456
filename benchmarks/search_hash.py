"""Sites and neighbours by hash tables: of cells, and of columns of cells.

Keys of 64 bits, mixed as in splitmix64 (Steele 2014), linear probing, tables of at least twice the
upper bound of sites, insertion by compare-and-swap; one memset clears all tables. Levels are
reached from the input's sites, and who inserts nothing new goes no further, as in `SiteIndex`.

- `HashSearch`: a key is a cell, its value the row; a kernel of 27 taps looks up 27 keys. Rows are
  numbered as they come, so the input's features stay where they are, but the maps have a number for
  every tap, and rows of the other levels lie in no order at all, another one in every run.
- `ColumnHashSearch`: a key is a column, its value the occupied cells and the row of the first one.
  Nine look-ups, and the entries of `ColumnMaps`; rows of a column lie together, columns do not.
"""

from __future__ import annotations

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

from voxelquant.sparse.backends.triton.bits import bits_below, popcount64
from voxelquant.sparse.backends.triton.overlap import (
    LAUNCH,
    OVERLAP,
    gdc_launch_dependents,
    gdc_wait,
)

_ROWS = 128
_SLOTS = 1024  # of which a program numbers the columns
_LEAST_SLOTS = 2 * _SLOTS


class HashSearch:
    """A table of cells for each level."""

    ordered_features: Tensor | None = None

    def __init__(self, problem: SearchProblem) -> None:
        self.problem = problem
        device = problem.count.device
        capacities = problem.capacities
        self.slots = [max(_LEAST_SLOTS, triton.next_power_of_2(2 * c)) for c in capacities]
        firsts = [sum(self.slots[:i]) for i in range(len(capacities))]
        first_sites = [sum(capacities[:i]) for i in range(len(capacities))]
        total = sum(self.slots)
        # Keys (cell or column, plus one; 0 is empty), then counts: one memset clears them.
        self._cleared = self._clearable(total, len(capacities), device)
        self.keys = self._cleared[:total]
        self.counts = self._cleared[-len(capacities) :]
        self.rows = torch.zeros(total, dtype=torch.int32, device=device)
        self.all_sites = torch.zeros(sum(capacities), dtype=torch.int64, device=device)
        self.steps = step_table(problem.levels)
        self.level_fields = level_table(problem.levels, firsts, self.slots, first_sites, capacities)
        widths = [self.width(number) for number in range(len(problem.specs))]
        sizes = [w * capacities[s.out_level] for w, s in zip(widths, problem.specs, strict=True)]
        self.entries = torch.zeros(sum(sizes), dtype=torch.int32, device=device)
        self.parts = self.entries.split(sizes)
        self.maps = map_table(problem, firsts, self.slots, widths)
        self.tiles = (triton.cdiv(max(capacities), _ROWS), COLUMNS * len(problem.specs))
        self.stages = {"sites": self.launch_sites, "maps": self.launch_maps}

    def _clearable(self, slots: int, levels: int, device: torch.device) -> Tensor:
        return torch.zeros(slots + levels, dtype=torch.int64, device=device)

    def width(self, number: int) -> int:
        """Numbers that a map holds for an output site."""
        return self.problem.specs[number].geometry.taps

    @property
    def bytes(self) -> int:
        """Memory held from frame to frame."""
        held = (self._cleared, self.rows, self.all_sites, self.entries)
        return sum(t.numel() * t.element_size() for t in held)

    def launch_sites(self) -> None:
        """Insert the cells of all levels and number them."""
        self._cleared.zero_()
        p = self.problem
        _insert_cells[(triton.cdiv(p.capacities[0], _ROWS),)](
            p.coords_bzyx, p.count, self.keys, self.rows, self.all_sites, self.counts,
            STEPS=self.steps, TABLE=self.level_fields, LEVELS=len(p.levels), BLOCK=_ROWS, **LAUNCH,
        )  # fmt: skip

    def launch_maps(self) -> None:
        """Look up the row of every tap."""
        _look_up_taps[self.tiles](
            self.maps, self.keys, self.rows, self.all_sites, self.counts, self.entries,
            FIELDS=MAP_FIELDS, COLUMNS=COLUMNS, KZ=4, BLOCK=_ROWS, **LAUNCH,
        )  # fmt: skip

    def cells(self, level: int) -> Tensor:
        """`[n]` int64 cell of each row of a level."""
        sites = self.all_sites.split(self.problem.capacities)[level]
        return sites[: int(self.counts[level])]

    def table(self, number: int) -> Tensor:
        """`[taps, n]` int64 input row of each tap, -1 where there is none."""
        spec = self.problem.specs[number]
        entries = self.parts[number].view(self.width(number), -1)
        return entries[:, : int(self.counts[spec.out_level])].long()


class ColumnHashSearch(HashSearch):
    """A table of columns for each level."""

    def __init__(self, problem: SearchProblem) -> None:
        super().__init__(problem)
        if any(level.column_bits > 64 for level in problem.levels):
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
def _mix(key):
    """The finalizer of splitmix64."""
    key = key.to(tl.uint64, bitcast=True)
    key = (key ^ (key >> 30)) * 0xBF58476D1CE4E5B9
    key = (key ^ (key >> 27)) * 0x94D049BB133111EB
    return key ^ (key >> 31)


@triton.jit
def _first_place(key, slots):
    return (_mix(key) & (slots - 1).to(tl.uint64)).to(tl.int64)


@triton.jit
def _insert(keys_ptr, key, wanted, SLOTS: tl.constexpr):
    """Place of each key, and whether this call put it there."""
    place = _first_place(key, tl.full([1], SLOTS, tl.int64))
    open_ = wanted
    won = wanted & False
    probes = 0
    while (tl.max(open_.to(tl.int32), 0) > 0) & (probes < SLOTS):
        held = tl.load(keys_ptr + place, mask=open_, other=1)
        vacant = open_ & (held == 0)
        if tl.max(vacant.to(tl.int32), 0) > 0:
            # The swap has no mask: what must not swap compares with what is never stored.
            none = tl.where(vacant, 0, -1).to(tl.int64)
            old = tl.atomic_cas(keys_ptr + place, none, key)
            won |= vacant & (old == 0)
            held = tl.where(vacant & (old == 0), key, old)
        open_ &= held != key
        place = tl.where(open_, (place + 1) & (SLOTS - 1), place)
        probes += 1
    return place, won


@triton.jit
def _find(keys_ptr, key, wanted, slots):
    """Place of each key, and whether the table has it; any shape."""
    place = _first_place(key, slots)
    open_ = wanted
    found = wanted & False
    while tl.max(open_.to(tl.int32)) > 0:
        held = tl.load(keys_ptr + place, mask=open_, other=0)
        found |= open_ & (held == key)
        open_ &= (held != key) & (held != 0)
        place = tl.where(open_, (place + 1) & (slots - 1), place)
    return place, found


@triton.jit
def _insert_cells(
    coords_ptr, count_ptr, keys_ptr, rows_ptr, sites_ptr, counts_ptr,
    STEPS: tl.constexpr, TABLE: tl.constexpr, LEVELS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    if OVERLAP:
        gdc_wait()
        gdc_launch_dependents()
    if tl.program_id(0) * BLOCK >= tl.load(count_ptr):
        return
    rows, there, b, z, y, x = read_coords(coords_ptr, count_ptr, BLOCK)
    cell = ((b.to(tl.int64) * TABLE[2] + y) * TABLE[3] + x) * TABLE[0] + z
    place, first = _insert(keys_ptr, cell + 1, there, TABLE[8])
    tl.store(rows_ptr + place, rows, mask=first)
    tl.store(sites_ptr + rows, cell, mask=first)
    tl.atomic_add(counts_ptr, tl.sum(first.to(tl.int64), 0))
    for level in tl.static_range(1, LEVELS):
        first = _insert_reached(
            keys_ptr,
            rows_ptr,
            sites_ptr,
            counts_ptr,
            b,
            z,
            y,
            x,
            first,
            STEPS,
            TABLE,
            level,
            LEVELS,
        )


@triton.jit
def _insert_reached(
    keys_ptr, rows_ptr, sites_ptr, counts_ptr, b, z, y, x, there,
    STEPS: tl.constexpr, TABLE: tl.constexpr, LEVEL: tl.constexpr, LEVELS: tl.constexpr,
):  # fmt: skip
    """Insert and number what sites reach on a level; returns who inserted something."""
    z_lo, z_hi, y_lo, y_hi, x_lo, x_hi, there = reached_box(z, y, x, there, STEPS, LEVEL, LEVELS)
    FIRST: tl.constexpr = TABLE[LEVEL * 11 + 7]
    FIRST_SITE: tl.constexpr = TABLE[LEVEL * 11 + 9]
    CAPACITY: tl.constexpr = TABLE[LEVEL * 11 + 10]
    is_new = there & False
    for dy in tl.static_range(TABLE[LEVEL * 11 + 5]):
        for dx in tl.static_range(TABLE[LEVEL * 11 + 6]):
            column = (b.to(tl.int64) * TABLE[LEVEL * 11 + 2] + y_lo + dy) * TABLE[LEVEL * 11 + 3]
            column += x_lo + dx
            inside = there & (y_lo + dy <= y_hi) & (x_lo + dx <= x_hi)
            for dz in tl.static_range(TABLE[LEVEL * 11 + 4]):
                cell = column * TABLE[LEVEL * 11] + z_lo + dz
                reached = inside & (z_lo + dz <= z_hi)
                place, won = _insert(keys_ptr + FIRST, cell + 1, reached, TABLE[LEVEL * 11 + 8])
                number = won.to(tl.int64)
                total = tl.sum(number, 0)
                if total > 0:
                    row = tl.atomic_add(counts_ptr + LEVEL, total) + tl.cumsum(number, 0) - number
                    held = won & (row < CAPACITY)
                    tl.store(rows_ptr + FIRST + place, row.to(tl.int32), mask=held)
                    tl.store(sites_ptr + FIRST_SITE + row, cell, mask=held)
                    is_new |= won
    return is_new


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
        z_lo, z_hi, y_lo, y_hi, x_lo, x_hi, there = reached_box(
            z, y, x, there, STEPS, level, LEVELS
        )
        run = ((bits_below(z_hi & 63) << 1) | 1) & ~bits_below(z_lo & 63)
        is_new = there & False
        for dy in tl.static_range(TABLE[level * 11 + 5]):
            for dx in tl.static_range(TABLE[level * 11 + 6]):
                line = b.to(tl.int64) * TABLE[level * 11 + 2] + y_lo + dy
                key = line * TABLE[level * 11 + 3] + x_lo + dx + 1
                reached = there & (y_lo + dy <= y_hi) & (x_lo + dx <= x_hi)
                place, _ = _insert(
                    keys_ptr + TABLE[level * 11 + 7], key, reached, TABLE[level * 11 + 8]
                )
                ptr = columns_ptr + TABLE[level * 11 + 7] + place
                old = tl.load(ptr, mask=reached, other=0).to(tl.uint64, bitcast=True)
                missing = reached & ((old & run) != run)
                old = tl.atomic_or(ptr, run.to(tl.int64, bitcast=True), mask=missing)
                is_new |= missing & ((old.to(tl.uint64, bitcast=True) & run) != run)
        there = is_new


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
    place, found = _find(keys_ptr, key, there, tl.full([1], SLOTS, tl.int64))
    column = tl.load(columns_ptr + place, mask=found, other=0).to(tl.uint64, bitcast=True)
    row = tl.load(rows_ptr + place, mask=found, other=0) + popcount64(column & bits_below(z))
    channels = tl.arange(0, WIDTH)
    has = there[:, None] & (channels < C)[None, :]
    values = tl.load(x_ptr + rows[:, None] * C + channels[None, :], mask=has, other=0.0)
    tl.store(out_ptr + row[:, None] * WIDTH + channels[None, :], values, mask=found[:, None])


@triton.jit
def _look_up_taps(
    table_ptr, keys_ptr, rows_ptr, sites_ptr, counts_ptr, entries_ptr,
    FIELDS: tl.constexpr, COLUMNS: tl.constexpr, KZ: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """A column of taps of `BLOCK` output sites: all its keys are looked up at once."""
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
    taps = tl.arange(0, KZ)
    z = z0[:, None] + taps[None, :]
    wanted = (there & seen)[:, None] & (z >= 0) & (z < tl.load(spec_ptr + 7))
    wanted &= (taps < tl.load(spec_ptr + 10))[None, :]
    key = (column * tl.load(spec_ptr + 6))[:, None] + z + 1
    first = tl.load(spec_ptr + 21)
    place, found = _find(keys_ptr + first, key, wanted, tl.load(spec_ptr + 22))
    row = tl.load(rows_ptr + first + place, mask=found, other=-1)
    kernel_z, columns = tl.load(spec_ptr + 10), tl.load(spec_ptr + 11)
    out = (taps * columns + number) * tl.load(spec_ptr + 2) + tl.load(spec_ptr + 19)
    held = there[:, None] & (taps < kernel_z)[None, :]
    tl.store(entries_ptr + out[None, :] + rows[:, None], row, mask=held)


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
    place, found = _find(keys_ptr + first, column + 1, there & seen, tl.load(spec_ptr + 22))
    word = tl.load(columns_ptr + first + place, mask=found, other=0).to(tl.uint64, bitcast=True)
    row = tl.load(rows_ptr + first + place, mask=found, other=0)
    kernel_z = tl.load(spec_ptr + 10).to(tl.int32)
    start = tl.minimum(tl.maximum(z0, 0), 63)
    row += popcount64(word & bits_below(start))
    window = (word >> start.to(tl.uint64)) << (start - z0).to(tl.uint64)
    window = (window & bits_below(z0 * 0 + kernel_z)).to(tl.int32)
    out = entries_ptr + tl.load(spec_ptr + 19) + number * tl.load(spec_ptr + 2) + rows
    tl.store(out, (row << kernel_z) | window, mask=there)
