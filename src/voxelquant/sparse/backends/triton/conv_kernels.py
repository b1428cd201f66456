"""Implicit-GEMM kernels over the table of a kernel map.

Convolution, `[m, c_out]`: `out[r] = bias + Σ_t features[table[t, r]] · weight[:, t]ᵀ`. A program
owns `BLOCK_M` output rows and `BLOCK_N` channels and walks over the taps: no atomics, every output
written once. One step multiplies `[BLOCK_M, K] × [K, BLOCK_N]`; `K` is `BLOCK_C` channels of one
tap, or all channels of `TAPS_PER_STEP` taps side by side where they are few, so that 5 or 16
channels fill a tensor core as 64 do.

Gradient of the weight, `[c_out, k, c_in]`: `grad[:, t] = Σ_r grad_out[r]ᵀ · features[table[t, r]]`.
The rows are split; each program sums its run in one accumulator
`[TAPS_PER_STEP * BLOCK_C, BLOCK_N]` and writes it to its own place, and the caller adds the parts
in a fixed order.

Prior art: implicit GEMM of spconv 2 and TorchSparse++ (Tang 2023, 2311.12862), unsorted.
"""

import triton
import triton.language as tl


@triton.jit
def _gather(
    features_ptr, table_ptr, rows, taps, channels, n_in, n_out, TAPS: tl.constexpr, C: tl.constexpr
):
    """`[rows, taps * channels]`: the channels that every row reads through the taps, 0 for none."""
    # A single tap stays two-dimensional: its loads need no reshape before the dot.
    if taps.shape[0] == 1:
        tap = tl.sum(taps, 0)
        source = tl.load(table_ptr + tap.to(tl.int64) * n_out + rows, mask=rows < n_out, other=n_in)
        places = source[:, None].to(tl.int64) * C + channels[None, :]
        mask = (source < n_in)[:, None] & (channels < C)[None, :]
        return tl.load(features_ptr + places, mask=mask, other=0)
    known = (rows < n_out)[:, None] & (taps < TAPS)[None, :]
    source = tl.load(
        table_ptr + taps[None, :].to(tl.int64) * n_out + rows[:, None], mask=known, other=n_in
    )
    places = source[:, :, None].to(tl.int64) * C + channels[None, None, :]
    mask = (source < n_in)[:, :, None] & (channels < C)[None, None, :]
    gathered = tl.load(features_ptr + places, mask=mask, other=0)
    return tl.reshape(gathered, (rows.shape[0], taps.shape[0] * channels.shape[0]))


@triton.jit(do_not_specialize=["n_in", "n_out"])
def conv_kernel(
    features_ptr,  # [n_in, C_IN]
    weight_ptr,  # [C_OUT, TAPS, C_IN]; turned: [C_IN, TAPS, C_OUT]
    bias_ptr,  # [C_OUT]
    table_ptr,  # [TAPS, n_out] int32
    out_ptr,  # [n_out, C_OUT]
    n_in,
    n_out,
    TAPS: tl.constexpr,
    C_IN: tl.constexpr,
    C_OUT: tl.constexpr,
    TURNED: tl.constexpr,
    MIRRORED: tl.constexpr,  # tap t multiplies the weight of tap TAPS - 1 - t
    HAS_BIAS: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
    TAPS_PER_STEP: tl.constexpr,
):
    """One block of output rows and channels."""
    column_blocks: tl.constexpr = (C_OUT + BLOCK_N - 1) // BLOCK_N
    chunks: tl.constexpr = (C_IN + BLOCK_C - 1) // BLOCK_C
    steps: tl.constexpr = (TAPS + TAPS_PER_STEP - 1) // TAPS_PER_STEP * chunks
    accumulator_type: tl.constexpr = (
        tl.int32 if weight_ptr.dtype.element_ty == tl.int8 else tl.float32
    )
    program = tl.program_id(0)
    rows = program // column_blocks * BLOCK_M + tl.arange(0, BLOCK_M)
    columns = program % column_blocks * BLOCK_N + tl.arange(0, BLOCK_N)
    depth = tl.arange(0, TAPS_PER_STEP * BLOCK_C)
    total = tl.zeros((BLOCK_M, BLOCK_N), dtype=accumulator_type)
    for step in range(steps):
        first_tap = step // chunks * TAPS_PER_STEP
        first_channel = step % chunks * BLOCK_C
        x = _gather(
            features_ptr,
            table_ptr,
            rows,
            first_tap + tl.arange(0, TAPS_PER_STEP),
            first_channel + tl.arange(0, BLOCK_C),
            n_in,
            n_out,
            TAPS,
            C_IN,
        )
        tap = first_tap + depth // BLOCK_C
        channel = first_channel + depth % BLOCK_C
        known = (tap < TAPS) & (channel < C_IN)
        weight_tap = TAPS - 1 - tap if MIRRORED else tap
        if TURNED:
            places = (channel * TAPS + weight_tap)[:, None] * C_OUT + columns[None, :]
        else:
            places = columns[None, :] * (TAPS * C_IN) + (weight_tap * C_IN + channel)[:, None]
        w = tl.load(weight_ptr + places, mask=known[:, None] & (columns < C_OUT)[None, :], other=0)
        total = tl.dot(x, w, total, input_precision=PRECISION, out_dtype=accumulator_type)
    if HAS_BIAS:
        bias = tl.load(bias_ptr + columns, mask=columns < C_OUT, other=0)
        total += bias.to(tl.float32)[None, :]
    out_places = rows[:, None].to(tl.int64) * C_OUT + columns[None, :]
    mask = (rows < n_out)[:, None] & (columns < C_OUT)[None, :]
    tl.store(out_ptr + out_places, total.to(out_ptr.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["n_in", "n_out", "rows_per_part"])
def weight_grad_kernel(
    features_ptr,  # [n_in, C_IN]
    grad_ptr,  # [n_out, C_OUT]
    table_ptr,  # [TAPS, n_out] int32
    parts_ptr,  # [parts, C_OUT, TAPS, C_IN] float32
    n_in,
    n_out,
    rows_per_part,
    TAPS: tl.constexpr,
    C_IN: tl.constexpr,
    C_OUT: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
    TAPS_PER_STEP: tl.constexpr,
):
    """Some taps and channels of the gradient, summed over one run of rows."""
    column_blocks: tl.constexpr = (C_OUT + BLOCK_N - 1) // BLOCK_N
    part = tl.program_id(1)
    block = tl.program_id(2)
    taps = tl.program_id(0) * TAPS_PER_STEP + tl.arange(0, TAPS_PER_STEP)
    channels = block // column_blocks * BLOCK_C + tl.arange(0, BLOCK_C)
    columns = block % column_blocks * BLOCK_N + tl.arange(0, BLOCK_N)
    total = tl.zeros((TAPS_PER_STEP * BLOCK_C, BLOCK_N), dtype=tl.float32)
    begin = part * rows_per_part
    end = tl.minimum(begin + rows_per_part, n_out)
    for first_row in range(begin, end, BLOCK_R):
        rows = first_row + tl.arange(0, BLOCK_R)
        x = _gather(features_ptr, table_ptr, rows, taps, channels, n_in, n_out, TAPS, C_IN)
        places = rows[:, None].to(tl.int64) * C_OUT + columns[None, :]
        mask = (rows < n_out)[:, None] & (columns < C_OUT)[None, :]
        grad = tl.load(grad_ptr + places, mask=mask, other=0)
        total = tl.dot(tl.trans(x), grad, total, input_precision=PRECISION)
    depth = tl.arange(0, TAPS_PER_STEP * BLOCK_C)
    tap = tl.program_id(0) * TAPS_PER_STEP + depth // BLOCK_C
    channel = block // column_blocks * BLOCK_C + depth % BLOCK_C
    places = columns[None, :] * (TAPS * C_IN) + (tap * C_IN + channel)[:, None]
    mask = ((tap < TAPS) & (channel < C_IN))[:, None] & (columns < C_OUT)[None, :]
    tl.store(parts_ptr + part.to(tl.int64) * (C_OUT * TAPS * C_IN) + places, total, mask=mask)
