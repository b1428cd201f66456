"""The reference execution in plain torch: every device, every channel count, with autograd.

Gather, one GEMM for each tap, scatter-add, taps in the row-major order of the weight. This is the
truth that every other backend is held against.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from voxelquant.sparse.kernel_map import KernelMap

# Largest c_in for which a float32 GEMM over int8 codes is exact: 128 * 128 * 1024 = 2**24.
_EXACT_CHANNELS = 1024


def sparse_conv(features: Tensor, weight_taps: Tensor, kernel_map: KernelMap) -> Tensor:
    """Convolution without bias.

    Args:
        features: `[n, c_in]` float.
        weight_taps: `[k, c_in, c_out]` float of the same dtype.
        kernel_map: pairs of the convolution.

    Returns:
        `[m, c_out]`.
    """
    out: Tensor = _SparseConv.apply(features, weight_taps, kernel_map)
    return out


class _SparseConv(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, features: Tensor, weight_taps: Tensor, kernel_map: KernelMap) -> Tensor:
        ctx.save_for_backward(features, weight_taps)
        ctx.kernel_map = kernel_map
        return _gather_gemm_scatter(features, weight_taps, kernel_map)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        features, weight_taps = ctx.saved_tensors
        grad_out = grad_outputs[0].contiguous()
        kernel_map: KernelMap = ctx.kernel_map
        grad_features = grad_weight = None
        if ctx.needs_input_grad[0]:
            grad_features = _gather_gemm_scatter(
                grad_out, weight_taps.transpose(1, 2), kernel_map.transposed()
            )
        if ctx.needs_input_grad[1]:
            grad_weight = torch.zeros_like(weight_taps)
            for tap in range(kernel_map.taps):
                in_rows, out_rows = kernel_map.pairs_of_tap(tap)
                grad_weight[tap] = features[in_rows].t() @ grad_out[out_rows]
        return grad_features, grad_weight, None


def _gather_gemm_scatter(features: Tensor, weight_taps: Tensor, kernel_map: KernelMap) -> Tensor:
    out = features.new_zeros((kernel_map.n_out, weight_taps.shape[2]))
    for tap in range(kernel_map.taps):
        in_rows, out_rows = kernel_map.pairs_of_tap(tap)
        if in_rows.numel():
            out.index_add_(0, out_rows, features.index_select(0, in_rows) @ weight_taps[tap])
    return out


def sparse_conv_int8(codes: Tensor, weight_taps_q: Tensor, kernel_map: KernelMap) -> Tensor:
    """Integer convolution: int8 codes in, exact int32 accumulators out.

    Each tap is a float32 GEMM, exact while `128 * 128 * c_in <= 2**24`; wider inputs are split.

    Args:
        codes: `[n, c_in]` int8.
        weight_taps_q: `[k, c_in, c_out]` int8.
        kernel_map: pairs of the convolution.

    Returns:
        `[m, c_out]` int32.
    """
    shape = (kernel_map.n_out, weight_taps_q.shape[2])
    acc = torch.zeros(shape, dtype=torch.int32, device=codes.device)
    for begin in range(0, codes.shape[1], _EXACT_CHANNELS):
        part = slice(begin, begin + _EXACT_CHANNELS)
        values = codes[:, part].to(torch.float32)
        for tap in range(kernel_map.taps):
            in_rows, out_rows = kernel_map.pairs_of_tap(tap)
            if in_rows.numel():
                weight = weight_taps_q[tap, part].to(torch.float32)
                product = values.index_select(0, in_rows) @ weight
                acc.index_add_(0, out_rows, product.to(torch.int32))
    return acc
