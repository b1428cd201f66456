"""The law of numbers inside of kernels: what `voxelquant.numerics` says, operation by operation.

Every operation rounds to float32 by itself. Kernels that use these functions are launched with
`enable_fp_fusion=False`, and divide by `div_rn`; a test reads their PTX.
"""

import triton
import triton.language as tl

_ROUNDER: tl.constexpr = tl.constexpr(12582912.0)  # 1.5 * 2**23: adding it leaves no fraction


@triton.jit
def quantize_int8(x, scale):
    """`clamp(rn(x / scale), -128, 127)`, half to even, as int8; `numerics.quantize`."""
    # Clamped first: the rounder is exact below 2**22 only, and the bounds are integers.
    ratio = tl.div_rn(x, scale)
    ratio = tl.minimum(tl.maximum(ratio, -128.0), 127.0)
    return ((ratio + _ROUNDER) - _ROUNDER).to(tl.int8)


@triton.jit
def finish(y, scale_ptr, RELU: tl.constexpr, QUANTIZED: tl.constexpr):
    """Activation, then codes or fp16 values."""
    if RELU:
        y = tl.maximum(y, 0.0)
    if QUANTIZED:
        codes = quantize_int8(y, tl.load(scale_ptr))
        return codes
    else:
        return y.to(tl.float16)


@triton.jit
def operand_value(stored, scale_ptr, QUANTIZED: tl.constexpr):
    """Real value of a stored operand of a sum: `fp32(q * s)`, or the fp16 value."""
    value = stored.to(tl.float32)
    if QUANTIZED:
        value = value * tl.load(scale_ptr)
    return value
