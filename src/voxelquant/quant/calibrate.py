"""Calibration: run float batches, choose one range for each tensor and each weight channel."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from voxelquant.errors import CalibrationError
from voxelquant.quant.calibrators import choose_amax
from voxelquant.quant.histogram import MagnitudeHistogram
from voxelquant.quant.insert import as_arguments, quantization_of, trace_and_insert
from voxelquant.quant.modes import evaluation_mode
from voxelquant.quant.quantizer import QuantizerMode, TensorQuantizer, weight_amax
from voxelquant.quant.range_trainer import quantized_weights
from voxelquant.quant.sparse_part import ending_after_sparse_part
from voxelquant.quant.spec import METHODS, Method, QuantSpec
from voxelquant.sparse import is_sparse_tensor

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
    """Choose every range of a quantized model, in place: `observe`, then `set_ranges`.

    Args:
        qmodel: result of `quantize`.
        frames: model inputs, as for `quantize`.
        method: overrides the recipe's method for all activations.
        max_batches: exactly so many frames are drawn; all of them if None.
        progress: called with (frames done, frames in all, or 0 where that is unknown).

    Returns:
        Statistics of each tensor by name, for reports.

    Raises:
        CalibrationError: no frame, NaN or infinite data, a tensor that stayed empty or zero, or no
            such method.
        ConfigError: a layer of the recipe cannot use the method.
    """
    require_method(method)  # before the work
    quantization_of(qmodel).recipe.check_method(method)
    return set_ranges(qmodel, observe(qmodel, frames, max_batches, progress), method)


def observe(
    qmodel: nn.Module,
    frames: Iterable[Any],
    max_batches: int | None = None,
    progress: Progress | None = None,
) -> dict[str, MagnitudeHistogram]:
    """Histogram of each tensor over some frames; no range changes.

    The model runs in float (weights folded and rounded to fp16, nothing quantized), in eval mode
    and without gradients; what comes after its sparse part does not run. Histograms of other
    frames, from this process or another, are added with `merge_histograms`.

    Args:
        qmodel: result of `quantize`.
        frames: model inputs, as for `quantize`.
        max_batches: exactly so many frames are drawn; all of them if None.
        progress: called with (frames done, frames in all, or 0 where that is unknown).

    Raises:
        CalibrationError: no frame, or NaN or infinite data.
    """
    quantization = quantization_of(qmodel)
    total = _count_frames(frames, max_batches)
    remaining = iter(itertools.islice(frames, max_batches))
    first = next(remaining, None)
    if first is None:
        raise CalibrationError("got no calibration frames, need at least one")
    if quantization.plan is None:
        trace_and_insert(qmodel, _checked_arguments(qmodel, first, 0))
    quantizers = quantization.tensor_quantizers
    with torch.no_grad(), evaluation_mode(qmodel), _observing(qmodel, quantizers) as histograms:
        for index, frame in enumerate(itertools.chain([first], remaining)):
            _observe_frame(qmodel, _checked_arguments(qmodel, frame, index))
            if progress is not None:
                progress(index + 1, total)
    return histograms


def set_ranges(
    qmodel: nn.Module,
    histograms: Mapping[str, MagnitudeHistogram],
    method: Method | None = None,
) -> dict[str, TensorStatistics]:
    """Choose every range of a quantized model from what was observed, in place.

    Ranges change only after every tensor has found one.

    Args:
        qmodel: result of `quantize` that has seen a frame.
        histograms: of each quantized tensor by name.
        method: overrides the recipe's method for all activations.

    Returns:
        Statistics of each tensor by name, for reports.

    Raises:
        CalibrationError: a tensor without a histogram, one that stayed empty or zero, or no such
            method.
    """
    require_method(method)
    quantization = quantization_of(qmodel)
    quantization.require_plan()
    quantizers = quantization.tensor_quantizers
    odd = sorted(histograms.keys() ^ quantizers.keys())
    if odd:
        side = "that this model does not quantize" if odd[0] in histograms else "without statistics"
        raise CalibrationError(
            f"{odd[0]}: got a tensor {side}, need those of this model and recipe; calibrate again"
        )
    statistics = {
        name: _choose_range(quantizer.spec, histograms[name], method)
        for name, quantizer in quantizers.items()
    }
    chosen = [(quantizer, statistics[name].amax) for name, quantizer in quantizers.items()]
    ranges = [(quantizer, quantizer.checked_amax(amax)) for quantizer, amax in chosen]
    ranges += [
        (quantizer, quantizer.checked_amax(weight_amax(weight, quantizer.spec.fmt)))
        for quantizer, weight in quantized_weights(qmodel)
    ]
    for quantizer, amax in ranges:
        quantizer.set_amax(amax)
    return statistics


def require_method(method: str | None) -> None:
    """Refuse a method that there is none of.

    Raises:
        CalibrationError: the name is unknown.
    """
    if method is not None and method not in METHODS:
        raise CalibrationError(
            f"got method {method!r}, need one of {', '.join(METHODS)}, or None for the recipe's"
        )


def _observe_frame(qmodel: nn.Module, arguments: tuple[Any, ...]) -> None:
    quantization = quantization_of(qmodel)
    observers = [
        quantizer.observer
        for quantizer in quantization.tensor_quantizers.values()
        if quantizer.observer is not None
    ]
    for observer in observers:
        observer.begin_forward()

    def all_watched() -> bool:
        return all(observer.watched for observer in observers)

    # Every module of the sparse part runs once in a forward (inserting refuses another), so what
    # follows the sparse part has nothing to add to the statistics.
    with ending_after_sparse_part(qmodel, quantization.require_plan(), all_watched):
        qmodel(*arguments)


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
    weights = [quantizer for quantizer, _ in quantized_weights(qmodel)]
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


def _checked_arguments(qmodel: nn.Module, frame: Any, index: int) -> tuple[Any, ...]:
    arguments = as_arguments(frame, qmodel)
    # Where a model makes its sparse tensors itself, the histograms still refuse what they meet.
    first: Any = arguments[0] if arguments else None
    if is_sparse_tensor(first) and not bool(torch.isfinite(first.features).all()):
        raise CalibrationError(
            f"calibration frame {index}: got NaN or infinite features, need finite ones; leave "
            "this frame out or mend its points"
        )
    return arguments


def _count_frames(frames: Iterable[Any], max_batches: int | None) -> int:
    known = len(frames) if isinstance(frames, Sized) else None
    limits = [count for count in (known, max_batches) if count is not None]
    return min(limits) if limits else 0
