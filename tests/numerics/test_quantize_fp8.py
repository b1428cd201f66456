"""The law of fp8 against an oracle that knows the bits of e4m3 and nothing of torch's casts."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from oracles.e4m3 import MAGNITUDES, MIDPOINTS, nearest, value_of
from voxelquant.numerics import (
    FP8_E4M3,
    INT8,
    dequantize,
    fake_quantize,
    fake_quantize_learned,
    format_of_codes,
    quantize,
    requantize_in_turn,
    scale_from_amax,
)

ALL_CODES = torch.tensor([value_of(bits) for bits in range(256) if bits & 0x7F != 0x7F])

finite = st.floats(width=32, allow_nan=False, allow_infinity=False)
# Normal scales that leave room for the largest code.
scales = st.floats(2.0**-117, 2.0**119, width=32, allow_subnormal=False)


def _f32(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float32)


def codes_of(x: Tensor, scale: float = 1.0) -> np.ndarray:
    return quantize(x, _f32(scale), FP8_E4M3).float().numpy()


def test_torch_reads_the_same_256_codes() -> None:
    ours = np.array([value_of(bits) for bits in range(256)], np.float32)
    theirs = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).float().numpy()
    assert np.array_equal(ours, theirs, equal_nan=True)
    assert MAGNITUDES[-1] == FP8_E4M3.code_of_amax == 448
    assert np.diff(MAGNITUDES).min() == FP8_E4M3.finest_code_gap == 2.0**-9


@given(scales)
def test_every_code_survives_the_round_trip(scale: float) -> None:
    codes = ALL_CODES.to(torch.float8_e4m3fn)
    again = quantize(dequantize(codes, _f32(scale)), _f32(scale), FP8_E4M3)
    assert again.dtype == torch.float8_e4m3fn
    assert torch.equal(again.view(torch.uint8), codes.view(torch.uint8))


@pytest.mark.parametrize("scale", [2.0**-100, 2.0**-20, 1.0, 2.0**100])
def test_ties_go_to_even(scale: float) -> None:
    even = MAGNITUDES[1:].copy()
    even[::2] = MAGNITUDES[:-1:2]  # of codes 0 and 1 the former, of 1 and 2 the latter
    for sign in (1, -1):
        ties = torch.from_numpy(sign * MIDPOINTS) * scale
        assert np.array_equal(codes_of(ties, scale), sign * even)


@pytest.mark.parametrize(("towards", "expected"), [(-1, MAGNITUDES[:-1]), (1, MAGNITUDES[1:])])
def test_the_float_next_to_a_tie_goes_to_its_own_side(towards: float, expected: np.ndarray) -> None:
    beside = np.nextafter(MIDPOINTS, np.float32(towards * np.inf), dtype=np.float32)
    assert np.array_equal(codes_of(torch.from_numpy(beside)), expected)
    assert np.array_equal(codes_of(torch.from_numpy(-beside)), -expected)


@given(st.lists(finite, min_size=1, max_size=50), scales)
def test_codes_are_the_nearest_to_the_float32_quotient(values: list[float], scale: float) -> None:
    x = np.array(values, np.float32)
    with np.errstate(over="ignore"):
        ratio = x / np.float32(scale)
    assert np.array_equal(codes_of(torch.from_numpy(x), scale), nearest(ratio))


def test_all_binades_are_rounded_like_the_oracle() -> None:
    generator = np.random.default_rng(0)
    x = generator.integers(0, 2**32, 1_000_000, np.uint32).view(np.float32)
    x = x[np.isfinite(x)]
    near = (generator.normal(size=1_000_000) * 2.0 ** generator.uniform(-12, 10, 1_000_000)).astype(
        np.float32
    )
    for values in (x, near):
        assert np.array_equal(codes_of(torch.from_numpy(values)), nearest(values))


def test_values_beyond_the_range_saturate() -> None:
    # torch rounds what lies above 464 to NaN or to 448, by version: the clamp comes first.
    wild = torch.tensor([448.0, 463.9, 464.0, 464.1, 480.0, 1e9, 3.4e38, math.inf])
    assert (codes_of(wild) == 448).all()
    assert (codes_of(-wild) == -448).all()
    assert codes_of(torch.tensor([3e38, -3e38]), 1e-30).tolist() == [448, -448]


@given(st.lists(finite, min_size=1, max_size=50), st.floats(2.0**-149, 2.0**127, width=32))
def test_finite_values_never_become_nan(values: list[float], scale: float) -> None:
    codes = quantize(torch.tensor(values), _f32(scale), FP8_E4M3)
    assert not codes.float().isnan().any()


@given(st.lists(finite, min_size=1, max_size=50), st.floats(448 * 2.0**-126, 2.0**127, width=32))
def test_fake_quantize_is_quantize_then_dequantize(values: list[float], amax: float) -> None:
    x, scale = torch.tensor(values), scale_from_amax(_f32(amax), FP8_E4M3)
    expected = dequantize(quantize(x, scale, FP8_E4M3), scale)
    assert torch.equal(fake_quantize(x, _f32(amax), FP8_E4M3), expected)


def test_precision_is_that_of_the_value_not_of_the_range() -> None:
    """A range 32 times too large costs nothing: what int8 lost five bits of keeps its three."""
    x = torch.rand(10_000, generator=torch.Generator().manual_seed(0)) + 1.0
    for amax in (2.0, 64.0):
        error = (fake_quantize(x, _f32(amax), FP8_E4M3) - x).abs() / x
        assert error.max() <= 2.0**-4
    assert ((fake_quantize(x, _f32(64.0)) - x).abs() / x).max() > 2.0**-3


@given(st.integers(0, 10_000), st.floats(0.01, 100.0))
def test_the_gradient_of_a_range_is_the_published_formula(seed: int, amax: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    x, incoming = (torch.randn(50, generator=generator) for _ in range(2))
    x = (x * amax).requires_grad_()
    range_ = _f32(amax).requires_grad_()
    fake_quantize_learned(x, range_, 1.0, FP8_E4M3).backward(incoming)
    step = scale_from_amax(range_.detach(), FP8_E4M3)
    v = (x.detach() / step).double()
    code = torch.from_numpy(nearest(v.float().numpy())).double()
    inside = x.detach().abs() <= range_.detach()
    of_step = torch.where(inside, code - v, code)
    expected = float((of_step * incoming.double()).sum()) / 448
    assert range_.grad is not None
    assert range_.grad.item() == pytest.approx(expected, rel=1e-4, abs=1e-4)
    assert torch.equal(x.grad, incoming * inside)


def test_codes_pass_through_several_steps() -> None:
    codes = torch.tensor([448.0, 1.0]).to(torch.float8_e4m3fn)
    steps = [_f32(1.0), _f32(2.0), _f32(1.0)]
    assert requantize_in_turn(codes, steps[:1], FP8_E4M3) is codes
    assert requantize_in_turn(codes, steps, FP8_E4M3).float().tolist() == [448, 1]
    narrow = [_f32(1.0), _f32(0.5)]
    assert requantize_in_turn(codes, narrow, FP8_E4M3).float().tolist() == [448, 2]


def test_formats_are_known_by_their_codes() -> None:
    assert format_of_codes(torch.zeros(1, dtype=torch.float8_e4m3fn)) == FP8_E4M3
    assert format_of_codes(torch.zeros(1, dtype=torch.int8)) == INT8
    assert format_of_codes(torch.zeros(1, dtype=torch.float16)) is None
    assert (FP8_E4M3.name, INT8.name) == ("fp8", "int8")
