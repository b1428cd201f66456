"""Sites and neighbours by a hash table of cells: 27 look-ups for a kernel of 27 taps.

Keys of 64 bits, mixed as in splitmix64 (Steele 2014), linear probing, tables of at least twice the
upper bound of sites, insertion by compare-and-swap; one memset clears all tables. Levels are
reached from the input's sites, and who inserts nothing new goes no further, as in `SiteIndex`.

Rows are numbered as they come, so the input's features stay where they are, but the maps have a
number for every tap, and rows of the other levels lie in no order at all, another in every run.
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
from search_problem import SearchProblem
from torch import Tensor

from voxelquant.sparse.backends.triton.overlap import (
    LAUNCH,
    OVERLAP,
    gdc_launch_dependents,
    gdc_wait,
)

_ROWS = 128
_LEAST_SLOTS = 2048


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
def insert_keys(keys_ptr, key, wanted, SLOTS: tl.constexpr):
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
def find_keys(keys_ptr, key, wanted, slots):
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
    SLOTS: tl.constexpr = TABLE[8]
    place, first = insert_keys(keys_ptr, cell + 1, there, SLOTS)
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
    REACH_Z: tl.constexpr = TABLE[LEVEL * 11 + 4]
    REACH_Y: tl.constexpr = TABLE[LEVEL * 11 + 5]
    REACH_X: tl.constexpr = TABLE[LEVEL * 11 + 6]
    SLOTS: tl.constexpr = TABLE[LEVEL * 11 + 8]
    is_new = there & False
    for dy in tl.static_range(REACH_Y):
        for dx in tl.static_range(REACH_X):
            column = (b.to(tl.int64) * TABLE[LEVEL * 11 + 2] + y_lo + dy) * TABLE[LEVEL * 11 + 3]
            column += x_lo + dx
            inside = there & (y_lo + dy <= y_hi) & (x_lo + dx <= x_hi)
            for dz in tl.static_range(REACH_Z):
                cell = column * TABLE[LEVEL * 11] + z_lo + dz
                reached = inside & (z_lo + dz <= z_hi)
                place, won = insert_keys(keys_ptr + FIRST, cell + 1, reached, SLOTS)
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
    place, found = find_keys(keys_ptr + first, key, wanted, tl.load(spec_ptr + 22))
    row = tl.load(rows_ptr + first + place, mask=found, other=-1)
    kernel_z, columns = tl.load(spec_ptr + 10), tl.load(spec_ptr + 11)
    out = (taps * columns + number) * tl.load(spec_ptr + 2) + tl.load(spec_ptr + 19)
    held = there[:, None] & (taps < kernel_z)[None, :]
    tl.store(entries_ptr + out[None, :] + rows[:, None], row, mask=held)
