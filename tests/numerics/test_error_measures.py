import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from voxelquant.numerics import relative_l2, sqnr_db


def test_ten_percent_error_is_twenty_decibels() -> None:
    reference = torch.randn(1000)
    assert sqnr_db(reference, reference * 1.1) == pytest.approx(20, abs=1e-4)
    assert relative_l2(reference, reference * 0.9) == pytest.approx(0.1, rel=1e-5)


@given(st.floats(1e-3, 1e3), st.integers(0, 100))
def test_the_two_measures_are_one(noise: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    reference = torch.randn(64, generator=generator)
    approximation = reference + noise * torch.randn(64, generator=generator)
    expected = -20 * math.log10(relative_l2(reference, approximation))
    assert sqnr_db(reference, approximation) == pytest.approx(expected, abs=1e-6)


def test_a_scaled_copy_is_no_good_approximation() -> None:
    """Cosine similarity would call these equal."""
    reference = torch.randn(50)
    assert relative_l2(reference, 7 * reference) == pytest.approx(6)


def test_zero_tensors() -> None:
    zero, one = torch.zeros(3), torch.ones(3)
    assert (sqnr_db(zero, zero), relative_l2(zero, zero)) == (math.inf, 0.0)
    assert math.isnan(sqnr_db(zero, one))
    assert relative_l2(zero, one) == math.inf
    assert (sqnr_db(one, zero), relative_l2(one, zero)) == (0.0, 1.0)


def test_sums_are_in_float64() -> None:
    """A float32 sum of squares would overflow or lose the difference."""
    big = torch.full((10,), 1e25)
    assert relative_l2(big, big * 1.5) == pytest.approx(0.5)
