"""Sparse convolution as functions: validate, bring weights into tap order, dispatch."""

from __future__ import annotations

import torch
from torch import Tensor

from voxelquant.errors import GeometryError
from voxelquant.sparse.backends import reference
from voxelquant.sparse.kernel_map import KernelMap


def weight_to_taps(weight: Tensor) -> Tensor:
    """`[c_out, kz, ky, kx, c_in]` → `[k, c_in, c_out]`, taps in row-major order."""
    c_out, *_, c_in = weight.shape
    return weight.reshape(c_out, -1, c_in).permute(1, 2, 0).contiguous()


def sparse_conv(
    features: Tensor, weight: Tensor, kernel_map: KernelMap, bias: Tensor | None = None
) -> Tensor:
    """Sparse convolution with autograd.

    Args:
        features: `[n, c_in]` float.
        weight: `[c_out, kz, ky, kx, c_in]` of the same dtype.
        kernel_map: pairs of the convolution.
        bias: `[c_out]` or None.

    Returns:
        `[m, c_out]` of the dtype of `features`.

    Raises:
        GeometryError: rows, channels or taps do not fit together.
    """
    _check_shapes(features, weight, kernel_map)
    out = reference.sparse_conv(features, weight_to_taps(weight), kernel_map)
    return out if bias is None else out + bias


def sparse_conv_int8(codes: Tensor, weight_q: Tensor, kernel_map: KernelMap) -> Tensor:
    """Integer sparse convolution, exact.

    Args:
        codes: `[n, c_in]` int8.
        weight_q: `[c_out, kz, ky, kx, c_in]` int8.
        kernel_map: pairs of the convolution.

    Returns:
        `[m, c_out]` int32 accumulators.

    Raises:
        GeometryError: rows, channels, taps or dtypes do not fit together.
    """
    if codes.dtype != torch.int8 or weight_q.dtype != torch.int8:
        raise GeometryError(f"got {codes.dtype} codes and {weight_q.dtype} weights, need int8")
    _check_shapes(codes, weight_q, kernel_map)
    return reference.sparse_conv_int8(codes, weight_to_taps(weight_q), kernel_map)


def _check_shapes(features: Tensor, weight: Tensor, kernel_map: KernelMap) -> None:
    taps = weight.shape[1] * weight.shape[2] * weight.shape[3]
    if features.shape[0] != kernel_map.n_in:
        raise GeometryError(f"got {features.shape[0]} rows for a map of {kernel_map.n_in} sites")
    if features.shape[1] != weight.shape[4]:
        raise GeometryError(
            f"got {features.shape[1]} input channels, the weight {tuple(weight.shape)} needs "
            f"{weight.shape[4]}"
        )
    if taps != kernel_map.taps:
        raise GeometryError(f"got a weight of {taps} taps for a map of {kernel_map.taps}")
