"""The law of numbers inside of kernels: what `voxelquant.numerics` says, operation by operation.

Every operation rounds to float32 by itself: kernels that use these functions are launched with
`enable_fp_fusion=False`. The quotient is the one of IEEE division, though no division instruction
makes it (`divide_by_step`). A test reads the PTX: it may hold no approximate division, and no
fused operation but those of the quotient.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

_INTERPRETED: tl.constexpr = tl.constexpr(triton.knobs.runtime.interpret)
_ROUNDER: tl.constexpr = tl.constexpr(12582912.0)  # 1.5 * 2**23: adding it leaves no fraction
# Quotients beyond are codes of the range's end, whatever their last bit.
_SATURATED: tl.constexpr = tl.constexpr(65536.0)


@triton.jit
def divide_by_step(x, step):
    """`x ÷ step`, rounded to nearest as IEEE 754 wants it, for |x ÷ step| < 65536.

    The hardware's own division branches into a routine for zeros and subnormals, and zeros are what
    a ReLU leaves: a third of an integer layer's time went there. Instead, with `r` the correctly
    rounded reciprocal of the step, made once,

        q0 = x * r;  q1 = q0 + (x - q0 * step) * r;  q2 = q1 + (x - q1 * step) * r

    where each residual is one fused operation and so exact: q1 is within one unit in the last place
    and q2 is the rounded quotient (Markstein 1990, IBM J. Res. Dev. 34, theorem 8.3; Muller 2018,
    Handbook of Floating-Point Arithmetic, section 4.7). It holds for steps in 2**-90 ... 2**100;
    quotients so small that a residual underflows round to the code 0 all the same.
    """
    if _INTERPRETED:  # whose fused operations round twice
        return tl.div_rn(x, step)
    else:
        reciprocal = tl.div_rn(1.0, step)
        first = x * reciprocal
        second = tl.fma(tl.fma(-first, step, x), reciprocal, first)
        third = tl.fma(tl.fma(-second, step, x), reciprocal, second)
        return tl.where(tl.abs(first) < _SATURATED, third, first)


@triton.jit
def quantize_int8(x, scale):
    """`clamp(rn(x / scale), -128, 127)`, half to even, as int8; `numerics.quantize`."""
    # Clamped first: the rounder is exact below 2**22 only, and the bounds are integers.
    ratio = tl.minimum(tl.maximum(divide_by_step(x, scale), -128.0), 127.0)
    return ((ratio + _ROUNDER) - _ROUNDER).to(tl.int8)


@triton.jit
def quantize_fp8(x, scale):
    """`e4m3(clamp(x / scale, -448, 448))`, half to even, as the bits of the code (uint8)."""
    ratio = tl.minimum(tl.maximum(divide_by_step(x, scale), -448.0), 448.0)
    if _INTERPRETED:  # whose cast does not round to even; what is rounded already, it keeps
        exponent = (ratio.to(tl.int32, bitcast=True) & 0x7F800000).to(tl.float32, bitcast=True)
        gap = tl.maximum(exponent, 0.015625) * 0.125
        ratio = ((ratio / gap + _ROUNDER) - _ROUNDER) * gap
    return ratio.to(tl.float8e4nv).to(tl.uint8, bitcast=True)


@triton.jit
def load_scale(scale_ptr, FORMAT: tl.constexpr):
    """Step of codes; 1 for fp16 values, which have none."""
    if FORMAT == "fp16":
        return 1.0
    else:
        return tl.load(scale_ptr)


@triton.jit
def finish(y, scale, RELU: tl.constexpr, FORMAT: tl.constexpr):
    """Activation, then what is stored: int8 codes, the bits of fp8 codes, or fp16 values."""
    if RELU:
        y = tl.maximum(y, 0.0)
    if FORMAT == "int8":
        return quantize_int8(y, scale)
    elif FORMAT == "fp8":
        return quantize_fp8(y, scale)
    else:
        return y.to(tl.float16)


@triton.jit
def code_value(stored, FORMAT: tl.constexpr):
    """Stored codes or values as float32."""
    if FORMAT == "fp8":
        return stored.to(tl.float8e4nv, bitcast=True).to(tl.float32)
    else:
        return stored.to(tl.float32)


@triton.jit
def operand_value(stored, scale, FORMAT: tl.constexpr):
    """Real value of a stored operand of a sum: `fp32(q * s)`, or the fp16 value."""
    value = code_value(stored, FORMAT)
    if FORMAT != "fp16":
        value = value * scale
    return value


def format_name(dtype: torch.dtype) -> str:
    """What kernels call a tensor's format: `int8`, `fp8` or `fp16`."""
    return {torch.int8: "int8", torch.float8_e4m3fn: "fp8", torch.float16: "fp16"}[dtype]


def stored_bits(x: Tensor) -> Tensor:
    """A tensor as kernels take it: fp8 codes as bytes, which masked loads can fill with zeros."""
    return x.view(torch.uint8) if x.dtype == torch.float8_e4m3fn else x
