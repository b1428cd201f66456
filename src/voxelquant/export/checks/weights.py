"""Weights and biases: shapes, values, and the ranges by which engines quantize them."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from voxelquant.export.defects import Defect, error, warning
from voxelquant.export.ir import INT8, Graph, SparseConvolution

_SMALLEST_NORMAL = float(np.finfo(np.float16).tiny)
# A range this far from the channel's largest weight was taken over another axis or another tensor.
_FAR_ABOVE, _FAR_BELOW = 4.0, 1 / 16


def check_weights(graph: Graph, initializer_names: tuple[str, ...]) -> Iterator[Defect]:
    """Defects of the initializers and of `weight_dynamic_ranges`."""
    for conv in graph.convs:
        for role, name in zip(("weight", "bias"), conv.inputs[1:], strict=True):
            if name not in initializer_names:
                message = f"got {name!r} as {role}, need an initializer"
                mend = "store the values in the file"
                yield error(conv.name, "weight-not-initializer", message, mend)
        weight = graph.initializers.get(conv.inputs[1])
        bias = graph.initializers.get(conv.inputs[2])
        if bias is not None and weight is not None:
            yield from _check_shapes(conv, weight, bias)
        if bias is not None:
            yield from _check_finite(conv, "bias", bias)
        if weight is not None:
            yield from _check_finite(conv, "weight", weight)
        if conv.precision == INT8:
            yield from _check_ranges(conv, weight)


def _check_shapes(
    conv: SparseConvolution, weight: NDArray[np.float16], bias: NDArray[np.float16]
) -> Iterator[Defect]:
    c_out = conv.out_channels or (weight.shape[0] if weight.ndim else 0)
    c_in = conv.in_channels or (weight.shape[-1] if weight.ndim else 0)
    wanted = (c_out, *conv.kernel_size, c_in)
    if weight.shape != wanted:
        message = f"got a weight of {list(weight.shape)}, need [c_out, k0, k1, k2, c_in] {wanted}"
        mend = "permute an spconv 1.x weight by (4, 0, 1, 2, 3)"
        yield error(conv.name, "weight-shape", message, mend)
    if bias.shape != (c_out,):
        message = f"got a bias of {list(bias.shape)}, need [{c_out}]"
        yield error(conv.name, "bias-shape", message, "write one value for each output channel")


def _check_finite(
    conv: SparseConvolution, role: str, values: NDArray[np.float16]
) -> Iterator[Defect]:
    bad = int(np.count_nonzero(~np.isfinite(values)))
    if bad:
        message = f"got {bad} {role} values that are NaN or beyond float16 (65504)"
        mend = "look for BatchNorm variances near 0, or NaN in the checkpoint"
        yield error(conv.name, "weight-not-finite", message, mend)
    elif role == "weight" and values.size:
        largest = np.abs(values).reshape(values.shape[0], -1).max(1)
        tiny = np.flatnonzero((largest > 0) & (largest < _SMALLEST_NORMAL))
        if tiny.size:
            message = f"got output channels {tiny.tolist()} whose weights are float16 subnormals"
            mend = "they lose bits there: set them to zero, or look at their BatchNorm"
            yield warning(conv.name, "weight-subnormal", message, mend)


def _check_ranges(conv: SparseConvolution, weight: NDArray[np.float16] | None) -> Iterator[Defect]:
    ranges = conv.weight_dynamic_ranges
    c_out = conv.out_channels or (weight.shape[0] if weight is not None and weight.ndim else 0)
    if len(ranges) != c_out:
        message = f"got {len(ranges)} weight ranges, need one for each of {c_out} output channels"
        mend = "calibrate weights per output channel"
        yield error(conv.name, "weight-ranges-length", message, mend)
        return
    bad = [o for o, amax in enumerate(ranges) if not (math.isfinite(amax) and amax > 0)]
    if bad:
        message = f"got weight ranges that are not finite and positive in channels {bad}"
        yield error(conv.name, "weight-ranges-value", message, "calibrate before export")
    elif weight is not None and weight.shape[:1] == (c_out,) and np.isfinite(weight).all():
        yield from _check_distance(conv, weight)


def _check_distance(conv: SparseConvolution, weight: NDArray[np.float16]) -> Iterator[Defect]:
    largest = np.abs(weight.astype(np.float32)).reshape(weight.shape[0], -1).max(1)
    ratio = np.asarray(conv.weight_dynamic_ranges) / np.maximum(largest, _SMALLEST_NORMAL)
    judged = largest >= _SMALLEST_NORMAL
    far = np.flatnonzero(judged & ((ratio > _FAR_ABOVE) | (ratio < _FAR_BELOW)))
    if far.size:
        o = int(far[0])
        message = (
            f"got weight range {conv.weight_dynamic_ranges[o]:.4g} for channel {o}, whose largest "
            f"weight is {largest[o]:.4g} ({far.size} channels like it)"
        )
        mend = "take ranges per output channel of the stored layout (1x1x1 weights of spconv 2)"
        yield warning(conv.name, "weight-range-far", message, mend)
