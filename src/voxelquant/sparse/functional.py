"""Sparse convolution as functions: validate, dispatch."""

from __future__ import annotations

import torch
from torch import Tensor

from voxelquant.errors import GeometryError
from voxelquant.sparse.backends import reference
from voxelquant.sparse.backends.choice import BackendChoice, choose_backend
from voxelquant.sparse.kernel_map import KernelMap


def sparse_conv(
    features: Tensor,
    weight: Tensor,
    kernel_map: KernelMap,
    bias: Tensor | None = None,
    *,
    backend: BackendChoice | None = None,
) -> Tensor:
    """Sparse convolution with autograd, under `torch.autocast` in its dtype.

    Args:
        features: `[n, c_in]` float.
        weight: `[c_out, kz, ky, kx, c_in]` of the same dtype.
        kernel_map: pairs of the convolution.
        bias: `[c_out]` or None.
        backend: what computes it; default: that of the enclosing `use_backend`, else `auto`.

    Returns:
        `[m, c_out]` of the dtype of `features`.

    Raises:
        GeometryError: rows, channels or taps do not fit together.
        BackendError: the backend that was named does not run these operands.
    """
    _check_shapes(features, weight, kernel_map)
    dtype = _autocast_dtype(features)
    if choose_backend(dtype or features.dtype, features.device, backend) == "triton":
        from voxelquant.sparse.backends.triton import conv  # not before it is used

        return conv.sparse_conv(features, weight, kernel_map, bias, dtype=dtype)
    if dtype is not None:
        # Outside of the autograd function: gradients come in the dtypes of the operands.
        features, weight = features.to(dtype), weight.to(dtype)
    out = reference.sparse_conv(features, weight.flatten(1, 3), kernel_map)
    return out if bias is None else out + bias.to(out.dtype)


def sparse_conv_int8(
    codes: Tensor,
    weight_q: Tensor,
    kernel_map: KernelMap,
    *,
    backend: BackendChoice | None = None,
) -> Tensor:
    """Integer sparse convolution, exact.

    Args:
        codes: `[n, c_in]` int8.
        weight_q: `[c_out, kz, ky, kx, c_in]` int8.
        kernel_map: pairs of the convolution.
        backend: what computes it; default: that of the enclosing `use_backend`, else `auto`.

    Returns:
        `[m, c_out]` int32 accumulators.

    Raises:
        GeometryError: rows, channels, taps or dtypes do not fit together.
        BackendError: the backend that was named does not run these operands.
    """
    if codes.dtype != torch.int8 or weight_q.dtype != torch.int8:
        raise GeometryError(f"got {codes.dtype} codes and {weight_q.dtype} weights, need int8")
    _check_shapes(codes, weight_q, kernel_map)
    taps = weight_q.flatten(1, 3)
    if choose_backend(torch.int8, codes.device, backend) == "triton":
        from voxelquant.sparse.backends.triton import conv  # not before it is used

        return conv.sparse_conv_int8(codes, taps, kernel_map)
    return reference.sparse_conv_int8(codes, taps, kernel_map)


def sparse_conv_fp8(codes: Tensor, weight_q: Tensor, kernel_map: KernelMap) -> Tensor:
    """Sparse convolution of fp8 codes; products are exact, their sums are float32.

    The reference sums exactly and rounds once, hence equally on every device. A backend that sums
    in float32, in whatever order, is right within `terms * 2**-24 * Σ |code| |weight|`.

    Args:
        codes: `[n, c_in]` float8_e4m3fn.
        weight_q: `[c_out, kz, ky, kx, c_in]` float8_e4m3fn.
        kernel_map: pairs of the convolution.

    Returns:
        `[m, c_out]` float32 accumulators.

    Raises:
        GeometryError: rows, channels, taps or dtypes do not fit together.
    """
    if codes.dtype != torch.float8_e4m3fn or weight_q.dtype != torch.float8_e4m3fn:
        raise GeometryError(
            f"got {codes.dtype} codes and {weight_q.dtype} weights, need float8_e4m3fn"
        )
    _check_shapes(codes, weight_q, kernel_map)
    return reference.sparse_conv_fp8(codes, weight_q.flatten(1, 3), kernel_map)


def sparse_conv_fp16(
    features: Tensor, weight: Tensor, kernel_map: KernelMap, bias: Tensor | None = None
) -> Tensor:
    """Sparse convolution of float16 operands, accumulated in float32.

    The one rounding to float16 that the law allows an fp16 layer is left to the caller, after the
    activation.

    Args:
        features: `[n, c_in]` float16.
        weight: `[c_out, kz, ky, kx, c_in]` float16.
        kernel_map: pairs of the convolution.
        bias: `[c_out]` float16 or None.

    Returns:
        `[m, c_out]` float32.

    Raises:
        GeometryError: rows, channels, taps or dtypes do not fit together.
    """
    operands = [features, weight] if bias is None else [features, weight, bias]
    if any(operand.dtype != torch.float16 for operand in operands):
        raise GeometryError(f"got {[str(o.dtype) for o in operands]}, need torch.float16 operands")
    wide_bias = None if bias is None else bias.float()
    with torch.autocast(features.device.type, enabled=False):
        return sparse_conv(features.float(), weight.float(), kernel_map, wide_bias)


def _autocast_dtype(features: Tensor) -> torch.dtype | None:
    """What `torch.autocast` rounds operands to; a custom autograd function is not on its list."""
    device = features.device.type
    if features.dtype == torch.float64 or not torch.is_autocast_enabled(device):
        return None
    return torch.get_autocast_dtype(device)


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
