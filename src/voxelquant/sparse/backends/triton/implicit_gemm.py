"""Sparse convolution as one implicit GEMM, with everything fused that follows it.

    out[m, :] = finish(sum over columns j, taps t of  x[row(m, j, t), :] @ w[j, t])

Output-stationary: a program owns `BLOCK_M` output rows and `BLOCK_N` channels, gathers the rows
that its sites see through a column of taps and multiplies them; nothing is sorted or scattered.
Missing sites are masked loads: they cost no traffic. Prior art: the implicit GEMM of spconv 2 and
of TorchSparse++ (Tang 2023, 2311.12862).

Rows of features are `stride_x` elements apart, which may be more than they have channels; weights
are packed `[columns, c_out, kz * c_pad]` (`pack_weight`), their last axis filled up with zeros.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from voxelquant.sparse.backends.triton.bits import popcount_small
from voxelquant.sparse.backends.triton.epilogue import (
    finish,
    format_name,
    load_scale,
    operand_value,
    stored_bits,
)
from voxelquant.sparse.backends.triton.overlap import (
    LAUNCH,
    OVERLAP,
    gdc_launch_dependents,
    gdc_wait,
)


@dataclass(frozen=True)
class ConvTile:
    """How a convolution is cut into programs.

    Attributes:
        block_m: output rows of a program.
        block_n: output channels of a program.
        block_k: input channels of a product; with `together`, those of all taps of a column.
        steps: what is loaded at once: the rows of a `tap`; of all taps of a `column`, for products
            of their own; of all taps `together`, for one product.
        num_warps: warps of a program.
        num_stages: steps that are loaded ahead.
        splits: programs that share the columns of one tile; the last to end sums their parts.
        bulk: whether the chip's copy engine fetches the weights (Hopper's tensor memory
            accelerator), not the threads of the program; for steps of a `tap`.
    """

    block_m: int
    block_n: int
    block_k: int
    steps: Literal["tap", "column", "together"]
    num_warps: int
    num_stages: int
    splits: int = 1
    bulk: bool = False


@dataclass(frozen=True)
class Fusion:
    """What a convolution does after its sum. Formats are those of `epilogue.format_name`.

    Attributes:
        relu: whether its own ReLU is fused.
        own: format of its own result.
        residual: format of the other operand of a sum that follows, None without a sum.
        add_relu: whether the sum has a ReLU.
        result: format of the sum.
    """

    relu: bool = False
    own: str = "fp16"
    residual: str | None = None
    add_relu: bool = False
    result: str = "fp16"


@dataclass(frozen=True)
class SharedSums:
    """Memory in which the programs of a split tile meet; one serves all convolutions in turn.

    Attributes:
        parts: `[elements]` float32, at least splits * capacity * c_out of any convolution; int32
            sums use the same bytes.
        arrivals: `[tiles]` int32 zeros; every use leaves zeros.
    """

    parts: Tensor
    arrivals: Tensor

    @staticmethod
    def elements(tile: ConvTile, capacity: int, c_out: int) -> tuple[int, int]:
        """Sizes of `parts` and `arrivals` that a convolution needs."""
        if tile.splits == 1:
            return 0, 0
        tiles = triton.cdiv(capacity, tile.block_m) * triton.cdiv(c_out, tile.block_n)
        return tile.splits * capacity * c_out, tiles


def pack_weight(weight: Tensor, c_pad: int) -> Tensor:
    """Weight in the order of the kernel.

    Args:
        weight: `[c_out, kz, ky, kx, c_in]`.
        c_pad: input channels after padding, at least c_in.

    Returns:
        `[ky * kx, c_out, kz * c_pad]`, contiguous.
    """
    c_out, kz, ky, kx, c_in = weight.shape
    packed = weight.new_zeros((ky, kx, c_out, kz, c_pad))
    packed[..., :c_in] = weight.permute(2, 3, 0, 1, 4)
    return packed.view(ky * kx, c_out, kz * c_pad)


@triton.jit
def conv_kernel(
    x_ptr,
    w_ptr,
    w_blocks,
    map_ptr,
    count_ptr,
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
    start = tl.program_id(0) * BLOCK_M
    channels = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    in_channels = channels < C_OUT
    # What the end needs of the weights is asked for now: there it would be waited for.
    if FORMAT != "fp16":
        multiplier = tl.load(multiplier_ptr + channels, mask=in_channels, other=0.0)
    if HAS_BIAS:
        bias = tl.load(bias_ptr + channels, mask=in_channels, other=0.0).to(tl.float32)
    scale = load_scale(scale_ptr, OWN)
    if RESIDUAL is not None:
        scale_a = load_scale(scale_a_ptr, OWN)
        scale_b = load_scale(scale_b_ptr, RESIDUAL)
        add_scale = load_scale(add_scale_ptr, RESULT)
    if OVERLAP and not EARLY:
        gdc_wait()
    count = tl.load(count_ptr)
    if start >= count:
        # The first program goes on even with no rows: one has to wait for the predecessor, or this
        # launch would be complete before it.
        if start > 0:
            return
    rows = start + tl.arange(0, BLOCK_M)
    there = rows < count
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
        for step in range(begin * KZ * PARTS, end * KZ * PARTS):
            column = step // (KZ * PARTS)
            tap = step // PARTS % KZ
            channel = step % PARTS * BLOCK_K + k
            row, seen = _row_of_tap(entry, tap, KZ, INVERSE)
            ahead = there & (step + 1 < end * KZ * PARTS)
            next_column = (step + 1) // (KZ * PARTS)
            entry = tl.load(map_ptr + next_column * capacity + rows, mask=ahead, other=0)
            a_there = seen[:, None] & (channel < C_IN)[None, :]
            a = tl.load(x_ptr + row[:, None] * STRIDE_X + channel[None, :], mask=a_there, other=0)
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
    result = finish(y, scale, RELU, OWN)
    places = rows.to(tl.int64)[:, None] * C_OUT + channels[None, :]
    held = there[:, None] & in_channels[None, :]
    if RESIDUAL is not None:
        own = operand_value(result, scale_a, OWN)
        stored = tl.load(residual_ptr + places, mask=held, other=0)
        total = own + operand_value(stored, scale_b, RESIDUAL)
        result = finish(total, add_scale, ADD_RELU, RESULT)
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


def launch_conv(
    tile: ConvTile,
    fusion: Fusion,
    *,
    x: Tensor,
    packed: Tensor,
    entries: Tensor,
    count: Tensor,
    out: Tensor,
    kz: int,
    c_in: int,
    inverse: bool = False,
    multiplier: Tensor | None = None,
    bias: Tensor | None = None,
    scales: tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None] = (None,) * 4,
    residual: Tensor | None = None,
    shared_sums: SharedSums | None = None,
    early: bool = False,
    overlap: bool = True,
) -> None:
    """Convolve the rows of a frame.

    Args:
        tile: how the work is cut.
        fusion: what follows the sum.
        x: `[capacity_in, stride]` int8, float8_e4m3fn or float16 features.
        packed: weight, from `pack_weight`: int8 for int8 features, else float16 (fp8 codes too).
        entries: `[columns, capacity]` int32 kernel map.
        count: `[1]` int32 number of output sites, on the device.
        out: `[capacity, c_out]` of the format that `fusion` says.
        kz: taps along z.
        c_in: input channels.
        inverse: kind of the map.
        multiplier: `[c_out]` float32 of a convolution of codes.
        bias: `[c_out]` float32 or float16.
        scales: steps of the convolution's own codes, of both operands of the sum, of its codes.
        residual: `[capacity, c_out]` other operand of the sum.
        shared_sums: where the programs of a split tile meet; needed for more than one split.
        early: whether the map was complete before the launch before this one began.
        overlap: whether the launch may begin while its predecessor ends.
    """
    columns, c_out, width = packed.shape
    accumulated = torch.int32 if x.dtype == torch.int8 else torch.float32
    capacity = entries.shape[1]
    grid = (triton.cdiv(capacity, tile.block_m), triton.cdiv(c_out, tile.block_n), tile.splits)
    blocks = None
    if tile.bulk:
        blocks = TensorDescriptor.from_tensor(
            packed.view(columns * c_out, width), [tile.block_n, tile.block_k]
        )
    conv_kernel[grid](
        stored_bits(x),
        None if tile.bulk else packed,
        blocks,
        entries,
        count,
        stored_bits(out),
        multiplier,
        bias,
        scales[0],
        None if residual is None else stored_bits(residual),
        scales[1],
        scales[2],
        scales[3],
        None if shared_sums is None else shared_sums.parts.view(accumulated),
        None if shared_sums is None else shared_sums.arrivals,
        capacity,
        C_IN=c_in,
        STRIDE_X=x.shape[1],
        C_PAD=width // kz,
        C_OUT=c_out,
        COLUMNS=columns,
        KZ=kz,
        INVERSE=inverse,
        FORMAT=format_name(x.dtype),
        HAS_BIAS=bias is not None,
        RELU=fusion.relu,
        OWN=fusion.own,
        RESIDUAL=fusion.residual,
        ADD_RELU=fusion.add_relu,
        RESULT=fusion.result,
        STEPS=tile.steps,
        BULK=tile.bulk,
        SPLITS=tile.splits,
        OVERLAP=OVERLAP,
        EARLY=early,
        BLOCK_M=tile.block_m,
        BLOCK_N=tile.block_n,
        BLOCK_K=tile.block_k,
        num_warps=tile.num_warps,
        num_stages=tile.num_stages,
        enable_fp_fusion=False,
        **(LAUNCH if overlap else {}),
    )
