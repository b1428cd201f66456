import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from voxelquant.errors import CalibrationError, ConfigError
from voxelquant.numerics import INT4, INT8, dequantize, quantize, scale_from_amax
from voxelquant.quant.calibrators import (
    MSE_THRESHOLDS,
    choose_amax,
    entropy_amax,
    mse_amax,
    percentile_amax,
)
from voxelquant.quant.histogram import MagnitudeHistogram
from voxelquant.quant.spec import QuantSpec


def histogram_of(x: Tensor) -> MagnitudeHistogram:
    histogram = MagnitudeHistogram("t")
    histogram.add(x)
    return histogram


def samples(kind: str, seed: int = 0, n: int = 20000) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, generator=generator)
    if kind == "relu":
        return x.relu()
    if kind == "heavy":
        return x * torch.exp(1.5 * torch.randn(n, generator=generator))
    if kind == "outlier":
        x[0] = 40.0
    return x


KINDS = ["normal", "relu", "heavy", "outlier"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("percentile", [50.0, 90.0, 99.0, 99.9, 99.99, 100.0])
@pytest.mark.parametrize("skip_zeros", [False, True])
def test_percentile_is_numpys_to_within_a_bin(kind, percentile, skip_zeros) -> None:
    x = samples(kind)
    histogram = histogram_of(x)
    magnitudes = x.abs().double().numpy()
    if skip_zeros:
        magnitudes = magnitudes[magnitudes > 0]
    expected = np.percentile(magnitudes, percentile)
    if expected == 0.0:
        with pytest.raises(CalibrationError, match="exactly zero"):
            percentile_amax(histogram, percentile, skip_zeros=skip_zeros)
        return
    got = percentile_amax(histogram, percentile, skip_zeros=skip_zeros)
    assert abs(got - expected) <= histogram.bin_width


@given(
    st.lists(st.floats(-1e3, 1e3, width=32).filter(bool), min_size=1, max_size=60),
    st.floats(0.01, 100.0),
    st.floats(0.01, 100.0),
)
@settings(max_examples=200, deadline=None)
def test_percentile_is_monotone_and_reaches_the_maximum(values, p, q) -> None:
    histogram = histogram_of(torch.tensor(values, dtype=torch.float32))
    low, high = (percentile_amax(histogram, each, skip_zeros=False) for each in sorted((p, q)))
    assert 0.0 < low <= high <= histogram.largest
    assert percentile_amax(histogram, 100.0, skip_zeros=False) == histogram.largest


def brute_force_mse(x: Tensor, amax: float, fmt=INT8) -> float:
    scale = scale_from_amax(torch.tensor(amax), fmt)
    error = dequantize(quantize(x, scale, fmt), scale).double() - x.double()
    return float(error.square().sum())


@pytest.mark.parametrize("fmt", [INT8, INT4], ids=["int8", "int4"])
@pytest.mark.parametrize("kind", KINDS)
def test_mse_finds_the_best_threshold_of_a_plain_search_over_the_bins(kind, fmt) -> None:
    histogram = histogram_of(samples(kind))
    occupied = torch.nonzero(histogram.counts).squeeze(1)
    centres = ((occupied + 0.5) * histogram.bin_width).float()
    best, best_error = 0.0, math.inf
    for step in range(1, MSE_THRESHOLDS + 1):
        amax = float(np.float32(step / MSE_THRESHOLDS * histogram.largest))
        scale = scale_from_amax(torch.tensor(amax), fmt)
        difference = dequantize(quantize(centres, scale, fmt), scale).double() - centres.double()
        error = float((difference.square() * histogram.counts[occupied]).sum())
        if error < best_error:
            best, best_error = amax, error
    found = mse_amax(histogram, fmt)
    scale = scale_from_amax(torch.tensor(found), fmt)
    difference = dequantize(quantize(centres, scale, fmt), scale).double() - centres.double()
    error = float((difference.square() * histogram.counts[occupied]).sum())
    # Equal up to the float32 rounding of one difference: neighbouring thresholds can tie.
    assert error <= best_error * (1 + 1e-6)
    assert abs(found - best) <= 2 * histogram.largest / MSE_THRESHOLDS


@pytest.mark.parametrize("kind", KINDS)
def test_mse_on_the_histogram_is_nearly_the_best_on_the_data(kind) -> None:
    x = samples(kind)
    found = brute_force_mse(x, mse_amax(histogram_of(x), INT8))
    largest = float(x.abs().max())
    best = min(brute_force_mse(x, largest * step / 400) for step in range(20, 401))
    assert found <= 1.02 * best


def test_mse_clips_a_lone_outlier_and_max_does_not() -> None:
    histogram = histogram_of(samples("outlier", n=200000))
    assert choose_amax(histogram, QuantSpec(method="max")) == 40.0
    assert choose_amax(histogram, QuantSpec(method="mse")) < 20.0


def plain_loop_entropy(counts: np.ndarray, levels: int) -> int:
    """The published procedure, bin by bin; returns the number of bins inside the range."""
    best, best_divergence = 0, math.inf
    for clip in range(levels, len(counts) + 1):
        p = counts[:clip].copy()
        q = np.zeros(clip)
        for group in range(levels):
            members = [j for j in range(clip) if j * levels // clip == group and counts[j] > 0]
            for j in members:
                q[j] = counts[members].sum() / len(members)
        p[-1] += counts[clip:].sum()
        if p.sum() == 0 or q.sum() == 0:
            continue
        p, q = p / p.sum(), q / q.sum()
        if np.any((p > 0) & (q == 0)):
            continue
        held = p > 0
        divergence = float((p[held] * np.log(p[held] / q[held])).sum())
        if divergence < best_divergence:
            best, best_divergence = clip, divergence
    return best


@pytest.mark.parametrize("skip_zeros", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_entropy_is_the_plain_loop(seed, skip_zeros) -> None:
    generator = np.random.default_rng(seed)
    counts = np.zeros(4096)
    # 4-bit codes keep the quadratic loop short; the histogram occupies 60 bins.
    counts[:60] = np.round(2000 * np.exp(-np.arange(60) / 9.0) * generator.random(60))
    counts[59] = 2
    histogram = MagnitudeHistogram("t", exponent=0, zeros=500.0)
    histogram.counts = torch.from_numpy(counts)
    histogram.largest = 59.5 / 4096
    expected = counts[:60].copy()
    if not skip_zeros:
        expected[0] += 500.0
    clip = plain_loop_entropy(expected, 8)
    found = entropy_amax(histogram, INT4, skip_zeros=skip_zeros)
    assert found == min(clip / 4096, histogram.largest)


def test_entropy_of_int8_clips_a_heavy_tail_and_zeros_pull_it_further() -> None:
    x = samples("heavy", n=200000)
    x[: len(x) // 2] = 0.0
    histogram = histogram_of(x)
    without = entropy_amax(histogram, INT8, skip_zeros=True)
    with_zeros = entropy_amax(histogram, INT8, skip_zeros=False)
    assert with_zeros <= without < histogram.largest


@pytest.mark.parametrize("method", ["max", "percentile", "mse", "entropy"])
def test_ranges_scale_with_the_data_and_ignore_the_partition(method) -> None:
    x = samples("heavy")
    spec = QuantSpec(method=method)
    amax = choose_amax(histogram_of(x), spec)
    assert choose_amax(histogram_of(x * 8.0), spec) == 8.0 * amax
    parts = MagnitudeHistogram("t")
    for part in x.split(1237):
        parts.add(part)
    assert choose_amax(parts, spec) == amax
    assert amax == float(np.float32(amax))


@pytest.mark.parametrize("method", ["max", "percentile", "mse", "entropy"])
def test_nothing_but_zeros_is_an_error_for_every_method(method) -> None:
    with pytest.raises(CalibrationError, match="t: got only exact zeros"):
        choose_amax(histogram_of(torch.zeros(10)), QuantSpec(method=method))


@pytest.mark.parametrize("method", ["max", "percentile", "mse", "entropy"])
def test_a_single_value_is_its_own_range(method) -> None:
    amax = choose_amax(histogram_of(torch.tensor([0.3])), QuantSpec(method=method))
    assert amax == pytest.approx(0.3, rel=1e-2)


def test_specs_are_checked() -> None:
    with pytest.raises(ConfigError, match="percentile"):
        QuantSpec(percentile=0.0)
    with pytest.raises(ConfigError, match="per channel"):
        QuantSpec(granularity="per_channel", method="mse")
