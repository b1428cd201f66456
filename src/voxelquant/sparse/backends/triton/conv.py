"""Sparse convolution over the table of a kernel map, with autograd: float32, half and int8.

Error of a float32 result: operands are split into two tf32 halves of 11 bits each, so that a
product errs by at most `3 * 2**-22` of itself (the rest of either operand, and the product of both
lower halves); a tensor core may truncate where it adds, `2**-23` of the partial sum for each term,
and every step of the loop rounds one sum more. Over `K = k * c_in` terms that is at most
`(3 * K + 12) * 2**-24 * Σ |x| |w|`. Products of half-precision operands are exact; what is left is
the sum, `3 * K * 2**-24 * Σ |x| |w|`, and one rounding to the dtype of the result, after the bias.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
from torch import Tensor
from torch.autograd.function import once_differentiable

from voxelquant.sparse.backends.triton.conv_kernels import conv_kernel, weight_grad_kernel
from voxelquant.sparse.backends.triton.conv_tiles import GemmShape, Tile, tile_of
from voxelquant.sparse.backends.triton.launch import Launcher
from voxelquant.sparse.kernel_map import KernelMap

DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.int8)
# Whether the kernels run in Triton's interpreter; decided when they were imported.
INTERPRETED = not isinstance(conv_kernel, triton.JITFunction)
_PRECISION = "tf32x3"
_launch_conv = Launcher(conv_kernel)
_launch_weight_grad = Launcher(weight_grad_kernel)
# Programs that the gradient of a weight is shared out to: four for each of 132 multiprocessors. A
# constant, so that the order of its sum is the same on every device.
_GRAD_PROGRAMS = 4 * 132


def supports(dtype: torch.dtype | None, device: torch.device) -> tuple[bool, str]:
    """Whether these kernels run, and if not, what is needed; maps have no dtype."""
    if dtype is not None and dtype not in DTYPES:
        return False, f"no kernel for {dtype}, need {', '.join(str(d) for d in DTYPES)}"
    if INTERPRETED:
        return True, "runs in Triton's interpreter"
    if device.type != "cuda":
        return False, "need a CUDA device, or TRITON_INTERPRET=1 before Triton is imported"
    if torch.cuda.get_device_capability(device) < (8, 0):
        return False, f"need compute capability 8.0, {torch.cuda.get_device_name(device)} is older"
    return True, "CUDA device"


def sparse_conv(
    features: Tensor,
    weight: Tensor,
    kernel_map: KernelMap,
    bias: Tensor | None = None,
    *,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Convolution accumulated in float32 and rounded once, bias included.

    Gradients have the dtypes of their operands; that of a weight is rounded from float32 to it at
    once, whatever was computed in.

    Args:
        features: `[n, c_in]` float32, float16 or bfloat16.
        weight: `[c_out, ..., c_in]` of the same dtype, k taps in all.
        kernel_map: pairs of the convolution.
        bias: `[c_out]` float, of any dtype, or None.
        dtype: what features and weight are rounded to first, if anything.

    Returns:
        `[m, c_out]` of the dtype that was computed in.
    """
    if INTERPRETED and (dtype or features.dtype) == torch.bfloat16:
        # The interpreter multiplies the bits of bfloat16 as integers, and truncates on conversion.
        features, weight = features.bfloat16().float(), weight.bfloat16().float()
        return sparse_conv(features, weight, kernel_map, bias).bfloat16()
    out: Tensor = _SparseConv.apply(features, weight, bias, kernel_map, dtype)
    return out


def sparse_conv_int8(codes: Tensor, weight_q: Tensor, kernel_map: KernelMap) -> Tensor:
    """Integer convolution, exact while accumulators fit int32.

    Args:
        codes: `[n, c_in]` int8.
        weight_q: `[c_out, k, c_in]` int8.
        kernel_map: pairs of the convolution.

    Returns:
        `[m, c_out]` int32.
    """
    return _convolve(codes, weight_q, kernel_map, out_dtype=torch.int32)


class _SparseConv(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        features: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        kernel_map: KernelMap,
        dtype: torch.dtype | None,
    ) -> Tensor:
        ctx.kernel_map = kernel_map
        ctx.dtypes = (features.dtype, weight.dtype, None if bias is None else bias.dtype)
        if dtype is not None:
            features, weight = features.to(dtype), weight.to(dtype)
        ctx.save_for_backward(features, weight)
        return _convolve(features, weight, kernel_map, bias=bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        features, weight = ctx.saved_tensors
        grad_out = grad_outputs[0].contiguous()
        kernel_map: KernelMap = ctx.kernel_map
        of_features, of_weight, of_bias = ctx.dtypes
        grad_features = grad_weight = grad_bias = None
        if ctx.needs_input_grad[0]:
            grad_features = _convolve(grad_out, weight, kernel_map, turned=True).to(of_features)
        if ctx.needs_input_grad[1]:
            grad_weight = _weight_grad(features, grad_out, kernel_map)
            grad_weight = grad_weight.view(weight.shape).to(of_weight)
        if ctx.needs_input_grad[2]:
            grad_bias = grad_out.sum(0, dtype=of_bias)
        return grad_features, grad_weight, grad_bias, None, None


def _convolve(
    features: Tensor,
    weight: Tensor,
    kernel_map: KernelMap,
    *,
    bias: Tensor | None = None,
    turned: bool = False,
    out_dtype: torch.dtype | None = None,
    tile: Tile | None = None,
) -> Tensor:
    """`[m, c_out]` of features `[n, c_in]` and weight `[c_out, ..., c_in]`.

    `turned` goes back: `[n, c_in]` of `[m, c_out]`, with the same weight.
    """
    features, weight = features.contiguous(), weight.contiguous()
    c_out, taps, c_in = weight.shape[0], kernel_map.taps, weight.shape[-1]
    # A mirrored map with its taps reversed is the transposed one: no second table.
    mirrored = turned and kernel_map.mirrored
    if turned:
        c_out, c_in = c_in, c_out
        kernel_map = kernel_map if mirrored else kernel_map.transposed()
        if features.dtype == torch.float32:
            # Tensor cores take tf32 in one order only: turned here once, not by every program.
            weight = weight.view(c_in, taps, c_out).permute(2, 1, 0).contiguous()
            turned = False
    n_in, n_out = kernel_map.n_in, kernel_map.n_out
    out = features.new_empty((n_out, c_out), dtype=out_dtype)
    if tile is None:
        tile = tile_of(GemmShape("conv", features.dtype, c_in, c_out, taps))
    programs = -(-n_out // tile.rows) * -(-c_out // tile.columns)
    bias_or_any = weight if bias is None else bias
    _launch_conv(
        (programs, 1, 1),
        (features, weight, bias_or_any, kernel_map.table, out),
        (n_in, n_out),
        (taps, c_in, c_out, turned, mirrored, bias is not None, _PRECISION, *_blocks(tile)),
        warps=tile.warps,
        stages=tile.stages,
    )
    return out


def _weight_grad(
    features: Tensor, grad_out: Tensor, kernel_map: KernelMap, *, tile: Tile | None = None
) -> Tensor:
    """`[c_out, k, c_in]` float32."""
    features = features.contiguous()
    c_in, c_out, taps = features.shape[1], grad_out.shape[1], kernel_map.taps
    n_out = kernel_map.n_out
    if tile is None:
        tile = tile_of(GemmShape("weight_grad", features.dtype, c_in, c_out, taps))
    tap_groups = -(-taps // tile.taps)
    blocks = -(-c_in // tile.channels) * -(-c_out // tile.columns)
    rows_per_part = _rows_per_part(n_out, tap_groups * blocks, tile.rows)
    n_parts = -(-n_out // rows_per_part)
    if n_parts == 0:
        return features.new_zeros((c_out, taps, c_in), dtype=torch.float32)
    parts = features.new_empty((n_parts, c_out, taps, c_in), dtype=torch.float32)
    _launch_weight_grad(
        (tap_groups, n_parts, blocks),
        (features, grad_out, kernel_map.table, parts),
        (kernel_map.n_in, n_out, rows_per_part),
        (taps, c_in, c_out, _PRECISION, *_blocks(tile)),
        warps=tile.warps,
        stages=tile.stages,
    )
    return parts[0] if n_parts == 1 else parts.sum(0)


def _blocks(tile: Tile) -> tuple[int, int, int, int]:
    """Block sizes in the order of both kernels."""
    return (tile.rows, tile.columns, tile.channels, tile.taps)


def _rows_per_part(n_out: int, programs_per_part: int, step: int) -> int:
    """Rows that one program sums, a multiple of `step` and at least four steps.

    >>> _rows_per_part(100_000, 4, 64)
    768
    """
    parts = max(_GRAD_PROGRAMS // programs_per_part, 1)
    steps = -(-n_out // (parts * step))
    return max(steps, 4) * step
