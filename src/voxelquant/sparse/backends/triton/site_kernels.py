"""The kernels of the site index: marking cells, ranking words, listing sites."""

import triton
import triton.language as tl

from voxelquant.sparse.backends.triton.bits import bits_below, popcount64
from voxelquant.sparse.backends.triton.overlap import OVERLAP, gdc_launch_dependents, gdc_wait


@triton.jit
def mark_sites(
    coords_ptr,
    count_ptr,
    words_ptr,
    flags_ptr,
    batch_size,
    STEPS: tl.constexpr,
    LEVELS: tl.constexpr,
    N_LEVELS: tl.constexpr,
    MAX_DEPTH: tl.constexpr,
    MULTI_WORD: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Set the bits of all cells, level by level, that the input's sites reach.

    Along an axis, outputs o with `s * o - p <= hi` and `s * o - p + k - 1 >= lo` are those that an
    interval [lo, hi] of inputs reaches, again an interval. All levels and the cells of a box are
    unrolled, so that no look at a word waits for another.
    """
    if OVERLAP:
        gdc_wait()
        gdc_launch_dependents()
    count = tl.load(count_ptr)
    if tl.program_id(0) * BLOCK >= count:
        return
    rows = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    there = rows < count
    b = tl.load(coords_ptr + rows * 4, mask=there, other=0)
    z = tl.load(coords_ptr + rows * 4 + 1, mask=there, other=0)
    y = tl.load(coords_ptr + rows * 4 + 2, mask=there, other=0)
    x = tl.load(coords_ptr + rows * 4 + 3, mask=there, other=0)
    inside = (b >= 0) & (b < batch_size) & (z >= 0) & (y >= 0) & (x >= 0)
    inside &= (z < LEVELS[2]) & (y < LEVELS[3]) & (x < LEVELS[4])
    outside = tl.max((there & (inside == 0)).to(tl.int32), 0)
    tl.atomic_or(flags_ptr, outside.to(tl.int64), mask=outside > 0)
    there &= inside
    # Whoever marks nothing new has nothing to hand on: all that its box on a level reaches is
    # reached from whoever marked those cells first. So few are left for the coarse levels, where
    # thousands of sites would otherwise meet in one word.
    first = there
    for level in tl.static_range(N_LEVELS):
        if LEVELS[level * 9 + 8] != level - 1:
            first = there
        first = _mark_level(
            words_ptr, b, z, y, x, first, STEPS, LEVELS, level, MAX_DEPTH, MULTI_WORD
        )


@triton.jit
def _mark_level(
    words_ptr,
    b,
    z,
    y,
    x,
    there,
    STEPS: tl.constexpr,
    LEVELS: tl.constexpr,
    LEVEL: tl.constexpr,
    MAX_DEPTH: tl.constexpr,
    MULTI_WORD: tl.constexpr,
):
    """Mark what sites reach on one level; returns which of them marked something new."""
    FIRST_WORD: tl.constexpr = LEVELS[LEVEL * 9 + 0]
    COLUMN_BITS: tl.constexpr = LEVELS[LEVEL * 9 + 1]
    SIZE_Y: tl.constexpr = LEVELS[LEVEL * 9 + 3]
    SIZE_X: tl.constexpr = LEVELS[LEVEL * 9 + 4]
    DEPTH: tl.constexpr = LEVELS[LEVEL * 9 + 5]
    REACH_Y: tl.constexpr = LEVELS[LEVEL * 9 + 6]
    REACH_X: tl.constexpr = LEVELS[LEVEL * 9 + 7]
    z_lo, z_hi, y_lo, y_hi, x_lo, x_hi = z, z, y, y, x, x
    for step in tl.static_range(DEPTH):
        z_lo, z_hi = _reach(z_lo, z_hi, STEPS, (LEVEL * MAX_DEPTH + step) * 12)
        y_lo, y_hi = _reach(y_lo, y_hi, STEPS, (LEVEL * MAX_DEPTH + step) * 12 + 4)
        x_lo, x_hi = _reach(x_lo, x_hi, STEPS, (LEVEL * MAX_DEPTH + step) * 12 + 8)
        there &= (z_lo <= z_hi) & (y_lo <= y_hi) & (x_lo <= x_hi)
    is_new = there & False
    for dy in tl.static_range(REACH_Y):
        for dx in tl.static_range(REACH_X):
            column = (b * SIZE_Y + y_lo + dy).to(tl.int64) * SIZE_X + x_lo + dx
            first = column * COLUMN_BITS + z_lo
            last = first + (z_hi - z_lo)
            word = first >> 6
            # The run of bits lies in one word, or begins in one and ends in another.
            upto = tl.where(last >> 6 == word, last & 63, 63)
            run = ((bits_below(upto) << 1) | 1) & ~bits_below(first & 63)
            reached = there & (y_lo + dy <= y_hi) & (x_lo + dx <= x_hi)
            is_new |= _set_bits(words_ptr + FIRST_WORD + word, run, reached)
            if MULTI_WORD:
                while tl.max((reached & (word < last >> 6)).to(tl.int32), 0) > 0:
                    word += 1
                    upto = tl.where(last >> 6 == word, last & 63, 63)
                    run = (bits_below(upto) << 1) | 1
                    rest = reached & (word <= last >> 6)
                    is_new |= _set_bits(words_ptr + FIRST_WORD + word, run, rest)
    return is_new


@triton.jit
def _reach(lo, hi, STEPS: tl.constexpr, AT: tl.constexpr):
    """Interval of outputs that an interval of inputs reaches."""
    KERNEL: tl.constexpr = STEPS[AT]
    STRIDE: tl.constexpr = STEPS[AT + 1]
    PADDING: tl.constexpr = STEPS[AT + 2]
    SIZE: tl.constexpr = STEPS[AT + 3]
    first = tl.maximum((lo + (PADDING - KERNEL + STRIDE)) // STRIDE, 0)
    return first, tl.minimum((hi + PADDING) // STRIDE, SIZE - 1)


@triton.jit
def _set_bits(ptr, bits, mask):
    """Set bits of words; returns where one was not set before."""
    # Most bits are set already: looking first spares the atomic. A stale look only repeats it.
    old = tl.load(ptr, mask=mask, other=0).to(tl.uint64, bitcast=True)
    missing = mask & ((old & bits) != bits)
    before = tl.atomic_or(ptr, bits.to(tl.int64, bitcast=True), mask=missing)
    return missing & ((before.to(tl.uint64, bitcast=True) & bits) != bits)


@triton.jit
def count_blocks(words_ptr, sums_ptr, BLOCK: tl.constexpr):
    """Bits of every block of words."""
    if OVERLAP:
        gdc_wait()
        gdc_launch_dependents()
    words = tl.load(words_ptr + tl.program_id(0) * BLOCK + tl.arange(0, BLOCK))
    total = tl.sum(popcount64(words.to(tl.uint64, bitcast=True)), 0)
    tl.store(sums_ptr + tl.program_id(0), total)


@triton.jit
def rank_words(
    words_ptr,
    sums_ptr,
    blocks_ptr,
    ranks_ptr,
    counts_ptr,
    needed_ptr,
    input_count_ptr,
    flags_ptr,
    BLOCK: tl.constexpr,
    SUMS: tl.constexpr,
):
    """Bits before every word within its level."""
    if OVERLAP:
        gdc_wait()
        gdc_launch_dependents()
    block = tl.program_id(0)
    level = tl.load(blocks_ptr + block * 5)
    first_block = tl.load(blocks_ptr + block * 5 + 1)
    last_block = tl.load(blocks_ptr + block * 5 + 2)
    capacity = tl.load(blocks_ptr + block * 5 + 4)
    before = tl.zeros([SUMS], tl.int32)
    for start in range(first_block, block, SUMS):
        places = start + tl.arange(0, SUMS)
        before += tl.load(sums_ptr + places, mask=places < block, other=0)
    base = tl.sum(before, 0)
    places = block * BLOCK + tl.arange(0, BLOCK)
    words = tl.load(words_ptr + places).to(tl.uint64, bitcast=True)
    bits = popcount64(words)
    rank = base + tl.cumsum(bits, 0) - bits
    tl.store(ranks_ptr + places, rank)
    if block == last_block:
        total = base + tl.sum(bits, 0)
        tl.store(needed_ptr + level, total)
        tl.store(counts_ptr + level, tl.minimum(total, capacity))
        if total > capacity:
            one = (total * 0 + 4).to(tl.int64)
            tl.atomic_or(flags_ptr, one << level)
        if level == 0:
            if total != tl.load(input_count_ptr):
                two = (total * 0 + 2).to(tl.int64)
                tl.atomic_or(flags_ptr, two)


@triton.jit
def list_sites(
    words_ptr,
    ranks_ptr,
    blocks_ptr,
    sites_ptr,
    first_word,
    WORDS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Cell of every site, from the bits of `BLOCK` words behind the first level's."""
    if OVERLAP:
        gdc_wait()
        gdc_launch_dependents()
    places = first_word + tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    words = tl.load(words_ptr + places).to(tl.uint64, bitcast=True)
    if tl.max((words != 0).to(tl.int32), 0) == 0:
        return
    rank = tl.load(ranks_ptr + places)
    block_ptr = blocks_ptr + (first_word + tl.program_id(0) * BLOCK) // WORDS * 5
    first_block = tl.load(block_ptr + 1)
    first_site = tl.load(block_ptr + 3)
    capacity = tl.load(block_ptr + 4)
    in_level = (places - first_block * WORDS).to(tl.int64) * 64
    while tl.max((words != 0).to(tl.int32), 0) > 0:
        lower = words & (words - 1)  # without the lowest bit
        place = popcount64((words ^ lower) - 1)
        cell = in_level + place
        held = (words != 0) & (rank < capacity)
        tl.store(sites_ptr + first_site + rank, cell.to(sites_ptr.dtype.element_ty), mask=held)
        words = lower
        rank += 1
