"""The kernels of kernel maps: marking cells, ranking them, listing them, looking them up.

The cells of a row along x are the bits of `row_words` words; rows follow each other in the order
(b, z, y), so that the rank of a set bit is the place of its cell in row-major order. `GEOMETRY` is
kernel, stride, padding and dilation by axis, 12 numbers.
"""

import triton
import triton.language as tl

from voxelquant.sparse.backends.triton.bits import bits_below, popcount64


@triton.jit
def _site(coords_ptr, row, there):
    """Coordinates of a row; no kernel works with rows that are not there."""
    b = tl.load(coords_ptr + row.to(tl.int64) * 4, mask=there, other=0).to(tl.int32)
    z = tl.load(coords_ptr + row.to(tl.int64) * 4 + 1, mask=there, other=0).to(tl.int32)
    y = tl.load(coords_ptr + row.to(tl.int64) * 4 + 2, mask=there, other=0).to(tl.int32)
    x = tl.load(coords_ptr + row.to(tl.int64) * 4 + 3, mask=there, other=0).to(tl.int32)
    return b, z, y, x


@triton.jit
def _word_of(b, z, y, x, size_z, size_y, row_words):
    """Word that holds a cell; its bit is `x & 63`."""
    return ((b.to(tl.int64) * size_z + z) * size_y + y) * row_words + (x >> 6)


@triton.jit
def _row_of(words_ptr, ranks_ptr, rows_ptr, word, bit, inside, IN_ORDER: tl.constexpr):
    """Row of the site in a cell, and whether there is one."""
    bits = tl.load(words_ptr + word, mask=inside, other=0).to(tl.uint64, bitcast=True)
    active = inside & (((bits >> bit.to(tl.uint64)) & 1) != 0)
    row = tl.load(ranks_ptr + word, mask=active, other=0) + popcount64(bits & bits_below(bit))
    if not IN_ORDER:
        row = tl.load(rows_ptr + row, mask=active, other=0)
    return row, active


@triton.jit
def _first_reader(place, AXIS: tl.constexpr, GEOMETRY: tl.constexpr):
    """First output along an axis whose kernel ends at an input's place or behind it."""
    STRIDE: tl.constexpr = GEOMETRY[3 + AXIS]
    SPAN: tl.constexpr = GEOMETRY[9 + AXIS] * (GEOMETRY[AXIS] - 1)
    # A quotient below 0 may be rounded up or down: it becomes 0 either way.
    return tl.maximum((place + (GEOMETRY[6 + AXIS] - SPAN + STRIDE - 1)) // STRIDE, 0)


@triton.jit
def _tap_of(place, out, size, AXIS: tl.constexpr, GEOMETRY: tl.constexpr):
    """Tap through which an output along an axis reads an input's place, and whether it does."""
    DILATION: tl.constexpr = GEOMETRY[9 + AXIS]
    distance = place + GEOMETRY[6 + AXIS] - GEOMETRY[3 + AXIS] * out
    tap = distance // DILATION
    reads = (distance >= 0) & (tap * DILATION == distance) & (tap < GEOMETRY[AXIS])
    return tap, reads & (out < size)


@triton.jit(do_not_specialize=["n", "size_z", "size_y", "size_x", "row_words"])
def mark_readers(
    coords_ptr,  # [n, 4]
    words_ptr,  # [words] int64 zeros
    n,
    size_z,
    size_y,
    size_x,
    row_words,
    GEOMETRY: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Set the bit of every output that reads one of the sites; sizes are those of the outputs."""
    REACH_Y: tl.constexpr = GEOMETRY[10] * (GEOMETRY[1] - 1) // GEOMETRY[4] + 1
    REACH_X: tl.constexpr = GEOMETRY[11] * (GEOMETRY[2] - 1) // GEOMETRY[5] + 1
    REACH_ZY: tl.constexpr = (GEOMETRY[9] * (GEOMETRY[0] - 1) // GEOMETRY[3] + 1) * REACH_Y
    rows = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    there = rows < n
    b, z, y, x = _site(coords_ptr, rows, there)
    first_z = _first_reader(z, 0, GEOMETRY)
    first_y = _first_reader(y, 1, GEOMETRY)
    first_x = _first_reader(x, 2, GEOMETRY)
    for step in range(REACH_ZY):
        out_z = first_z + step // REACH_Y
        out_y = first_y + step % REACH_Y
        _, reads_z = _tap_of(z, out_z, size_z, 0, GEOMETRY)
        _, reads_y = _tap_of(y, out_y, size_y, 1, GEOMETRY)
        for step_x in tl.static_range(REACH_X):
            out_x = first_x + step_x
            _, reads_x = _tap_of(x, out_x, size_x, 2, GEOMETRY)
            reads = there & reads_z & reads_y & reads_x
            word = words_ptr + _word_of(b, out_z, out_y, out_x, size_z, size_y, row_words)
            bit = bits_below(out_x & 63) + 1
            # Most bits are set already: looking first spares the atomic.
            old = tl.load(word, mask=reads, other=0).to(tl.uint64, bitcast=True)
            missing = reads & ((old & bit) == 0)
            tl.atomic_or(word, bit.to(tl.int64, bitcast=True), mask=missing, sem="relaxed")


@triton.jit
def count_bits(words_ptr, sums_ptr, BLOCK: tl.constexpr):
    """Set bits of every block of words."""
    places = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    words = tl.load(words_ptr + places).to(tl.uint64, bitcast=True)
    tl.store(sums_ptr + tl.program_id(0), tl.sum(popcount64(words), 0))


@triton.jit
def rank_bits(words_ptr, sums_ptr, ranks_ptr, BLOCK: tl.constexpr, SUMS: tl.constexpr):
    """Set bits before every word that has any; the number of all goes behind the sums.

    Ranks of empty words are never read, and stay as they are.
    """
    block = tl.program_id(0)
    before = tl.zeros([SUMS], tl.int32)
    for start in range(0, block, SUMS):
        places = start + tl.arange(0, SUMS)
        before += tl.load(sums_ptr + places, mask=places < block, other=0)
    base = tl.sum(before, 0)
    places = block.to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    words = tl.load(words_ptr + places).to(tl.uint64, bitcast=True)
    bits = popcount64(words)
    tl.store(ranks_ptr + places, base + tl.cumsum(bits, 0) - bits, mask=bits > 0)
    if block == tl.num_programs(0) - 1:
        tl.store(sums_ptr + block + 1, base + tl.sum(bits, 0))


@triton.jit(do_not_specialize=["n", "size_z", "size_y", "row_words"])
def place_rows(
    coords_ptr,  # [n, 4]
    words_ptr,
    ranks_ptr,
    rows_ptr,  # [n] int32
    n,
    size_z,
    size_y,
    row_words,
    BLOCK: tl.constexpr,
):
    """Row of the site of every rank, for sites that are not in row-major order."""
    rows = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    there = rows < n
    b, z, y, x = _site(coords_ptr, rows, there)
    word = _word_of(b, z, y, x, size_z, size_y, row_words)
    rank, active = _row_of(words_ptr, ranks_ptr, rows_ptr, word, x & 63, there, True)
    tl.store(rows_ptr + rank, rows, mask=active)


@triton.jit(do_not_specialize=["size_z", "size_y", "row_words"])
def list_cells(
    words_ptr,
    ranks_ptr,
    coords_ptr,  # [m, 4] int32
    size_z,
    size_y,
    row_words,
    BLOCK: tl.constexpr,
):
    """Coordinates of every set bit, in row-major order."""
    places = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    words = tl.load(words_ptr + places).to(tl.uint64, bitcast=True)
    if tl.max((words != 0).to(tl.int32), 0) == 0:
        return
    rank = tl.load(ranks_ptr + places, mask=words != 0, other=0).to(tl.int64)
    row = places // row_words
    first_x = (places % row_words) * 64
    plane = row // size_y
    while tl.max((words != 0).to(tl.int32), 0) > 0:
        lower = words & (words - 1)  # without the lowest bit
        held = words != 0
        bit = popcount64((words ^ lower) - 1)
        tl.store(coords_ptr + rank * 4, (plane // size_z).to(tl.int32), mask=held)
        tl.store(coords_ptr + rank * 4 + 1, (plane % size_z).to(tl.int32), mask=held)
        tl.store(coords_ptr + rank * 4 + 2, (row % size_y).to(tl.int32), mask=held)
        tl.store(coords_ptr + rank * 4 + 3, (first_x + bit).to(tl.int32), mask=held)
        words = lower
        rank += 1


@triton.jit(do_not_specialize=["n", "size_z", "size_y", "size_x", "row_words"])
def look_up_taps(
    coords_ptr,  # [n, 4]
    words_ptr,
    ranks_ptr,
    rows_ptr,
    table_ptr,  # [k, n] int32
    n,
    size_z,
    size_y,
    size_x,
    row_words,
    GEOMETRY: tl.constexpr,
    IN_ORDER: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Row of the site at `site - padding + dilation * tap`, n where there is none.

    A program looks up the taps of one row along x, most of which share a word.
    """
    KERNEL_Y: tl.constexpr = GEOMETRY[1]
    KERNEL_X: tl.constexpr = GEOMETRY[2]
    rows = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    there = rows < n
    b, z, y, x = _site(coords_ptr, rows, there)
    tap_zy = tl.program_id(1)
    z += GEOMETRY[9] * (tap_zy // KERNEL_Y) - GEOMETRY[6]
    y += GEOMETRY[10] * (tap_zy % KERNEL_Y) - GEOMETRY[7]
    inside = there & (z >= 0) & (z < size_z) & (y >= 0) & (y < size_y)
    for tap_x in tl.static_range(KERNEL_X):
        at_x = x + (GEOMETRY[11] * tap_x - GEOMETRY[8])
        word = _word_of(b, z, y, at_x, size_z, size_y, row_words)
        seen = inside & (at_x >= 0) & (at_x < size_x)
        row, active = _row_of(words_ptr, ranks_ptr, rows_ptr, word, at_x & 63, seen, IN_ORDER)
        place = (tap_zy * KERNEL_X + tap_x).to(tl.int64) * n + rows
        tl.store(table_ptr + place, tl.where(active, row, n), mask=there)


@triton.jit(do_not_specialize=["n", "m", "size_z", "size_y", "size_x", "row_words"])
def scatter_pairs(
    coords_ptr,  # [n, 4]
    words_ptr,
    ranks_ptr,
    table_ptr,  # [k, m] int32, n everywhere
    n,
    m,
    size_z,
    size_y,
    size_x,
    row_words,
    GEOMETRY: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Write every site to the taps through which outputs read it; sizes are the outputs'."""
    REACH_Y: tl.constexpr = GEOMETRY[10] * (GEOMETRY[1] - 1) // GEOMETRY[4] + 1
    REACH_X: tl.constexpr = GEOMETRY[11] * (GEOMETRY[2] - 1) // GEOMETRY[5] + 1
    REACH_ZY: tl.constexpr = (GEOMETRY[9] * (GEOMETRY[0] - 1) // GEOMETRY[3] + 1) * REACH_Y
    rows = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    there = rows < n
    b, z, y, x = _site(coords_ptr, rows, there)
    first_z = _first_reader(z, 0, GEOMETRY)
    first_y = _first_reader(y, 1, GEOMETRY)
    first_x = _first_reader(x, 2, GEOMETRY)
    for step in range(REACH_ZY):
        out_z = first_z + step // REACH_Y
        out_y = first_y + step % REACH_Y
        tap_z, reads_z = _tap_of(z, out_z, size_z, 0, GEOMETRY)
        tap_y, reads_y = _tap_of(y, out_y, size_y, 1, GEOMETRY)
        for step_x in tl.static_range(REACH_X):
            out_x = first_x + step_x
            tap_x, reads_x = _tap_of(x, out_x, size_x, 2, GEOMETRY)
            reads = there & reads_z & reads_y & reads_x
            word = _word_of(b, out_z, out_y, out_x, size_z, size_y, row_words)
            out, _ = _row_of(words_ptr, ranks_ptr, words_ptr, word, out_x & 63, reads, True)
            tap = (tap_z * GEOMETRY[1] + tap_y) * GEOMETRY[2] + tap_x
            tl.store(table_ptr + tap.to(tl.int64) * m + out, rows, mask=reads)


@triton.jit(do_not_specialize=["n_in", "n_out"])
def turn_table(
    table_ptr,  # [k, n_out] int32
    turned_ptr,  # [k, n_in] int32, n_out everywhere
    n_in,
    n_out,
    BLOCK: tl.constexpr,
):
    """Write every output row to the input row that it reads, tap by tap."""
    tap = tl.program_id(1).to(tl.int64)
    out_rows = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    in_rows = tl.load(table_ptr + tap * n_out + out_rows, mask=out_rows < n_out, other=n_in)
    tl.store(turned_ptr + tap * n_in + in_rows, out_rows, mask=in_rows < n_in)
