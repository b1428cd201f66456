"""The active sites of every level of a network, found on the device without asking the host.

A level is a grid on which features live: the input's, and one for each strided convolution. Its
occupancy is a bitmap in which the cells of a column (b, y, x) lie side by side along z; the number
of bits set before a cell is the row of its site. So the rows of a level are ordered by (b, y, x,
z), nothing is sorted, nothing is hashed, and a look-up is one word and one sum. A level's sites are
marked from the network's input alone: what a chain of strided convolutions reaches from one cell is
a box, level by level (`LevelGrid`), so all levels are marked at once.

Everything has upper bounds that are fixed beforehand. What does not fit is counted all the same and
raises a flag; no kernel reads or writes out of bounds, and no result is silently cut.

`benchmarks/kernel_map_search.py` measures this against a hash table and a search in sorted keys.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
from torch import Tensor

from voxelquant.errors import GeometryError
from voxelquant.sparse.backends.triton.overlap import LAUNCH
from voxelquant.sparse.backends.triton.site_kernels import (
    count_blocks,
    list_sites,
    mark_sites,
    rank_words,
)
from voxelquant.sparse.conv_geometry import ConvGeometry, Triple

WORD_BITS = 64
_BLOCK_WORDS = 2048  # words whose bits one program counts
_LIST_WORDS = 64  # a warp for itself: its loop ends with its fullest word
_MARK_ROWS = 128
FLAG_OUTSIDE, FLAG_REPEATED, FLAG_OVERFLOW = 1, 2, 4  # the last is shifted by the level's number


@dataclass(frozen=True)
class LevelGrid:
    """A grid of active sites.

    Attributes:
        spatial_shape: grid (z, y, x).
        capacity: most sites that it can hold.
        parent: index of the level from which a convolution leads here; None for the input's.
        geometry: that convolution's.
    """

    spatial_shape: Triple
    capacity: int
    parent: int | None = None
    geometry: ConvGeometry | None = None

    @property
    def column_bits(self) -> int:
        """Bits of a column: a power of two within a word, else whole words."""
        height = self.spatial_shape[0]
        if height > WORD_BITS:
            return -(-height // WORD_BITS) * WORD_BITS
        return 1 << (height - 1).bit_length()

    def words(self, batch_size: int) -> int:
        """Words of the bitmap, rounded up to what one program counts."""
        _, size_y, size_x = self.spatial_shape
        bits = batch_size * size_y * size_x * self.column_bits
        return -(-bits // (WORD_BITS * _BLOCK_WORDS)) * _BLOCK_WORDS


class SiteIndex:
    """Bitmaps, ranks and sites of all levels, in memory that is allocated once.

    Args:
        levels: the grids, parents before children; the first is the input's.
        batch_size: number of samples.
        device: where everything lives.

    Attributes:
        counts: `[levels]` int32 number of sites, at most the capacities.
        needed: `[levels]` int32 number of sites, whether they fit or not.
        sites: for each level `[capacity]` int64 or int32 cell `((b * Y + y) * X + x) * column_bits
            + z` of each row.

    Raises:
        GeometryError: a level is reached by a dilated convolution, whose reach is no box.
    """

    def __init__(
        self, levels: tuple[LevelGrid, ...], batch_size: int, device: torch.device
    ) -> None:
        self.levels = levels
        self.batch_size = batch_size
        sizes = [level.words(batch_size) for level in levels]
        self.first_words = [sum(sizes[:i]) for i in range(len(sizes))]
        self.n_words = sum(sizes)
        n_blocks = self.n_words // _BLOCK_WORDS
        # The flags stand behind the words: one fill clears both.
        self._cleared = torch.zeros(self.n_words + 1, dtype=torch.int64, device=device)
        self.words = self._cleared[:-1]
        self.flags = self._cleared[-1:]
        self.ranks = torch.zeros(self.n_words, dtype=torch.int32, device=device)
        self._block_sums = torch.zeros(n_blocks, dtype=torch.int32, device=device)
        self.counts = torch.zeros(len(levels), dtype=torch.int32, device=device)
        self.needed = torch.zeros(len(levels), dtype=torch.int32, device=device)
        most_bits = max(sizes) * WORD_BITS
        cell_dtype = torch.int32 if most_bits < 2**31 else torch.int64
        capacities = [level.capacity for level in levels]
        self._all_sites = torch.zeros(sum(capacities), dtype=cell_dtype, device=device)
        self.sites = self._all_sites.split(capacities)
        for number in range(len(levels)):
            self._refuse_dilation(number)
        self._max_depth = max(1, *(len(self._path(number)) for number in range(len(levels))))
        self._blocks = torch.tensor(self._block_table(), dtype=torch.int32, device=device)

    @property
    def bytes(self) -> int:
        """Memory held."""
        held = (self._cleared, self.ranks, self._block_sums, self._all_sites)
        return sum(t.numel() * t.element_size() for t in held)

    def launch(self, coords_bzyx: Tensor, count: Tensor) -> None:
        """Index the sites of a frame.

        Args:
            coords_bzyx: `[capacity, 4]` int32, of which the first `count` rows are sites.
            count: `[1]` int32 on the device.
        """
        self._cleared.zero_()
        grid = (triton.cdiv(self.levels[0].capacity, _MARK_ROWS),)
        mark_sites[grid](
            coords_bzyx,
            count,
            self.words,
            self.flags,
            self.batch_size,
            STEPS=self._step_table(),
            LEVELS=self._level_table(),
            N_LEVELS=len(self.levels),
            MAX_DEPTH=self._max_depth,
            MULTI_WORD=any(level.column_bits > WORD_BITS for level in self.levels),
            BLOCK=_MARK_ROWS,
            **LAUNCH,
        )
        n_blocks = len(self._block_sums)
        count_blocks[(n_blocks,)](self.words, self._block_sums, BLOCK=_BLOCK_WORDS, **LAUNCH)
        rank_words[(n_blocks,)](
            self.words,
            self._block_sums,
            self._blocks,
            self.ranks,
            self.counts,
            self.needed,
            count,
            self.flags,
            BLOCK=_BLOCK_WORDS,
            SUMS=1024,
            **LAUNCH,
        )

    def list_sites(self) -> None:
        """Fill `sites` of all levels but the input's, whose rows know their cells."""
        first = self.levels[0].words(self.batch_size)
        if first == self.n_words:
            return
        list_sites[((self.n_words - first) // _LIST_WORDS,)](
            self.words,
            self.ranks,
            self._blocks,
            self._all_sites,
            first,
            WORDS=_BLOCK_WORDS,
            BLOCK=_LIST_WORDS,
            num_warps=1,
            **LAUNCH,
        )

    def explain(self) -> str | None:
        """What a flag says, in words, or None; waits for the device."""
        flags = int(self.flags.item())
        if flags == 0:
            return None
        if flags & FLAG_OUTSIDE:
            shape = self.levels[0].spatial_shape
            return (
                f"got coordinates outside of the grid, need (batch, z, y, x) from 0 to below "
                f"{[self.batch_size, *shape]}"
            )
        if flags & FLAG_REPEATED:
            return "got repeated coordinates, need one row for each active site"
        for number, level in enumerate(self.levels):
            if flags & (FLAG_OVERFLOW << number):
                return (
                    f"got a frame of {int(self.needed[number])} sites on level {number} (grid "
                    f"{level.spatial_shape}), the plan holds {level.capacity}; plan for more"
                )
        raise AssertionError(f"flags {flags:#x} without a meaning")

    def _path(self, number: int) -> list[int]:
        """Levels from the first child of the input's to this one."""
        path: list[int] = []
        parent: int | None = number
        while parent is not None and self.levels[parent].parent is not None:
            path.insert(0, parent)
            parent = self.levels[parent].parent
        return path

    def _refuse_dilation(self, number: int) -> None:
        geometry = self.levels[number].geometry
        if geometry is not None and geometry.dilation != (1, 1, 1):
            raise GeometryError(
                f"got {geometry}: sites behind a dilated strided convolution cannot be planned; "
                "run this network layer by layer"
            )

    def _step_table(self) -> tuple[int, ...]:
        """`[levels, depth, 3, 4]` flat: kernel, stride, padding and grid by axis of every step."""
        table: list[int] = []
        for number in range(len(self.levels)):
            path = self._path(number)
            for step in path:
                level = self.levels[step]
                g = level.geometry
                assert g is not None
                for axis in zip(
                    g.kernel_size, g.stride, g.padding, level.spatial_shape, strict=True
                ):
                    table += axis
            table += [0] * (12 * (self._max_depth - len(path)))
        return tuple(table)

    def _level_table(self) -> tuple[int, ...]:
        """`[levels, 9]` flat: first word, bits of a column, grid, steps, most cells in y and x ...

        ... reached from one of the input's, and the parent; -2 where it is not the level before.
        """
        table: list[int] = []
        for number, level in enumerate(self.levels):
            reach = [1, 1, 1]
            path = self._path(number)
            for step in path:
                g = self.levels[step].geometry
                assert g is not None
                # An interval of r cells is reached by windows over r + k - 1 starts, one in s.
                reach = [
                    (r + k - 2) // s + 1
                    for r, k, s in zip(reach, g.kernel_size, g.stride, strict=True)
                ]
            first = self.first_words[number]
            parent = -1 if level.parent is None else level.parent
            follows = parent if parent == number - 1 else -2
            table += [
                first,
                level.column_bits,
                *level.spatial_shape,
                len(path),
                *reach[1:],
                follows,
            ]
        return tuple(table)

    def _block_table(self) -> list[list[int]]:
        """`[blocks, 5]`: level, its first and last block, its first site, its capacity."""
        table = []
        first_site = 0
        for number, level in enumerate(self.levels):
            first = self.first_words[number] // _BLOCK_WORDS
            n_blocks = level.words(self.batch_size) // _BLOCK_WORDS
            row = [number, first, first + n_blocks - 1, first_site, level.capacity]
            table += [row] * n_blocks
            first_site += level.capacity
        return table
