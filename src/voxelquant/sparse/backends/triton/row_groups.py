"""Output rows of a kernel map in groups: those that see the same taps along z lie together.

Half of a frame's voxels have no neighbour above or below. A tile of such rows needs a third of the
kernel's taps, but rows in the order of their sites mix, and a tile needs all that any of them sees.
So rows are listed by group, the number of which has a bit for each tap along z that they see in any
column, and a tile takes rows of one group. Within a group they stay near each other, so what they
gather does, too. Prior art: spconv 2 sorts rows by all of a kernel's taps.

Maps list rows as they are built, in the order in which programs arrive. No result depends on it: a
row's sum is its own. Two groups share a strip of places, one from each end, where they cannot meet.
"""

from __future__ import annotations

from dataclasses import dataclass

import triton
import triton.language as tl
from torch import Tensor

_INTERPRETED: tl.constexpr = tl.constexpr(triton.knobs.runtime.interpret)


@dataclass(frozen=True)
class RowGroups:
    """The rows of one map.

    Attributes:
        rows: `[strips, capacity]` int32; group 2 s fills strip s from its beginning, group 2 s + 1
            from its end.
        counts: `[groups]` int32 rows of each group, groups = 2 ** kz.
    """

    rows: Tensor
    counts: Tensor

    @staticmethod
    def strips(kz: int) -> int:
        """Strips of places for a kernel of so many taps along z."""
        return 1 << (kz - 1)


@triton.jit
def enter_groups(rows_ptr, counts_ptr, row, seen_taps, there, capacity, GROUPS: tl.constexpr):
    """List rows in the groups of the taps that they see; counts have to be zero beforehand."""
    groups = tl.arange(0, GROUPS)
    member = there[:, None] & (seen_taps[:, None] == groups[None, :])
    ones = member.to(tl.int32)
    joining = tl.sum(ones, 0)
    first = tl.atomic_add(counts_ptr + groups, joining, mask=joining > 0, sem="relaxed")
    numbers = first[None, :] + tl.cumsum(ones, 0) - 1
    number = tl.sum(tl.where(member, numbers, 0), 1)
    # Listed twice without a fetch in between, as no frame is, rows would go on behind the strip.
    held = there & (number < capacity)
    tl.store(rows_ptr + _place(seen_taps, number, capacity), row, mask=held)


@triton.jit
def find_tile(counts_ptr, tile, GROUPS: tl.constexpr, BLOCK: tl.constexpr):
    """Group of a tile, its first row in there and the rows of the group; none beyond the last tile.

    Groups that see more come first: tiles that take long should not begin last.
    """
    groups = GROUPS - 1 - tl.arange(0, GROUPS)
    counts = tl.load(counts_ptr + groups)
    tiles = (counts + BLOCK - 1) // BLOCK
    ends = tl.cumsum(tiles, 0)
    mine = (ends - tiles <= tile) & (tile < ends)
    group = tl.sum(tl.where(mine, groups, 0), 0)
    start = tl.sum(tl.where(mine, tile - ends + tiles, 0), 0) * BLOCK
    count = tl.sum(tl.where(mine, counts, 0), 0)
    return warp_uniform(group), warp_uniform(start), warp_uniform(count)


@triton.jit
def warp_uniform(scalar):
    """The same int32, of which the assembler knows that all lanes of a warp hold it.

    What follows from a loaded number may differ between lanes for all it knows. Then a loop that
    depends on it does without the datapath for scalars, at more instructions for each step.
    """
    if _INTERPRETED:
        return scalar
    else:
        return tl.inline_asm_elementwise(
            "shfl.sync.idx.b32 $0, $1, 0, 31, 0xffffffff;",
            "=r,r",
            [scalar],
            dtype=tl.int32,
            is_pure=True,
            pack=1,
        )


@triton.jit
def rows_of_group(rows_ptr, group, numbers, there, capacity):
    """Rows by their numbers in a group."""
    return tl.load(rows_ptr + _place(group, numbers, capacity), mask=there, other=0)


@triton.jit
def list_taps(group, KZ: tl.constexpr):
    """Taps that a group sees, two bits each from the lowest, and how many."""
    taps = group * 0
    count = group * 0
    for tap in tl.static_range(KZ):
        seen = (group >> tap) & 1
        taps |= (seen * tap) << (2 * count)
        count += seen
    return taps, count


@triton.jit
def _place(group, number, capacity):
    at = tl.where((group & 1) != 0, capacity - 1 - number, number)
    return (group >> 1) * capacity + at
