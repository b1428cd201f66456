"""Operations on features alone that no convolution carries: conversions, sums, ReLUs."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from voxelquant.sparse.backends.triton.epilogue import (
    code_value,
    finish,
    format_name,
    load_divisor,
    load_scale,
    operand_value,
    quantize_fp8,
    quantize_int8,
    stored_bits,
)
from voxelquant.sparse.backends.triton.overlap import (
    LAUNCH,
    OVERLAP,
    gdc_launch_dependents,
    gdc_wait,
)

_BLOCK = 1024


def convert_rows(
    x: Tensor,
    count: Tensor,
    out: Tensor,
    *,
    scales: Tensor | None = None,
    codes: str = "int8",
    relu: bool = False,
) -> None:
    """Take features through steps: `requantize_in_turn` of the numerics room.

    Args:
        x: `[capacity, c]` float16 values, or codes of the first step.
        count: `[1]` int32 rows that exist.
        out: `[capacity, c]` codes of the last step, or their float16 values.
        scales: `[steps, 3]` float32, of `with_reciprocal`; None to keep values as they are.
        codes: format of the codes between, `int8` or `fp8`.
        relu: whether negative values become zero first.
    """
    _convert_rows[(triton.cdiv(x.numel(), _BLOCK),)](
        stored_bits(x),
        count,
        stored_bits(out),
        scales,
        x.shape[1],
        STEPS=0 if scales is None else len(scales),
        CODES=codes,
        SOURCE=format_name(x.dtype),
        RESULT=format_name(out.dtype),
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
    CODES: tl.constexpr,
    SOURCE: tl.constexpr,
    RESULT: tl.constexpr,
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
    stored = tl.load(x_ptr + places, mask=there, other=0)
    value = code_value(stored, SOURCE)
    if RELU:
        value = tl.maximum(value, 0.0)
    for step in tl.static_range(STEPS):
        by = load_divisor(scales_ptr + 3 * step, CODES)
        # Codes that come with the first step are codes already.
        if step > 0 or SOURCE == "fp16":
            if CODES == "fp8":
                stored = quantize_fp8(value, by)
            else:
                stored = quantize_int8(value, by)
        value = code_value(stored, CODES) * by[0]
    if RESULT == "fp16":
        tl.store(out_ptr + places, value.to(tl.float16), mask=there)
    else:
        tl.store(out_ptr + places, stored, mask=there)


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
        a: `[capacity, c]` codes or float16 values.
        b: the other operand.
        count: `[1]` int32 rows that exist.
        out: `[capacity, c]` codes or float16 values.
        relu: whether a ReLU follows.
        scales: steps of both operands and of the result, of `with_reciprocal`; None for values.
    """
    _add_rows[(triton.cdiv(a.numel(), _BLOCK),)](
        stored_bits(a),
        stored_bits(b),
        count,
        stored_bits(out),
        *scales,
        a.shape[1],
        A=format_name(a.dtype),
        B=format_name(b.dtype),
        RESULT=format_name(out.dtype),
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
    A: tl.constexpr,
    B: tl.constexpr,
    RESULT: tl.constexpr,
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
    scale_a, scale_b = load_scale(scale_a_ptr, A), load_scale(scale_b_ptr, B)
    a = operand_value(tl.load(a_ptr + places, mask=there, other=0), scale_a, A)
    b = operand_value(tl.load(b_ptr + places, mask=there, other=0), scale_b, B)
    total = finish(a + b, load_divisor(scale_ptr, RESULT), RELU, RESULT)
    tl.store(out_ptr + places, total, mask=there)
