"""Calibration: run float batches, choose one range for each tensor and each weight channel."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from voxelquant.errors import CalibrationError
from voxelquant.quant.calibrators import choose_amax
from voxelquant.quant.histogram import MagnitudeHistogram
from voxelquant.quant.insert import as_arguments, quantization_of, trace_and_insert
from voxelquant.quant.modes import evaluation_mode
from voxelquant.quant.modules import QuantSparseConvBase
from voxelquant.quant.quantizer import QuantizerMode, TensorQuantizer, weight_amax
from voxelquant.quant.spec import Method, QuantSpec

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class TensorStatistics:
    """What calibration saw of one tensor, and the range it chose."""

    spec: QuantSpec
    histogram: MagnitudeHistogram
    amax: float


def calibrate(
    qmodel: nn.Module,
    frames: Iterable[Any],
    method: Method | None = None,
    max_batches: int | None = None,
    progress: Progress | None = None,
) -> dict[str, TensorStatistics]:
    """Choose every range of a quantized model, in place.

    The model runs in float (weights folded and rounded to fp16, nothing quantized), in eval mode
    and without gradients. Ranges change only after every tensor has found one.

    Args:
        qmodel: result of `quantize`.
        frames: model inputs, each a SparseTensor or a tuple of arguments.
        method: overrides the recipe's method for all activations.
        max_batches: exactly so many frames are drawn; all of them if None.
        progress: called with (frames done, frames in all, or 0 where that is unknown).

    Returns:
        Statistics of each tensor by name, for reports.

    Raises:
        CalibrationError: no frame, NaN or infinite data, or a tensor that stayed empty or zero.
    """
    quantization = quantization_of(qmodel)
    total = _count_frames(frames, max_batches)
    remaining = iter(itertools.islice(frames, max_batches))
    first = next(remaining, None)
    if first is None:
        raise CalibrationError("got no calibration frames, need at least one")
    if quantization.plan is None:
        trace_and_insert(qmodel, _checked_arguments(first, 0))
    quantizers = quantization.tensor_quantizers
    with torch.no_grad(), evaluation_mode(qmodel), _observing(qmodel, quantizers) as histograms:
        for index, frame in enumerate(itertools.chain([first], remaining)):
            qmodel(*_checked_arguments(frame, index))
            if progress is not None:
                progress(index + 1, total)
    statistics = {
        name: _choose_range(quantizers[name].spec, histogram, method)
        for name, histogram in histograms.items()
    }
    for name, chosen in statistics.items():
        quantizers[name].set_amax(chosen.amax)
    for quantizer, weight in _weight_quantizers(qmodel):
        quantizer.set_amax(weight_amax(weight, quantizer.spec.fmt))
    return statistics


def _choose_range(
    spec: QuantSpec, histogram: MagnitudeHistogram, method: Method | None
) -> TensorStatistics:
    used = spec if method is None else replace(spec, method=method)
    return TensorStatistics(used, histogram, choose_amax(histogram, used))


@contextmanager
def _observing(
    qmodel: nn.Module, quantizers: dict[str, TensorQuantizer]
) -> Iterator[dict[str, MagnitudeHistogram]]:
    """Watch tensors with all weights in float; the dict is filled when the block ends well."""
    weights = [quantizer for quantizer, _ in _weight_quantizers(qmodel)]
    modes = [(quantizer, quantizer.mode) for quantizer in (*quantizers.values(), *weights)]
    histograms: dict[str, MagnitudeHistogram] = {}
    for quantizer in quantizers.values():
        quantizer.start_observing()
    for quantizer in weights:
        quantizer.mode = QuantizerMode.OFF
    try:
        yield histograms
    finally:
        for name, quantizer in quantizers.items():
            histograms[name] = quantizer.stop_observing()
        for quantizer, mode in modes:
            quantizer.mode = mode


def _weight_quantizers(qmodel: nn.Module) -> list[tuple[TensorQuantizer, Tensor]]:
    return [
        (module.weight_quantizer, module.weight)
        for module in qmodel.modules()
        if isinstance(module, QuantSparseConvBase) and module.weight_quantizer is not None
    ]


def _checked_arguments(frame: Any, index: int) -> tuple[Any, ...]:
    arguments = as_arguments(frame)
    features: Tensor = arguments[0].features
    if not bool(torch.isfinite(features).all()):
        raise CalibrationError(
            f"calibration frame {index}: got NaN or infinite features, need finite ones; leave "
            "this frame out or mend its points"
        )
    return arguments


def _count_frames(frames: Iterable[Any], max_batches: int | None) -> int:
    known = len(frames) if isinstance(frames, Sized) else None
    limits = [count for count in (known, max_batches) if count is not None]
    return min(limits) if limits else 0
