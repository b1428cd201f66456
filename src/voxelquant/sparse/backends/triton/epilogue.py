"""The law of numbers inside of kernels: what `voxelquant.numerics` says, operation by operation.

Every operation rounds to float32 by itself: kernels that use these functions are launched with
`enable_fp_fusion=False`. Codes are those of IEEE division, though no division instruction makes
their quotients (`divide_for_code`). A test reads the PTX: it may hold no approximate division, and
no fused operation but those of the quotients.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

LEAST_STEP, LARGEST_STEP = 2.0**-90, 2.0**60  # of codes: `divide_for_code`

_INTERPRETED: tl.constexpr = tl.constexpr(triton.knobs.runtime.interpret)
_ROUNDER: tl.constexpr = tl.constexpr(12582912.0)  # 1.5 * 2**23: adding it leaves no fraction


def with_reciprocal(step: Tensor) -> Tensor:
    """A step of codes as kernels read it, to multiply and to divide by.

    Args:
        step: float32, from LEAST_STEP to LARGEST_STEP.

    Returns:
        `[..., 3]` float32, where the step is: the step, and its reciprocal in two parts, 48 bits in
        all. Made here, since programs of a few microseconds would wait for two divisions.
    """
    exact = step.cpu().double()
    high = (1.0 / exact).float()
    low = ((1.0 - high.double() * exact) / exact).float()  # the product of 24 bits each is exact
    return torch.stack((exact.float(), high, low), dim=-1).to(step.device)


@triton.jit
def divide_for_code(x, by):
    """A quotient that rounds to the code to which `x ÷ step`, rounded as IEEE 754 wants it, rounds.

    `by` is what `load_divisor` gives, of a step from LEAST_STEP to LARGEST_STEP; |x ÷ step| <= 449.
    The hardware's own division branches into a routine for zeros and subnormals, and zeros are what
    a ReLU leaves; a corrected quotient takes five operations. This one takes two, and is the
    rounded quotient but in the rarest cases (Brisebarre, Muller and Raina 2004, IEEE Trans.
    Computers 53, algorithm 1):

        q = x * high + (x * low)        the sum fused, so rounded once

    Its code is always right. What is rounded last differs from x / step by at most 2**-47 of it, so
    q is the law's quotient or a float beside it. Rounding to codes is monotone, and ties between
    codes are floats: a code could differ only if one of the two quotients were a tie and the other
    its neighbour. Then x / step would lie within 2**-47 of the middle m between the two. A tie has
    at most eight significant bits; scaled to 25 bits, m = M * 2**a with M = K * 2**p ± 1 < 2**25
    and p >= 17. With the integers X and S of 24 bits for x and step, |X * 2**i - S * M| is at most
    2**-47 * S * M < 4, for an i >= 23. So S lies within four of a multiple of 2**17. It is not one
    itself: the difference would be divisible by 2**17, hence zero, and no quotient is such a
    middle. That leaves 512 significands of a step; for each a test tries all x that come so near to
    a middle. The bounds of the step keep `x * low` clear of under- and overflow.
    """
    step, high, low = by
    if _INTERPRETED:  # whose fused operations round twice
        return tl.div_rn(x, step)
    else:
        return tl.fma(x, high, x * low)


@triton.jit
def _ratio_in_range(x, by, LEAST: tl.constexpr, MOST: tl.constexpr, RELU: tl.constexpr):
    """Activation and quotient, clamped to the range of codes.

    What is clamped is the dividend. That is the same, since the value of a code divides to that
    code; but quotients stay in bounds, and one lower bound serves the ReLU too.
    """
    lower = 0.0 if RELU else LEAST * by[0]
    return divide_for_code(tl.minimum(tl.maximum(x, lower), MOST * by[0]), by)


@triton.jit
def _int8_ratio(x, by, RELU: tl.constexpr):
    """The int8 code, half to even, with the rounder added, as float32."""
    return _ratio_in_range(x, by, -128.0, 127.0, RELU) + _ROUNDER


@triton.jit
def quantize_int8(x, by, RELU: tl.constexpr = False):
    """`clamp(rn(x / step), -128, 127)`, half to even, as int8; `numerics.quantize`."""
    # With the rounder added, the low bits of the float are the code's.
    return _int8_ratio(x, by, RELU).to(tl.int32, bitcast=True).to(tl.int8)


@triton.jit
def quantize_fp8(x, by, RELU: tl.constexpr = False):
    """`e4m3(clamp(x / step, -448, 448))`, half to even, as the bits of a code (uint8).

    Of a zero the sign may be lost; both zeros are one code.
    """
    ratio = _ratio_in_range(x, by, -448.0, 448.0, RELU)
    if _INTERPRETED:  # whose cast does not round to even; what is rounded already, it keeps
        exponent = (ratio.to(tl.int32, bitcast=True) & 0x7F800000).to(tl.float32, bitcast=True)
        gap = tl.maximum(exponent, 0.015625) * 0.125
        ratio = ((ratio / gap + _ROUNDER) - _ROUNDER) * gap
    return ratio.to(tl.float8e4nv).to(tl.uint8, bitcast=True)


@triton.jit
def load_scale(step_ptr, FORMAT: tl.constexpr):
    """Step of codes to multiply by; 1 for fp16 values, which have none."""
    if FORMAT == "fp16":
        return 1.0
    else:
        return tl.load(step_ptr)


@triton.jit
def load_divisor(step_ptr, FORMAT: tl.constexpr):
    """Step of codes to divide by and its reciprocal, of `with_reciprocal`; see `load_scale`."""
    if FORMAT == "fp16":
        return 1.0, 1.0, 0.0
    else:
        return tl.load(step_ptr), tl.load(step_ptr + 1), tl.load(step_ptr + 2)


@triton.jit
def finish(y, by, RELU: tl.constexpr, FORMAT: tl.constexpr):
    """Activation, then what is stored: int8 codes, the bits of fp8 codes, or fp16 values."""
    if FORMAT == "int8":
        return quantize_int8(y, by, RELU)
    elif FORMAT == "fp8":
        return quantize_fp8(y, by, RELU)
    else:
        return (tl.maximum(y, 0.0) if RELU else y).to(tl.float16)


@triton.jit
def finish_as_operand(y, by, scale, RELU: tl.constexpr, FORMAT: tl.constexpr):
    """`operand_value` of what `finish` would store."""
    if FORMAT == "int8":  # without a detour through bytes
        return (_int8_ratio(y, by, RELU) - _ROUNDER) * scale
    else:
        return operand_value(finish(y, by, RELU, FORMAT), scale, FORMAT)


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
