"""From a histogram of magnitudes to one range: max, percentile, MSE, entropy."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from voxelquant.errors import CalibrationError
from voxelquant.numerics import IntFormat, NumberFormat, fake_quantize
from voxelquant.quant.histogram import MagnitudeHistogram
from voxelquant.quant.spec import QuantSpec

MSE_THRESHOLDS = 2048
_THRESHOLDS_AT_ONCE = 32
FloatArray = npt.NDArray[np.float64]


def choose_amax(histogram: MagnitudeHistogram, spec: QuantSpec) -> float:
    """Range of a tensor by the method of its spec, as a float32 value.

    Raises:
        CalibrationError: the histogram is empty or all zero, or the range would be zero.
    """
    _ = histogram.bin_width  # raises for a histogram without values
    if spec.method == "max":
        return histogram.largest
    if spec.method == "percentile":
        amax = percentile_amax(histogram, spec.percentile, skip_zeros=spec.skip_zeros)
    elif spec.method == "mse":
        amax = mse_amax(histogram, spec.fmt)
    else:
        assert spec.method == "entropy", spec.method
        assert isinstance(spec.fmt, IntFormat)  # the spec refuses others
        amax = entropy_amax(histogram, spec.fmt, skip_zeros=spec.skip_zeros)
    return float(np.float32(amax))


def percentile_amax(histogram: MagnitudeHistogram, percentile: float, *, skip_zeros: bool) -> float:
    """Magnitude below which `percentile` percent of the values lie, to within one bin.

    As `numpy.percentile` (linear) on the values themselves, except that inside a bin they count
    as evenly spread.
    """
    zeros = 0.0 if skip_zeros else histogram.zeros
    below = zeros + np.concatenate([[0.0], np.cumsum(histogram.counts.numpy())])  # of each edge
    rank = percentile / 100.0 * (below[-1] - 1.0)
    low = _value_of_rank(histogram, below, np.floor(rank))
    high = _value_of_rank(histogram, below, np.ceil(rank))
    amax = low + (rank - np.floor(rank)) * (high - low)
    if amax <= 0.0:
        raise CalibrationError(
            f"{histogram.name}: got 0 as the {percentile} percentile, because "
            f"{100.0 * zeros / below[-1]:.2f} % of the values are exactly zero; use "
            "skip_zeros: true or a higher percentile"
        )
    return float(amax)


def _value_of_rank(histogram: MagnitudeHistogram, below: FloatArray, rank: float) -> float:
    if rank < below[0]:
        return 0.0
    if rank >= below[-1] - 1.0:
        return histogram.largest
    index = int(np.searchsorted(below, rank, side="right")) - 1
    inside = (rank - below[index] + 0.5) / (below[index + 1] - below[index])
    return min((index + inside) * histogram.bin_width, histogram.largest)


def mse_amax(histogram: MagnitudeHistogram, fmt: NumberFormat) -> float:
    """Range of least squared error, `argmin Σ n_b (b - fq(b; amax))²` over the bin centres.

    The quantizer is the law's own; `MSE_THRESHOLDS` ranges evenly up to the largest magnitude are
    all tried, since the error has many local minima. Bins that hold no value cost nothing.
    """
    occupied = torch.nonzero(histogram.counts).squeeze(1)
    centres = ((occupied.double() + 0.5) * histogram.bin_width).to(torch.float32)  # [bins]
    counts = histogram.counts[occupied]
    steps = torch.arange(1, MSE_THRESHOLDS + 1, dtype=torch.float64) / MSE_THRESHOLDS
    thresholds = (steps * histogram.largest).to(torch.float32)
    errors = torch.cat(
        [
            _squared_errors(centres, counts, part.unsqueeze(1), fmt)
            for part in thresholds.split(_THRESHOLDS_AT_ONCE)
        ]
    )
    return float(thresholds[int(errors.argmin())])


def _squared_errors(centres: Tensor, counts: Tensor, amax: Tensor, fmt: NumberFormat) -> Tensor:
    difference = fake_quantize(centres, amax, fmt) - centres  # [thresholds, bins]
    return difference.square_().to(torch.float64) @ counts


def entropy_amax(histogram: MagnitudeHistogram, fmt: IntFormat, *, skip_zeros: bool) -> float:
    """Range of least information loss (Migacz 2017, "8-bit inference with TensorRT").

    For every clipping point of `i` bins, the reference P is the clipped histogram with the tail
    added to its last bin; the candidate Q joins its `i` bins (without the tail) into one group
    for each non-negative code and spreads every group evenly over its occupied bins. The range is
    the `i` of least KL(P‖Q). A clipping point whose last bin holds nothing but tail has no finite
    divergence and is passed over. Cumulative sums make each point cost one pass over the groups.
    """
    levels = fmt.qmax + 1
    used = histogram.used_bins
    counts = histogram.counts.numpy()[:used].copy()
    if not skip_zeros:
        counts[0] += histogram.zeros
    if used <= levels:
        return histogram.largest
    sums = np.concatenate([[0.0], np.cumsum(counts)])
    occupied = np.concatenate([[0.0], np.cumsum(counts > 0.0)])
    entropy = np.concatenate([[0.0], np.cumsum(_x_log_x(counts))])
    divergence = np.full(used + 1, np.inf)
    for clip in range(levels, used + 1):
        divergence[clip] = _divergence(clip, levels, sums, occupied, entropy)
    best = int(divergence.argmin())
    return min(best * histogram.bin_width, histogram.largest)


def _divergence(
    clip: int, levels: int, sums: FloatArray, occupied: FloatArray, entropy: FloatArray
) -> float:
    """KL(P‖Q) of one clipping point; with totals p, q: `Σ P log P/Q = Σ P̂ log(P̂ q / (Q̂ p)) / p`."""
    total, inside = sums[-1], sums[clip]
    tail = total - inside
    last = inside - sums[clip - 1]
    if inside == 0.0 or (tail > 0.0 and last == 0.0):
        return np.inf
    # Bin j belongs to group j * levels // clip, so group g begins at ceil(g * clip / levels).
    edges = -(-np.arange(levels + 1) * clip // levels)
    group = np.diff(sums[edges])
    members = np.diff(occupied[edges])
    mean = np.divide(group, members, out=np.ones(levels), where=members > 0.0)
    cross = float(group @ np.log(mean)) + tail * np.log(mean[-1])
    own = entropy[clip] - _x_log_x(last) + _x_log_x(last + tail)
    return float((own - cross) / total + np.log(inside / total))


def _x_log_x(x: FloatArray | float) -> FloatArray:
    values = np.asarray(x, dtype=np.float64)
    return values * np.log(np.where(values > 0.0, values, 1.0))
