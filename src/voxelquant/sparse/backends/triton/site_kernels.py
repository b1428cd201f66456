"""The kernels of the site index: marking cells, deriving levels from others, counting, ranking.

Levels are described to them by flat tuples that `site_index` writes, `LEVEL_FIELDS` numbers each.
"""

import triton
import triton.language as tl

from voxelquant.sparse.backends.triton.bits import bits_below, popcount64, reached_bits
from voxelquant.sparse.backends.triton.overlap import OVERLAP, gdc_launch_dependents, gdc_wait

# Of the level: first word, cells of a word, words of a column, grid (z, y, x), bits of a cell's z,
# number, words, words of a block, its first block, blocks, its first program of the launch, what
# the launch does with it. Of its source: first word, cells of a
# word, words of a column, grid. Then the number of steps between them, the most columns that a site
# sees along y and x, and whether words follow from words.
_OF_LEVEL = 14
_OF_SOURCE = _OF_LEVEL + 6
_OF_STEPS = _OF_SOURCE + 4
_STEP = 15  # of z, y and x: kernel, stride, padding, cells that are read, cells that are made
MAX_STEPS = 3
LEVEL_FIELDS = _OF_STEPS + MAX_STEPS * _STEP

_STEPS_AT: tl.constexpr = tl.constexpr(_OF_STEPS)
_STEP_SIZE: tl.constexpr = tl.constexpr(_STEP)
_FIELDS: tl.constexpr = tl.constexpr(LEVEL_FIELDS)
_SUMS: tl.constexpr = tl.constexpr(1024)  # blocks whose bits are added at once

COUNT, DERIVE, RANK = 0, 1, 2  # what a launch does with a level
_COUNT: tl.constexpr = tl.constexpr(COUNT)
_DERIVE: tl.constexpr = tl.constexpr(DERIVE)

FLAG_OUTSIDE, FLAG_REPEATED, FLAG_OVERFLOW = 1, 2, 4  # the last is shifted by the level's number
_REPEATED: tl.constexpr = tl.constexpr(FLAG_REPEATED)
_OVERFLOW: tl.constexpr = tl.constexpr(FLAG_OVERFLOW)


@triton.jit
def mark_sites(
    frame_ptr,
    words_ptr,
    BATCH: tl.constexpr,
    LEVELS: tl.constexpr,
    N_LEVELS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Set the bits of the input's cells, and of those that they reach through one convolution.

    Words are zero before. The first level is the input's. Cells outside of the grid are passed
    over; `order_features` tells of them.
    """
    if OVERLAP:
        gdc_wait()
        gdc_launch_dependents()
    SIZE_Z: tl.constexpr = LEVELS[3]
    SIZE_Y: tl.constexpr = LEVELS[4]
    SIZE_X: tl.constexpr = LEVELS[5]
    count = tl.load(frame_ptr + 2)
    if tl.program_id(0) * BLOCK >= count:
        return
    coords_ptr = tl.load(frame_ptr + 1).to(tl.pointer_type(tl.int32))
    rows = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    there = rows < count
    b = tl.load(coords_ptr + rows * 4, mask=there, other=0)
    z = tl.load(coords_ptr + rows * 4 + 1, mask=there, other=0)
    y = tl.load(coords_ptr + rows * 4 + 2, mask=there, other=0)
    x = tl.load(coords_ptr + rows * 4 + 3, mask=there, other=0)
    there &= (b >= 0) & (b < BATCH) & (z >= 0) & (y >= 0) & (x >= 0)
    there &= (z < SIZE_Z) & (y < SIZE_Y) & (x < SIZE_X)
    _mark_cells(words_ptr, b, z, z, y, x, there, LEVELS, 0)
    for number in tl.static_range(1, N_LEVELS):
        _mark_reached(words_ptr, b, z, y, x, there, LEVELS, number * _FIELDS)


@triton.jit
def _mark_reached(words_ptr, b, z, y, x, there, LEVELS: tl.constexpr, AT: tl.constexpr):
    """Along an axis, outputs o with `s * o - p <= i <= s * o - p + k - 1` read the cell i.

    All columns that a cell reaches are one axis of a tensor, so that their words are asked for at
    once.
    """
    STEP: tl.constexpr = AT + _STEPS_AT
    REACHED_Y: tl.constexpr = (LEVELS[STEP + 5] - 1) // LEVELS[STEP + 6] + 1
    REACHED_X: tl.constexpr = (LEVELS[STEP + 10] - 1) // LEVELS[STEP + 11] + 1
    COLUMNS: tl.constexpr = triton.next_power_of_2(REACHED_Y * REACHED_X)
    z_lo, z_hi = _reached(z, LEVELS, STEP)
    y_lo, y_hi = _reached(y, LEVELS, STEP + 5)
    x_lo, x_hi = _reached(x, LEVELS, STEP + 10)
    columns = tl.arange(0, COLUMNS)
    column_y = y_lo[:, None] + (columns // REACHED_X)[None, :]
    column_x = x_lo[:, None] + (columns % REACHED_X)[None, :]
    reached = (there & (z_lo <= z_hi))[:, None] & (column_y <= y_hi[:, None])
    reached &= (column_x <= x_hi[:, None]) & (columns < REACHED_Y * REACHED_X)[None, :]
    b, z_lo, z_hi = b[:, None], z_lo[:, None], z_hi[:, None]
    _mark_cells(words_ptr, b, z_lo, z_hi, column_y, column_x, reached, LEVELS, AT)


@triton.jit
def _reached(cell, LEVELS: tl.constexpr, AT: tl.constexpr):
    """Interval of outputs that read a cell."""
    KERNEL: tl.constexpr = LEVELS[AT]
    STRIDE: tl.constexpr = LEVELS[AT + 1]
    PADDING: tl.constexpr = LEVELS[AT + 2]
    SIZE: tl.constexpr = LEVELS[AT + 4]
    # Rounded up; what is below zero becomes zero all the same.
    first = tl.maximum(cell + (PADDING - KERNEL + STRIDE), 0) // STRIDE
    return first, tl.minimum((cell + PADDING) // STRIDE, SIZE - 1)


@triton.jit
def _mark_cells(words_ptr, b, z_lo, z_hi, y, x, there, LEVELS: tl.constexpr, AT: tl.constexpr):
    """Set the bits of the cells `z_lo ... z_hi` of columns."""
    FIRST_WORD: tl.constexpr = LEVELS[AT]
    CELLS: tl.constexpr = LEVELS[AT + 1]
    SEGMENTS: tl.constexpr = LEVELS[AT + 2]
    SIZE_Y: tl.constexpr = LEVELS[AT + 4]
    SIZE_X: tl.constexpr = LEVELS[AT + 5]
    column = (b * SIZE_Y + y) * SIZE_X + x
    for segment in tl.static_range(SEGMENTS):
        # Of the run, what lies in this word.
        first = tl.maximum(z_lo - segment * CELLS, 0)
        last = tl.minimum(z_hi - segment * CELLS, CELLS - 1)
        held = there & (first <= last)
        run = (bits_below(tl.where(held, last, 0)) << 1) | 1
        run &= ~bits_below(tl.where(held, first, 0))
        word = FIRST_WORD + column * SEGMENTS + segment
        tl.atomic_or(words_ptr + word, run.to(tl.int64, bitcast=True), mask=held, sem="relaxed")


@triton.jit
def index_levels(
    frame_ptr,
    words_ptr,
    sums_ptr,
    sites_ptr,
    bounds_ptr,
    counts_ptr,
    needed_ptr,
    LEVELS: tl.constexpr,
    N_LEVELS: tl.constexpr,
):
    """Count or derive the bits of some levels, rank and list those of others; a block a program."""
    if OVERLAP:
        gdc_wait()
        gdc_launch_dependents()
    for number in tl.static_range(N_LEVELS):
        block = tl.program_id(0) - LEVELS[number * _FIELDS + 12]
        if (block >= 0) & (block < LEVELS[number * _FIELDS + 11]):
            if LEVELS[number * _FIELDS + 13] == _COUNT:
                _count_block(block, words_ptr, sums_ptr, LEVELS, number * _FIELDS)
            elif LEVELS[number * _FIELDS + 13] == _DERIVE:
                _derive_block(block, words_ptr, sums_ptr, LEVELS, number * _FIELDS)
            else:
                _rank_block(
                    block,
                    frame_ptr,
                    words_ptr,
                    sums_ptr,
                    sites_ptr,
                    bounds_ptr,
                    counts_ptr,
                    needed_ptr,
                    LEVELS,
                    number * _FIELDS,
                )


@triton.jit
def _count_block(block, words_ptr, sums_ptr, LEVELS: tl.constexpr, AT: tl.constexpr):
    """Sum of the bits of a block of marked words."""
    FIRST_WORD: tl.constexpr = LEVELS[AT]
    WORDS: tl.constexpr = LEVELS[AT + 8]
    BLOCK: tl.constexpr = LEVELS[AT + 9]
    FIRST_BLOCK: tl.constexpr = LEVELS[AT + 10]
    places = block * BLOCK + tl.arange(0, BLOCK)
    word = tl.load(words_ptr + FIRST_WORD + places, mask=places < WORDS, other=0)
    found = popcount64(word.to(tl.uint64, bitcast=True))
    tl.store(sums_ptr + FIRST_BLOCK + block, tl.sum(found, 0))


@triton.jit
def _derive_block(block, words_ptr, sums_ptr, LEVELS: tl.constexpr, AT: tl.constexpr):
    """Bits of a block of words, from a level that is marked or derived, and their sum."""
    FIRST_WORD: tl.constexpr = LEVELS[AT]
    WORDS: tl.constexpr = LEVELS[AT + 8]
    BLOCK: tl.constexpr = LEVELS[AT + 9]
    FIRST_BLOCK: tl.constexpr = LEVELS[AT + 10]
    BY_WORDS: tl.constexpr = LEVELS[AT + 23]
    places = block * BLOCK + tl.arange(0, BLOCK)
    exists = places < WORDS
    if BY_WORDS:
        bits = _derive_words(words_ptr, places, exists, LEVELS, AT)
    else:
        bits = _derive_cells(words_ptr, places, exists, LEVELS, AT)
    tl.store(words_ptr + FIRST_WORD + places, bits.to(tl.int64, bitcast=True), mask=exists)
    tl.store(sums_ptr + FIRST_BLOCK + block, tl.sum(popcount64(bits), 0))


@triton.jit
def _rank_block(
    block,
    frame_ptr,
    words_ptr,
    sums_ptr,
    sites_ptr,
    bounds_ptr,
    counts_ptr,
    needed_ptr,
    LEVELS: tl.constexpr,
    AT: tl.constexpr,
):
    """Ranks of a block of words, and the cells of its sites."""
    FIRST_WORD: tl.constexpr = LEVELS[AT]
    CELLS: tl.constexpr = LEVELS[AT + 1]
    SEGMENTS: tl.constexpr = LEVELS[AT + 2]
    Z_BITS: tl.constexpr = LEVELS[AT + 6]
    NUMBER: tl.constexpr = LEVELS[AT + 7]
    WORDS: tl.constexpr = LEVELS[AT + 8]
    BLOCK: tl.constexpr = LEVELS[AT + 9]
    FIRST_BLOCK: tl.constexpr = LEVELS[AT + 10]
    BLOCKS: tl.constexpr = LEVELS[AT + 11]
    places = block * BLOCK + tl.arange(0, BLOCK)
    word = tl.load(words_ptr + FIRST_WORD + places, mask=places < WORDS, other=0)
    sums = tl.zeros([_SUMS], tl.int32)
    for start in range(0, block, _SUMS):
        earlier = start + tl.arange(0, _SUMS)
        sums += tl.load(sums_ptr + FIRST_BLOCK + earlier, mask=earlier < block, other=0)
    first_site = tl.load(bounds_ptr + NUMBER * 2)
    capacity = tl.load(bounds_ptr + NUMBER * 2 + 1).to(tl.int32)
    before = tl.sum(sums, 0)
    bits = word.to(tl.uint64, bitcast=True)
    found = popcount64(bits)
    rank = before + tl.cumsum(found, 0) - found
    ranked = bits | (rank.to(tl.uint64) << CELLS)
    # A zero beside zeros stays what it is: most columns are empty.
    tl.store(words_ptr + FIRST_WORD + places, ranked.to(tl.int64, bitcast=True), mask=bits != 0)
    if block == BLOCKS - 1:
        total = before + tl.sum(found, 0)
        _conclude(frame_ptr, counts_ptr, needed_ptr, total, capacity, NUMBER)
    if NUMBER > 0:  # the input's rows know their cells
        column = (places // SEGMENTS).to(sites_ptr.dtype.element_ty)
        first_cell = (column << Z_BITS) + places % SEGMENTS * CELLS
        for _ in range(tl.max(found, 0)):
            rest = bits & (bits - 1)
            cell = first_cell + popcount64((bits ^ rest) - 1)
            held = (bits != 0) & (rank < capacity)
            tl.store(sites_ptr + first_site + rank, cell, mask=held)
            bits = rest
            rank += 1


@triton.jit
def _conclude(frame_ptr, counts_ptr, needed_ptr, total, capacity, NUMBER: tl.constexpr):
    """The last block knows how many sites its level has, and whether that can be.

    Words keep what does not fit, so that deeper levels are counted right; who looks rows up has to
    heed the flag.
    """
    tl.store(needed_ptr + NUMBER, total)
    tl.store(counts_ptr + NUMBER, tl.minimum(total, capacity))
    flag = total * 0
    if total > capacity:
        flag += _OVERFLOW << NUMBER
    if NUMBER == 0:
        if total != tl.load(frame_ptr + 2):
            flag += _REPEATED
    if flag > 0:
        tl.atomic_or(frame_ptr + 3, flag.to(tl.int64))


@triton.jit
def _derive_words(words_ptr, columns, exists, LEVELS: tl.constexpr, AT: tl.constexpr):
    """Bits of columns: those of all columns of the source that they see, taken together along z.

    What a site sees through a chain of convolutions is a box, cut at the ends of each grid on the
    way; so along y and x there is one interval, and along z the steps follow one another.
    """
    SOURCE: tl.constexpr = LEVELS[AT + 14]
    SOURCE_Y: tl.constexpr = LEVELS[AT + 18]
    SOURCE_X: tl.constexpr = LEVELS[AT + 19]
    STEPS: tl.constexpr = LEVELS[AT + 20]
    REACH_Y: tl.constexpr = LEVELS[AT + 21]
    REACH_X: tl.constexpr = LEVELS[AT + 22]
    SIZE_Z: tl.constexpr = LEVELS[AT + 3]
    b, y, x = _coordinates(columns, LEVELS, AT)
    y_lo, y_hi, x_lo, x_hi = y, y, x, x
    for back in tl.static_range(STEPS):
        y_lo, y_hi = _seen(y_lo, y_hi, LEVELS, AT + _STEPS_AT + (STEPS - 1 - back) * _STEP_SIZE + 5)
        x_lo, x_hi = _seen(
            x_lo, x_hi, LEVELS, AT + _STEPS_AT + (STEPS - 1 - back) * _STEP_SIZE + 10
        )
    union = (columns * 0).to(tl.uint64)
    for dy in tl.static_range(REACH_Y):
        for dx in tl.static_range(REACH_X):
            there = exists & (y_lo + dy <= y_hi) & (x_lo + dx <= x_hi)
            column = (b * SOURCE_Y + y_lo + dy) * SOURCE_X + x_lo + dx
            word = tl.load(words_ptr + SOURCE + column, mask=there, other=0)
            union |= word.to(tl.uint64, bitcast=True)
    bits = union
    for step in tl.static_range(STEPS):
        bits = _reach_along_z(bits, LEVELS, AT + _STEPS_AT + step * _STEP_SIZE)
    return bits & ((1 << SIZE_Z) - 1)


@triton.jit
def _derive_cells(words_ptr, places, exists, LEVELS: tl.constexpr, AT: tl.constexpr):
    """The same one step and cell by cell: where a column has several words."""
    CELLS: tl.constexpr = LEVELS[AT + 1]
    SEGMENTS: tl.constexpr = LEVELS[AT + 2]
    SIZE_Z: tl.constexpr = LEVELS[AT + 3]
    SOURCE: tl.constexpr = LEVELS[AT + 14]
    SOURCE_CELLS: tl.constexpr = LEVELS[AT + 15]
    SOURCE_SEGMENTS: tl.constexpr = LEVELS[AT + 16]
    SOURCE_Z: tl.constexpr = LEVELS[AT + 17]
    SOURCE_Y: tl.constexpr = LEVELS[AT + 18]
    SOURCE_X: tl.constexpr = LEVELS[AT + 19]
    REACH_Y: tl.constexpr = LEVELS[AT + 21]
    REACH_X: tl.constexpr = LEVELS[AT + 22]
    STEP: tl.constexpr = AT + _STEPS_AT
    KERNEL_Z: tl.constexpr = LEVELS[STEP]
    STRIDE_Z: tl.constexpr = LEVELS[STEP + 1]
    PADDING_Z: tl.constexpr = LEVELS[STEP + 2]
    b, y, x = _coordinates(places // SEGMENTS, LEVELS, AT)
    y_lo, y_hi = _seen(y, y, LEVELS, STEP + 5)
    x_lo, x_hi = _seen(x, x, LEVELS, STEP + 10)
    bits = (places * 0).to(tl.uint64)
    for cell in range(CELLS):
        z = places % SEGMENTS * CELLS + cell
        lit = bits & 0
        for tap in tl.static_range(KERNEL_Z):
            source_z = z * STRIDE_Z - PADDING_Z + tap
            inside = exists & (z < SIZE_Z) & (source_z >= 0) & (source_z < SOURCE_Z)
            source_z = tl.where(inside, source_z, 0)
            for dy in tl.static_range(REACH_Y):
                for dx in tl.static_range(REACH_X):
                    there = inside & (y_lo + dy <= y_hi) & (x_lo + dx <= x_hi)
                    column = (b * SOURCE_Y + y_lo + dy) * SOURCE_X + x_lo + dx
                    place = column * SOURCE_SEGMENTS + source_z // SOURCE_CELLS
                    word = tl.load(words_ptr + SOURCE + place, mask=there, other=0)
                    shift = (source_z % SOURCE_CELLS).to(tl.uint64)
                    lit |= (word.to(tl.uint64, bitcast=True) >> shift) & 1
        bits |= lit << ((bits & 0) + cell)
    return bits


@triton.jit
def _coordinates(columns, LEVELS: tl.constexpr, AT: tl.constexpr):
    SIZE_Y: tl.constexpr = LEVELS[AT + 4]
    SIZE_X: tl.constexpr = LEVELS[AT + 5]
    line = columns // SIZE_X
    b = line // SIZE_Y
    return b, line - b * SIZE_Y, columns - line * SIZE_X


@triton.jit
def _seen(lo, hi, LEVELS: tl.constexpr, AT: tl.constexpr):
    """Interval of cells that are read for an interval of outputs."""
    KERNEL: tl.constexpr = LEVELS[AT]
    STRIDE: tl.constexpr = LEVELS[AT + 1]
    PADDING: tl.constexpr = LEVELS[AT + 2]
    SIZE: tl.constexpr = LEVELS[AT + 3]
    first = tl.maximum(lo * STRIDE - PADDING, 0)
    return first, tl.minimum(hi * STRIDE + (KERNEL - 1 - PADDING), SIZE - 1)


@triton.jit
def _reach_along_z(bits, LEVELS: tl.constexpr, AT: tl.constexpr):
    KERNEL: tl.constexpr = LEVELS[AT]
    STRIDE: tl.constexpr = LEVELS[AT + 1]
    PADDING: tl.constexpr = LEVELS[AT + 2]
    CELLS: tl.constexpr = LEVELS[AT + 3]
    return reached_bits(bits & ((1 << CELLS) - 1), KERNEL, STRIDE, PADDING)


@triton.jit
def clear_marks(
    frame_ptr,
    words_ptr,
    sites_ptr,
    bounds_ptr,
    counts_ptr,
    LEVELS: tl.constexpr,
    N_LEVELS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Leave zeros where cells were marked.

    A frame that raised a flag need not have listed what it marked: then all words are cleared.
    """
    if OVERLAP:
        gdc_wait()
        gdc_launch_dependents()
    raised = tl.load(frame_ptr + 3) != 0
    places = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    stride = tl.num_programs(0) * BLOCK
    for number in tl.static_range(N_LEVELS):
        _clear_level(
            raised,
            words_ptr,
            sites_ptr,
            bounds_ptr,
            counts_ptr,
            places,
            stride,
            LEVELS,
            number * _FIELDS,
        )


@triton.jit
def _clear_level(
    raised,
    words_ptr,
    sites_ptr,
    bounds_ptr,
    counts_ptr,
    places,
    stride,
    LEVELS: tl.constexpr,
    AT: tl.constexpr,
):
    CELLS: tl.constexpr = LEVELS[AT + 1]
    SEGMENTS: tl.constexpr = LEVELS[AT + 2]
    Z_BITS: tl.constexpr = LEVELS[AT + 6]
    NUMBER: tl.constexpr = LEVELS[AT + 7]
    WORDS: tl.constexpr = LEVELS[AT + 8]
    level_words = words_ptr + LEVELS[AT]
    zeros = (places * 0).to(tl.int64)
    if raised:
        for start in range(0, WORDS, stride):
            tl.store(level_words + start + places, zeros, mask=start + places < WORDS)
    else:
        level_sites = sites_ptr + tl.load(bounds_ptr + NUMBER * 2)
        count = tl.load(counts_ptr + NUMBER)
        for start in range(0, count, stride):
            there = start + places < count
            cell = tl.load(level_sites + start + places, mask=there, other=0)
            z = (cell & ((1 << Z_BITS) - 1)).to(tl.int32)
            word = (cell >> Z_BITS).to(tl.int32) * SEGMENTS + z // CELLS
            tl.store(level_words + word, zeros, mask=there)
