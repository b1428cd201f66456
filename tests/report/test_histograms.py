import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from voxelquant.report.histograms import BARS, clipped_text, draw_histogram, merge_bins
from voxelquant.report.model import TensorHistogram


def histogram(amax: float, bins: int = 100) -> TensorHistogram:
    return TensorHistogram("x", np.ones(bins), top=10.0, amax=amax, method="max")


@given(bins=st.integers(1, 3000))
def test_merging_loses_no_value(bins: int) -> None:
    merged = merge_bins(np.arange(1.0, bins + 1), BARS)
    assert len(merged) <= BARS
    assert merged.sum() == bins * (bins + 1) / 2


def test_what_lies_beyond_amax_is_drawn_and_counted_as_clipped() -> None:
    figure = draw_histogram(histogram(amax=7.5, bins=BARS))
    assert figure.count('class="clipped"') == BARS // 4
    assert figure.count('class="kept"') == BARS - BARS // 4
    assert "25 % clipped" in figure
    assert "amax 7.5" in figure


@pytest.mark.parametrize("amax", [10.0, 12.0])
def test_a_range_over_everything_clips_nothing(amax: float) -> None:
    assert clipped_text(histogram(amax)) == "nothing clipped"
    assert 'class="clipped"' not in draw_histogram(histogram(amax))


def test_an_empty_tensor_is_drawn_empty() -> None:
    empty = TensorHistogram("x", np.zeros(8), top=1.0, amax=1.0, method="max")
    assert "<rect" not in draw_histogram(empty)
