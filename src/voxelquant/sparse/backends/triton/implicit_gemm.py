"""Sparse convolution as one implicit GEMM, with everything fused that follows it.

    out[m, :] = finish(sum over columns j, taps t of  x[row(m, j, t), :] @ w[j, t])

Output-stationary: a program owns `BLOCK_M` output rows and `BLOCK_N` channels, gathers the rows
that its sites see through a column of taps and multiplies them; nothing is scattered but whole rows
of the result. Missing sites are masked loads: they cost no traffic, but their share of a product;
rows in groups (`row_groups`) leave out taps that none of them sees. Prior art: the implicit GEMM of
spconv 2 and of TorchSparse++ (Tang 2023, 2311.12862).

Rows of features are `stride_x` elements apart, which may be more than they have channels; weights
are packed `[columns, c_out, kz * c_pad]` (`planned_conv.pack_weight`), their last axis filled up
with zeros.
"""

import triton
import triton.language as tl

from voxelquant.sparse.backends.triton.bits import popcount_small
from voxelquant.sparse.backends.triton.epilogue import (
    finish,
    finish_as_operand,
    load_divisor,
    load_scale,
    operand_value,
)
from voxelquant.sparse.backends.triton.overlap import gdc_launch_dependents, gdc_wait
from voxelquant.sparse.backends.triton.row_groups import find_tile, list_taps, rows_of_group

_ONE_BITS: tl.constexpr = tl.constexpr(16)
_ONE: tl.constexpr = tl.constexpr(1 << 16)  # what reciprocals are fractions of


@triton.jit
def conv_kernel(
    x_ptr,
    w_ptr,
    w_blocks,
    map_ptr,
    count_ptr,
    rows_ptr,
    out_ptr,
    multiplier_ptr,
    bias_ptr,
    scale_ptr,
    residual_ptr,
    scale_a_ptr,
    scale_b_ptr,
    add_scale_ptr,
    parts_ptr,
    arrivals_ptr,
    capacity,
    C_IN: tl.constexpr,
    STRIDE_X: tl.constexpr,
    C_PAD: tl.constexpr,
    C_OUT: tl.constexpr,
    COLUMNS: tl.constexpr,
    KZ: tl.constexpr,
    INVERSE: tl.constexpr,
    FORMAT: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    RELU: tl.constexpr,
    OWN: tl.constexpr,
    RESIDUAL: tl.constexpr,
    ADD_RELU: tl.constexpr,
    RESULT: tl.constexpr,
    STEPS: tl.constexpr,
    BULK: tl.constexpr,
    SPLITS: tl.constexpr,
    OVERLAP: tl.constexpr,
    EARLY: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """See the module; program (i, n, split)."""
    channels = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    in_channels = channels < C_OUT
    # What the end needs of the weights is asked for now: there it would be waited for.
    if FORMAT != "fp16":
        multiplier = tl.load(multiplier_ptr + channels, mask=in_channels, other=0.0)
    if HAS_BIAS:
        bias = tl.load(bias_ptr + channels, mask=in_channels, other=0.0).to(tl.float32)
    by = load_divisor(scale_ptr, OWN)
    if RESIDUAL is not None:
        scale_a = load_scale(scale_a_ptr, OWN)
        scale_b = load_scale(scale_b_ptr, RESIDUAL)
        add_by = load_divisor(add_scale_ptr, RESULT)
    if OVERLAP and not EARLY:
        gdc_wait()
    if STEPS == "seen":
        group, start, count = find_tile(count_ptr, tl.program_id(0), 1 << KZ, BLOCK_M)
    else:
        start = tl.program_id(0) * BLOCK_M
        count = tl.load(count_ptr)
    if start >= count:
        # The first program goes on even with no rows: one has to wait for the predecessor, or this
        # launch would be complete before it.
        if tl.program_id(0) > 0:
            return
    rows = start + tl.arange(0, BLOCK_M)
    there = rows < count
    if STEPS == "seen":
        rows = rows_of_group(rows_ptr, group, rows, there, capacity)
    acc = tl.zeros([BLOCK_M, BLOCK_N], tl.int32 if FORMAT == "int8" else tl.float32)
    k = tl.arange(0, BLOCK_K)
    if not BULK:
        w_row = w_ptr + channels[None, :] * (KZ * C_PAD)
    if SPLITS == 1:
        begin = 0
        end = COLUMNS
    else:
        SHARE: tl.constexpr = (COLUMNS + SPLITS - 1) // SPLITS
        begin = tl.program_id(2) * SHARE
        end = tl.minimum(begin + SHARE, COLUMNS)
    # The entry of a step is fetched one step before, so that the loads it leads to do not wait for
    # it and can be fetched ahead as far as `num_stages` says.
    entry = tl.load(map_ptr + begin * capacity + rows, mask=there, other=0)
    if OVERLAP:
        if EARLY:
            gdc_wait()
        gdc_launch_dependents()
    if STEPS == "together":
        tap = k // C_PAD
        channel = k % C_PAD
        for column in range(begin, end):
            row, seen = _row_of_tap(entry[:, None], tap[None, :], KZ, INVERSE)
            ahead = there & (column + 1 < end)
            entry = tl.load(map_ptr + (column + 1) * capacity + rows, mask=ahead, other=0)
            seen = seen & (channel < C_IN)[None, :]
            a = tl.load(x_ptr + row * STRIDE_X + channel[None, :], mask=seen, other=0)
            w_there = (k < KZ * C_PAD)[:, None] & in_channels[None, :]
            w = w_row + column * (C_OUT * KZ * C_PAD) + k[:, None]
            b = tl.load(w, mask=w_there, other=0)
            acc = tl.dot(_factor(a, FORMAT), b, acc, out_dtype=acc.dtype)
    elif STEPS == "column":
        for column in range(begin, end):
            bits = entry
            ahead = there & (column + 1 < end)
            entry = tl.load(map_ptr + (column + 1) * capacity + rows, mask=ahead, other=0)
            for tap in tl.static_range(KZ):
                # `k // BLOCK_K` is zero: it asks for the rows in the layout in which they are read,
                # so that the entry is moved between threads once, not three rows and their masks.
                tap_of_k = (tap + k // BLOCK_K)[None, :]
                row, seen = _row_of_tap(bits[:, None], tap_of_k, KZ, INVERSE)
                a_there = seen & (k < C_IN)[None, :]
                a = tl.load(x_ptr + row * STRIDE_X + k[None, :], mask=a_there, other=0)
                w = w_row + (column * (C_OUT * KZ * C_PAD) + tap * C_PAD) + k[:, None]
                b = tl.load(w, mask=(k < C_PAD)[:, None] & in_channels[None, :], other=0)
                acc = tl.dot(_factor(a, FORMAT), b, acc, out_dtype=acc.dtype)
    else:
        PARTS: tl.constexpr = C_PAD // BLOCK_K
        if STEPS == "seen":
            tl.static_assert(COLUMNS * (KZ * PARTS) * (KZ * PARTS) < _ONE)
            taps, n_taps = list_taps(group, KZ)
            width = n_taps * PARTS
            reciprocal = 0
            for n in tl.static_range(1, KZ + 1):
                reciprocal = tl.where(n_taps == n, _ONE // (n * PARTS) + 1, reciprocal)
        else:
            taps = 0
            width = KZ * PARTS
            reciprocal = 0
        for step in range(begin * width, end * width):
            if STEPS == "seen":
                # Exact as long as step * width < _ONE; a division would take longer than the rest.
                column = (step * reciprocal) >> _ONE_BITS
                tap = (taps >> (2 * ((step - column * width) // PARTS))) & 3
                next_column = ((step + 1) * reciprocal) >> _ONE_BITS
            else:
                column = step // (KZ * PARTS)
                tap = step // PARTS % KZ
                next_column = (step + 1) // (KZ * PARTS)
            channel = step % PARTS * BLOCK_K + k
            row, seen = _row_of_tap(entry, tap, KZ, INVERSE)
            ahead = there & (step + 1 < end * width)
            entry = tl.load(map_ptr + next_column * capacity + rows, mask=ahead, other=0)
            # One number to be moved between threads instead of two.
            source = tl.where(seen, row, -1)[:, None]
            a_there = (source >= 0) & (channel < C_IN)[None, :]
            a = tl.load(x_ptr + source * STRIDE_X + channel[None, :], mask=a_there, other=0)
            if BULK:
                # Channels beyond the last are rows of the next column; nobody stores their sums.
                first_row = column * C_OUT + tl.program_id(1) * BLOCK_N
                first_k = tap * C_PAD + step % PARTS * BLOCK_K
                b = tl.trans(w_blocks.load([first_row, first_k]))
            else:
                w = w_row + (column * (C_OUT * KZ * C_PAD) + tap * C_PAD) + channel[:, None]
                b = tl.load(w, mask=in_channels[None, :], other=0)
            acc = tl.dot(_factor(a, FORMAT), b, acc, out_dtype=acc.dtype)
    if SPLITS > 1:
        # In the order of the splits, whoever comes last: the sum is the same in every run.
        tile = tl.program_id(0) * tl.num_programs(1) + tl.program_id(1)
        part = rows.to(tl.int64)[:, None] * C_OUT + channels[None, :]
        held = there[:, None] & in_channels[None, :]
        size = capacity.to(tl.int64) * C_OUT
        tl.store(parts_ptr + tl.program_id(2) * size + part, acc, mask=held)
        tl.debug_barrier()
        arrived = tl.atomic_add(arrivals_ptr + tile, 1, sem="acq_rel")
        if arrived != SPLITS - 1:
            return
        tl.store(arrivals_ptr + tile, 0)
        acc = tl.zeros([BLOCK_M, BLOCK_N], acc.dtype)
        for split in tl.static_range(SPLITS):
            acc += tl.load(
                parts_ptr + split * size + part, mask=held, other=0, cache_modifier=".cg"
            )
    y = acc.to(tl.float32)
    if FORMAT != "fp16":
        y = y * multiplier[None, :]
    if HAS_BIAS:
        y = y + bias[None, :]
    places = rows.to(tl.int64)[:, None] * C_OUT + channels[None, :]
    held = there[:, None] & in_channels[None, :]
    if RESIDUAL is None:
        result = finish(y, by, RELU, OWN)
    else:
        own = finish_as_operand(y, by, scale_a, RELU, OWN)
        stored = tl.load(residual_ptr + places, mask=held, other=0)
        total = own + operand_value(stored, scale_b, RESIDUAL)
        result = finish(total, add_by, ADD_RELU, RESULT)
    if FORMAT == "fp16" and result.dtype == tl.int8:
        # 8 codes a store, as many channels as a read of fp16 rows has: else the compiler gives
        # these reads the layout of 16 codes, which no asynchronous copy has.
        places = tl.max_contiguous(places, [1, 8])
    tl.store(out_ptr + places, result, mask=held)


@triton.jit
def _factor(stored, FORMAT: tl.constexpr):
    """Gathered rows as the tensor cores take them.

    fp8 codes are exact in fp16. Their own instructions keep some 14 bits of a sum on Hopper, where
    the law asks for float32.
    """
    if FORMAT == "fp8":
        return stored.to(tl.float8e4nv, bitcast=True).to(tl.float16)
    else:
        return stored


@triton.jit
def _row_of_tap(entry, tap, KZ: tl.constexpr, INVERSE: tl.constexpr):
    """Row that a tap reads, and whether there is one; a tap of `KZ` or more sees nothing."""
    first = entry >> KZ
    bits = entry & ((1 << KZ) - 1)
    seen = ((bits >> tap) & 1) != 0
    if INVERSE:
        others = bits >> (tap + 1)
    else:
        others = bits & ((1 << tap) - 1)
    return first + popcount_small(others, KZ), seen
