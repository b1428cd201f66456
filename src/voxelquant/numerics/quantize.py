"""The law of numbers: quantize, dequantize, the epilogue of 8-bit layers, fake quantization.

Every operation rounds to float32 by itself, half to even. No fused multiply-add and no reciprocal
in place of a division may stand anywhere in these formulas: each such change moves codes.
Whoever executes integers (reference, kernels, the runner of exported files) cites this module.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from voxelquant.numerics.formats import INT8, Float8Format, NumberFormat, scale_from_amax


def quantize(x: Tensor, scale: Tensor, fmt: NumberFormat = INT8) -> Tensor:
    """Codes of real values, half to even.

    Integers: `clamp(rn(x ÷ scale), qmin, qmax)`. fp8: `e4m3_rn(clamp(x ÷ scale, -448, 448))`; the
    clamp comes first, since what lies beyond the largest finite code would be rounded to NaN.
    A finite value never becomes NaN; the code -0 is a zero, equal to +0.

    Args:
        x: real values, any float dtype (computed in float32).
        scale: float32 step, broadcastable to `x`.
        fmt: number format.

    Returns:
        Tensor of the shape of `x`, of the dtype of the format's codes.

    >>> quantize(torch.tensor([0.5, 1.5, -500.0]), torch.tensor(1.0)).tolist()
    [0, 2, -128]
    >>> from voxelquant.numerics import FP8_E4M3
    >>> quantize(torch.tensor([17.0, 19.0, -500.0]), torch.tensor(1.0), FP8_E4M3).tolist()
    [16.0, 20.0, -448.0]
    """
    return _codes_in_float32(x, scale, fmt).to(fmt.dtype)


def dequantize(codes: Tensor, scale: Tensor) -> Tensor:
    """Real values of integer or fp8 codes: `fp32(scale * code)`.

    >>> dequantize(torch.tensor([2], dtype=torch.int8), torch.tensor(0.5)).tolist()
    [1.0]
    """
    return codes.to(torch.float32) * scale


def requantize_in_turn(codes: Tensor, scales: Sequence[Tensor], fmt: NumberFormat = INT8) -> Tensor:
    """Codes of the first step as codes of the last, through the real values of each in turn.

    Args:
        codes: of the format, `real ≈ scales[0] * code`.
        scales: float32 steps, at least one; with one step the codes stay as they are.
        fmt: format of the codes.

    >>> steps = [torch.tensor(0.5), torch.tensor(1.0)]
    >>> requantize_in_turn(torch.tensor([3], dtype=torch.int8), steps).tolist()
    [2]
    """
    for scale, next_scale in pairwise(scales):
        codes = quantize(dequantize(codes, scale), next_scale, fmt)
    return codes


def epilogue_multiplier(scale_in: Tensor, scale_weight: Tensor) -> Tensor:
    """Per-channel factor of the epilogue of 8-bit layers, `m[o] = fp32(s_in * s_w[o])`."""
    return scale_in.to(torch.float32) * scale_weight.to(torch.float32)


def dequantize_accumulator(acc: Tensor, multiplier: Tensor, bias: Tensor) -> Tensor:
    """Real outputs of an integer or fp8 convolution: `fp32(fp32(fp32(acc) * m[o]) + b[o])`.

    Args:
        acc: `[m, c_out]` accumulators: int32, or float32 where codes are fp8.
        multiplier: `[c_out]` float32 from `epilogue_multiplier`.
        bias: `[c_out]` float32.

    Returns:
        `[m, c_out]` float32, before activation and requantization.
    """
    # Two statements: each rounds to float32 by itself (torch.addcmul would fuse them on a GPU).
    scaled = acc.to(torch.float32) * multiplier
    return scaled + bias


def add_dequantized(q_a: Tensor, scale_a: Tensor, q_b: Tensor, scale_b: Tensor) -> Tensor:
    """Residual sum of two code tensors: `fp32(fp32(q_a * s_a) + fp32(q_b * s_b))`."""
    return dequantize(q_a, scale_a) + dequantize(q_b, scale_b)


def round_to_float16(x: Tensor) -> Tensor:
    """Value of `x` after one rounding to float16, kept in float32; straight-through gradient.

    >>> round_to_float16(torch.tensor((1 + 2.0**-12) ** 2, dtype=torch.float64)).item()
    1.0009765625
    """
    return _RoundToFloat16.apply(x)


def fake_quantize(x: Tensor, amax: Tensor, fmt: NumberFormat = INT8) -> Tensor:
    """Quantize and dequantize with a clipped straight-through gradient.

    The gradient passes where `|x| <= amax` and is zero outside (Bengio 2013, 1308.3432, with the
    clipping of Jacob 2018, 1712.05877, section 3); the range itself gets no gradient here.

    Args:
        x: real values.
        amax: range, broadcastable to `x`, > 0.
        fmt: number format.

    Returns:
        float32 tensor of the shape of `x`, every element `scale * code`.
    """
    return _FakeQuantize.apply(x, amax, fmt)


def fake_quantize_learned(
    x: Tensor, amax: Tensor, grad_scale: float, fmt: NumberFormat = INT8
) -> Tensor:
    """`fake_quantize` whose range has a gradient too: learned step sizes (Esser 2020, 1902.08153).

    With the rounding straight through, `∂x̂/∂step` is `code - x / step` where `|x| <= amax` and
    the code of the range's end outside; the step is `amax / 127`.

    Args:
        x: real values.
        amax: range, broadcastable to `x`, > 0.
        grad_scale: factor on the gradient of the range; the paper's is `1 / sqrt(n * 127)` with n
            the number of elements that share the range.
        fmt: number format.

    Returns:
        float32 tensor of the shape of `x`, bit for bit that of `fake_quantize`.

    >>> x, amax = torch.tensor([0.3, 9.0]), torch.tensor(127.0, requires_grad=True)
    >>> fake_quantize_learned(x, amax, 127.0).sum().backward()  # (0 - 0.3) + 9 - 9
    >>> round(amax.grad.item(), 4)
    -0.3
    """
    return _FakeQuantizeLearned.apply(x, amax, grad_scale, fmt)


def _codes_in_float32(x: Tensor, scale: Tensor, fmt: NumberFormat) -> Tensor:
    """The codes as float32, which holds every one of them exactly."""
    ratio = x.to(torch.float32) / scale
    if isinstance(fmt, Float8Format):
        limit = fmt.code_of_amax
        return ratio.clamp_(-limit, limit).to(fmt.dtype).to(torch.float32)
    return torch.round(ratio).clamp_(fmt.qmin, fmt.qmax)


def _scaled_codes(x: Tensor, scale: Tensor, fmt: NumberFormat) -> Tensor:
    # The same operations as quantize and dequantize; staying in float32 spares two passes.
    return _codes_in_float32(x, scale, fmt).mul_(scale)


class _FakeQuantize(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, amax: Tensor, fmt: NumberFormat) -> Tensor:
        ctx.save_for_backward(x.abs() <= amax)
        return _scaled_codes(x, scale_from_amax(amax, fmt), fmt)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None, None]:
        (inside,) = ctx.saved_tensors
        return grad_outputs[0] * inside, None, None


class _FakeQuantizeLearned(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, amax: Tensor, grad_scale: float, fmt: NumberFormat) -> Tensor:
        scale = scale_from_amax(amax, fmt)
        out = _scaled_codes(x, scale, fmt)
        inside = x.abs() <= amax
        # ∂x̂/∂step * step; x̂ is homogeneous in x and step, so this is what x leaves over.
        ctx.save_for_backward(inside, out - x.to(torch.float32) * inside, amax)
        ctx.grad_scale = grad_scale
        return out

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, Tensor, None, None]:
        inside, residue, amax = ctx.saved_tensors
        of_range = (grad_outputs[0] * residue).sum_to_size(amax.shape) / amax
        return grad_outputs[0] * inside, of_range * ctx.grad_scale, None, None


class _RoundToFloat16(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        if x.dtype == torch.float64:
            # torch goes by way of float32, which puts 6 in 100,000 values on the wrong side of a
            # tie; numpy rounds once.
            with np.errstate(over="ignore"):
                half = x.detach().cpu().numpy().astype(np.float16)
            return torch.from_numpy(half.astype(np.float32)).to(x.device)
        return x.to(torch.float16).to(torch.float32)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Tensor:
        return grad_outputs[0]
