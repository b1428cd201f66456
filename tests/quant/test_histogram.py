import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from voxelquant.errors import CalibrationError
from voxelquant.quant.histogram import BINS, MagnitudeHistogram

magnitudes = st.one_of(
    st.just(0.0),
    st.floats(width=32, allow_nan=False, allow_infinity=False),
    st.integers(-20, 20).map(lambda e: math.ldexp(1.0, e)),
)


def histogram_of(*batches: Tensor) -> MagnitudeHistogram:
    histogram = MagnitudeHistogram()
    for batch in batches:
        histogram.add(batch)
    return histogram


def assert_equal(a: MagnitudeHistogram, b: MagnitudeHistogram) -> None:
    assert (a.exponent, a.zeros, a.largest) == (b.exponent, b.zeros, b.largest)
    assert torch.equal(a.counts, b.counts)


@given(st.lists(st.lists(magnitudes, max_size=8), min_size=1, max_size=6), st.randoms())
@settings(max_examples=200, deadline=None)
def test_any_partition_and_order_give_the_same_histogram(batches, random) -> None:
    tensors = [torch.tensor(batch, dtype=torch.float32) for batch in batches]
    at_once = histogram_of(torch.cat(tensors))
    random.shuffle(tensors)
    assert_equal(histogram_of(*tensors), at_once)
    cut = random.randrange(len(tensors) + 1)
    ranks = histogram_of(*tensors[:cut]), histogram_of(*tensors[cut:])
    ranks[0].merge(ranks[1])
    assert_equal(ranks[0], at_once)


@given(st.lists(magnitudes, min_size=1, max_size=40))
@settings(max_examples=200, deadline=None)
def test_every_value_is_counted_in_its_bin(values) -> None:
    x = torch.tensor(values, dtype=torch.float32)
    histogram = histogram_of(x)
    magnitude = x.abs().double().numpy()
    nonzero = magnitude[magnitude > 0]
    assert histogram.zeros == (magnitude == 0).sum()
    assert histogram.largest == magnitude.max()
    if nonzero.size == 0:
        assert histogram.exponent is None
        return
    assert nonzero.max() < math.ldexp(1.0, histogram.exponent) <= 2 * nonzero.max()
    # Exact in float64: the bin width is a power of two.
    expected = np.bincount((nonzero / histogram.bin_width).astype(int), minlength=BINS)
    assert np.array_equal(histogram.counts.numpy(), expected)
    assert histogram.used_bins > BINS // 2


def test_sign_dtype_and_shape_do_not_matter() -> None:
    x = torch.randn(7, 3, 5)
    assert_equal(histogram_of(x), histogram_of(-x.flatten().double().float()))
    half = x.half()
    assert_equal(histogram_of(half), histogram_of(half.float()))


def test_chunks_are_seamless() -> None:
    x = torch.randn((1 << 20) + 17)
    x[::3] = 0.0
    histogram = histogram_of(x)
    assert histogram.total == x.numel()
    assert histogram.zeros == (x == 0).sum()
    assert_equal(histogram_of(x[: 1 << 19], x[1 << 19 :]), histogram)


def test_empty_tensors_count_nothing_and_a_histogram_without_values_names_its_tensor() -> None:
    histogram = MagnitudeHistogram("backbone.conv2.0")
    histogram.add(torch.empty(0, 16))
    with pytest.raises(CalibrationError, match=r"backbone\.conv2\.0: got no value at all"):
        _ = histogram.bin_width
    histogram.add(torch.zeros(4))
    with pytest.raises(CalibrationError, match="only exact zeros"):
        _ = histogram.bin_width


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_values_that_are_not_finite_are_refused_by_name(bad: float) -> None:
    histogram = MagnitudeHistogram("backbone.conv2.0")
    with pytest.raises(CalibrationError, match=r"backbone\.conv2\.0: got (nan|inf)"):
        histogram.add(torch.tensor([1.0, bad, 2.0]))
    assert histogram.total == 0


def test_the_whole_float32_range() -> None:
    tiny, huge = 2.0**-149, torch.finfo(torch.float32).max
    histogram = histogram_of(torch.tensor([tiny]), torch.tensor([huge, 0.0]))
    assert histogram.exponent == 128
    assert histogram.counts[0] == 1
    assert histogram.counts[-1] == 1
    assert histogram.zeros == 1
