"""The active sites of every level of a network, found on the device without asking the host.

A level is a grid on which features live: the input's, and one for each strided convolution. A
column (b, y, x) of its cells is one word: a bit for each cell along z, and above them the *rank*,
the number of sites in all columns before. A site's row is the rank of its column and the number of
bits below its own. So the rows of a level are ordered by (b, y, x, z), nothing is sorted, nothing
is hashed, and a look-up reads one word. (Where bits and rank do not fit 64 bits, a column has
several words, each a run of cells with a rank of its own.)

The input's sites, and what they reach on the levels next to theirs, are marked one by one. The
columns of deeper levels, few, are derived from all that they see. Bits are counted by blocks, and
the ranks of a block begin with the sum of the blocks before.

Everything has upper bounds that are fixed beforehand. What does not fit is counted all the same and
raises a flag; no kernel reads or writes out of bounds, and no result is silently cut.

`benchmarks/kernel_map_search.py` measures this against hash tables and a search in sorted keys.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import triton

from voxelquant.errors import GeometryError
from voxelquant.sparse.backends.triton.frame import Frame
from voxelquant.sparse.backends.triton.overlap import LAUNCH
from voxelquant.sparse.backends.triton.site_kernels import (
    COUNT,
    DERIVE,
    FLAG_OUTSIDE,
    FLAG_OVERFLOW,
    FLAG_REPEATED,
    LEVEL_FIELDS,
    MAX_STEPS,
    RANK,
    clear_marks,
    index_levels,
    mark_sites,
)
from voxelquant.sparse.conv_geometry import ConvGeometry, Triple

WORD_BITS = 64
_MARK_ROWS = 128
# Words of a block: what one program ranks or derives. A level has some five hundred, as far as that
# is possible: enough to fill a device, few enough for each to add up all before it.
_BLOCK_WORDS = (256, 4096)
_BLOCKS = 512
_MOST_WINDOW = 64  # columns that a derived one may see
_MOST_WORDS = 2**31  # kernels count them in 32 bits
_CLEAR_ROWS = 512


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
    def z_bits(self) -> int:
        """Bits that number the cells of a column."""
        return (self.spatial_shape[0] - 1).bit_length()

    @property
    def word_cells(self) -> int:
        """Cells of a word: all of a column, if the rank has place beside them."""
        return min(self.spatial_shape[0], WORD_BITS - self.capacity.bit_length())

    @property
    def segments(self) -> int:
        """Words of a column."""
        return -(-self.spatial_shape[0] // self.word_cells)

    def words(self, batch_size: int) -> int:
        """Words of all columns."""
        return batch_size * self.spatial_shape[1] * self.spatial_shape[2] * self.segments


@dataclass(frozen=True)
class Pass:
    """One launch for several levels.

    Attributes:
        made: levels whose bits are counted, derived before that if they are not marked.
        ranked: levels whose sites are ranked and listed; made by an earlier pass.
    """

    made: tuple[int, ...] = ()
    ranked: tuple[int, ...] = ()


class SiteIndex:
    """Occupancy, ranks and sites of all levels, in memory that is allocated once.

    Args:
        levels: the grids, parents before children; the first is the input's.
        batch_size: number of samples.
        device: where everything lives.

    Attributes:
        frame: what is indexed.
        words: `[n]` int64 columns of all levels, one level after the other from `first_words`.
        counts: `[levels]` int32 number of sites, at most the capacities.
        needed: `[levels]` int32 number of sites, whether they fit or not.
        sites: for each level `[capacity]` int64 or int32 cell `((b * Y + y) * X + x) << z_bits | z`
            of each row; the first level's are filled in by `order_features`.
        marked: levels whose words `clear` empties: the first, and those that follow it.
        near_passes: what leads from the marks to the ranks of the input's level.
        far_passes: the same of all other levels; it does not need the first.

    Raises:
        GeometryError: a level is reached by a dilated convolution, whose reach is no box, or the
            grids are beyond what kernels count.
    """

    def __init__(
        self, levels: tuple[LevelGrid, ...], batch_size: int, device: torch.device
    ) -> None:
        self.levels = levels
        self.batch_size = batch_size
        for level in levels:
            _refuse_dilation(level)
        sizes = [level.words(batch_size) for level in levels]
        self.first_words = [sum(sizes[:i]) for i in range(len(sizes))]
        if sum(sizes) >= _MOST_WORDS:
            raise GeometryError(
                f"got grids of {sum(sizes):,} columns of cells, need fewer than {_MOST_WORDS:,}; "
                "plan for fewer samples"
            )
        self.frame = Frame(device)
        self.words = torch.zeros(sum(sizes), dtype=torch.int64, device=device)
        self.counts = torch.zeros(len(levels), dtype=torch.int32, device=device)
        self.needed = torch.zeros(len(levels), dtype=torch.int32, device=device)
        most_cells = max(s << g.z_bits for s, g in zip(sizes, levels, strict=True))
        cell_dtype = torch.int32 if most_cells < 2**31 else torch.int64
        capacities = [level.capacity for level in levels]
        self.all_sites = torch.zeros(sum(capacities), dtype=cell_dtype, device=device)
        self.sites = self.all_sites.split(capacities)
        self.first_sites = [sum(capacities[:i]) for i in range(len(capacities))]
        bounds = list(zip(self.first_sites, capacities, strict=True))
        self._bounds = torch.tensor(bounds, dtype=torch.int64, device=device)
        self._block_sizes = [_block_words(size) for size in sizes]
        self._blocks = [triton.cdiv(n, m) for n, m in zip(sizes, self._block_sizes, strict=True)]
        self._sums = torch.zeros(sum(self._blocks), dtype=torch.int32, device=device)
        self.marked = [n for n, level in enumerate(levels) if not level.parent]
        self._sources = [self._source(number) for number in range(len(levels))]
        self._marked_fields: tuple[int, ...] = ()
        for number in self.marked:
            self._marked_fields += self._level_fields(number)
        self.near_passes = [Pass(made=(0,)), Pass(ranked=(0,))]
        self.far_passes = self._make_far_passes()

    @property
    def bytes(self) -> int:
        """Memory held."""
        held = (self.frame.fields, self.words, self._sums, self.all_sites)
        return sum(t.numel() * t.element_size() for t in held)

    def launch(self) -> None:
        """Index the frame that was handed over; `clear` has to follow before the next one."""
        self.mark()
        for each in (*self.near_passes, *self.far_passes):
            self.launch_pass(each)

    def mark(self) -> None:
        """Fetch the frame; mark its sites on the first level, and on those that follow it."""
        self.frame.fetch()
        mark_sites[(triton.cdiv(self.levels[0].capacity, _MARK_ROWS),)](
            self.frame.fields,
            self.words,
            BATCH=self.batch_size,
            LEVELS=self._marked_fields,
            N_LEVELS=len(self.marked),
            BLOCK=_MARK_ROWS,
            **LAUNCH,
        )

    def launch_pass(self, which: Pass) -> None:
        """A pass of this index, after the marks and the passes before it."""
        fields: tuple[int, ...] = ()
        programs = 0
        for level in (*which.made, *which.ranked):
            job = DERIVE if level not in self.marked else COUNT
            if level in which.ranked:
                job = RANK
            fields += self._level_fields(level, programs, job)
            programs += self._blocks[level]
        index_levels[(programs,)](
            self.frame.fields,
            self.words,
            self._sums,
            self.all_sites,
            self._bounds,
            self.counts,
            self.needed,
            LEVELS=fields,
            N_LEVELS=len(which.made) + len(which.ranked),
            num_warps=8,
            **LAUNCH,
        )

    def clear(self) -> None:
        """Take the marks away; after this nobody may look up a site of a marked level."""
        clear_marks[(triton.cdiv(self.levels[0].capacity, _CLEAR_ROWS),)](
            self.frame.fields,
            self.words,
            self.all_sites,
            self._bounds,
            self.counts,
            LEVELS=self._marked_fields,
            N_LEVELS=len(self.marked),
            BLOCK=_CLEAR_ROWS,
            **LAUNCH,
        )

    def explain(self) -> str | None:
        """What a flag says, in words, or None; waits for the device."""
        flags = int(self.frame.flags.item())
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

    def _path(self, number: int, source: int) -> list[int]:
        """Levels from the first after a source to this one."""
        path: list[int] = []
        while number != source:
            path.insert(0, number)
            parent = self.levels[number].parent
            assert parent is not None
            number = parent
        return path

    def _source(self, number: int) -> int:
        """The level from whose columns those of this one are derived; the parent, if it is marked.

        Far up there are fewer launches in a row, and larger windows. From the first level itself,
        which is by far the largest, nothing is derived.
        """
        source = self.levels[number].parent
        if source is None:
            return number
        while True:
            above = self.levels[source].parent
            if not above:  # None, or the first level
                return source
            path = self._path(number, above)
            reach_y, reach_x = self._reach(path)
            if (
                len(path) > MAX_STEPS
                or reach_y * reach_x > _MOST_WINDOW
                or not self._by_words(above, path)
                or not all(self._leaves_no_gaps(step) for step in path[:-1])
            ):
                return source
            source = above

    def _leaves_no_gaps(self, number: int) -> bool:
        """Whether what neighbouring sites of a level read is an interval along y and x."""
        geometry = self.levels[number].geometry
        assert geometry is not None
        pairs = zip(geometry.kernel_size[1:], geometry.stride[1:], strict=True)
        return all(kernel >= stride for kernel, stride in pairs)

    def _by_words(self, source: int, path: Sequence[int]) -> bool:
        """Whether the bits of a column follow from words alone."""
        if any(self.levels[number].segments > 1 for number in (source, *path)):
            return False
        steps = [self.levels[number] for number in path]
        return all(
            step.geometry is not None
            and step.geometry.stride[0] * (step.spatial_shape[0] - 1) < WORD_BITS
            for step in steps
        )

    def _reach(self, path: Sequence[int]) -> tuple[int, int]:
        """Most cells along y and x that a site reads through the levels of a path."""
        reach = [1, 1]
        for number in reversed(path):
            geometry = self.levels[number].geometry
            assert geometry is not None
            steps = zip(reach, geometry.kernel_size[1:], geometry.stride[1:], strict=True)
            reach = [(r - 1) * stride + kernel for r, kernel, stride in steps]
        return reach[0], reach[1]

    def _make_far_passes(self) -> list[Pass]:
        """Each level is made as soon as its source has been, and ranked in the pass after that."""
        made = [0] * len(self.levels)
        for number, source in enumerate(self._sources):
            if number > 0:
                made[number] = 0 if source in self.marked else made[source] + 1
        far = range(1, len(self.levels))
        return [
            Pass(
                made=tuple(n for n in far if made[n] == turn),
                ranked=tuple(n for n in far if made[n] == turn - 1),
            )
            for turn in range(max(made[1:]) + 2 if far else 0)
        ]

    def _level_fields(
        self, number: int, first_program: int = 0, job: int = COUNT
    ) -> tuple[int, ...]:
        """What kernels know of a level, see `site_kernels`."""
        level, source = self.levels[number], self._sources[number]
        path = self._path(number, source)
        read = self.levels[source]
        fields = [
            self.first_words[number],
            level.word_cells,
            level.segments,
            *level.spatial_shape,
            level.z_bits,
            number,
            level.words(self.batch_size),
            self._block_sizes[number],
            sum(self._blocks[:number]),
            self._blocks[number],
            first_program,
            job,
            self.first_words[source],
            read.word_cells,
            read.segments,
            *read.spatial_shape,
            len(path),
            *self._reach(path),
            int(self._by_words(source, path)),
        ]
        for step in path:
            made = self.levels[step]
            assert made.geometry is not None
            assert made.parent is not None
            g, shape = made.geometry, self.levels[made.parent].spatial_shape
            steps = zip(g.kernel_size, g.stride, g.padding, shape, made.spatial_shape, strict=True)
            for axis in steps:
                fields += axis
        fields += [0] * (LEVEL_FIELDS - len(fields))
        return tuple(fields)


def _block_words(words: int) -> int:
    least, most = _BLOCK_WORDS
    return min(max(triton.next_power_of_2(triton.cdiv(words, _BLOCKS)), least), most)


def _refuse_dilation(level: LevelGrid) -> None:
    geometry = level.geometry
    if geometry is not None and geometry.dilation != (1, 1, 1):
        raise GeometryError(
            f"got {geometry}: sites behind a dilated strided convolution cannot be planned; "
            "run this network layer by layer"
        )
