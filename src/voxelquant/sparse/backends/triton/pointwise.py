"""Operations on features alone that no convolution carries: conversions, sums, ReLUs."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from voxelquant.sparse.backends.triton.epilogue import finish, operand_value, quantize_int8
from voxelquant.sparse.backends.triton.overlap import (
    LAUNCH,
    OVERLAP,
    gdc_launch_dependents,
    gdc_wait,
)

_BLOCK = 1024


def convert_rows(
    x: Tensor, count: Tensor, out: Tensor, *, scales: Tensor | None = None, relu: bool = False
) -> None:
    """Take features through steps: `requantize_in_turn` of the numerics room.

    Args:
        x: `[capacity, c]` float16 values, or int8 codes of the first step.
        count: `[1]` int32 rows that exist.
        out: `[capacity, c]` int8 codes of the last step, or their float16 values.
        scales: `[steps]` float32; None to keep values as they are.
        relu: whether negative values become zero first.
    """
    _convert_rows[(triton.cdiv(x.numel(), _BLOCK),)](
        x,
        count,
        out,
        scales,
        x.shape[1],
        STEPS=0 if scales is None else len(scales),
        FROM_CODES=not x.dtype.is_floating_point,
        TO_CODES=not out.dtype.is_floating_point,
        RELU=relu,
        BLOCK=_BLOCK,
        enable_fp_fusion=False,
        **LAUNCH,
    )


@triton.jit
def _convert_rows(
    x_ptr,
    count_ptr,
    out_ptr,
    scales_ptr,
    channels,
    STEPS: tl.constexpr,
    FROM_CODES: tl.constexpr,
    TO_CODES: tl.constexpr,
    RELU: tl.constexpr,
    BLOCK: tl.constexpr,
):
    if OVERLAP:
        gdc_wait()
        gdc_launch_dependents()
    size = tl.load(count_ptr).to(tl.int64) * channels
    start = tl.program_id(0).to(tl.int64) * BLOCK
    if start >= size:
        return
    places = start + tl.arange(0, BLOCK)
    there = places < size
    x = tl.load(x_ptr + places, mask=there, other=0)
    value = x.to(tl.float32)
    if RELU:
        value = tl.maximum(value, 0.0)
    for step in tl.static_range(STEPS):
        scale = tl.load(scales_ptr + step)
        # Codes that come with the first step are codes already.
        if FROM_CODES and step == 0:
            codes = x.to(tl.int8)
        else:
            codes = quantize_int8(value, scale)
        value = codes.to(tl.float32) * scale
    if TO_CODES:
        tl.store(out_ptr + places, codes, mask=there)
    else:
        tl.store(out_ptr + places, value.to(tl.float16), mask=there)


def add_rows(
    a: Tensor,
    b: Tensor,
    count: Tensor,
    out: Tensor,
    *,
    relu: bool,
    scales: tuple[Tensor | None, Tensor | None, Tensor | None],
) -> None:
    """Sum of two tensors on the same sites.

    Args:
        a: `[capacity, c]` int8 codes or float16 values.
        b: the other operand.
        count: `[1]` int32 rows that exist.
        out: `[capacity, c]` int8 codes or float16 values.
        relu: whether a ReLU follows.
        scales: steps of both operands and of the result; None where it holds values.
    """
    _add_rows[(triton.cdiv(a.numel(), _BLOCK),)](
        a,
        b,
        count,
        out,
        *scales,
        a.shape[1],
        A_CODES=not a.dtype.is_floating_point,
        B_CODES=not b.dtype.is_floating_point,
        TO_CODES=not out.dtype.is_floating_point,
        RELU=relu,
        BLOCK=_BLOCK,
        enable_fp_fusion=False,
        **LAUNCH,
    )


@triton.jit
def _add_rows(
    a_ptr,
    b_ptr,
    count_ptr,
    out_ptr,
    scale_a_ptr,
    scale_b_ptr,
    scale_ptr,
    channels,
    A_CODES: tl.constexpr,
    B_CODES: tl.constexpr,
    TO_CODES: tl.constexpr,
    RELU: tl.constexpr,
    BLOCK: tl.constexpr,
):
    if OVERLAP:
        gdc_wait()
        gdc_launch_dependents()
    size = tl.load(count_ptr).to(tl.int64) * channels
    start = tl.program_id(0).to(tl.int64) * BLOCK
    if start >= size:
        return
    places = start + tl.arange(0, BLOCK)
    there = places < size
    a = operand_value(tl.load(a_ptr + places, mask=there, other=0), scale_a_ptr, A_CODES)
    b = operand_value(tl.load(b_ptr + places, mask=there, other=0), scale_b_ptr, B_CODES)
    tl.store(out_ptr + places, finish(a + b, scale_ptr, RELU, TO_CODES), mask=there)
