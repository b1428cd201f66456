"""The law inside of kernels: quotients without a division by exact rationals, codes by torch."""

from collections.abc import Iterator
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

triton = pytest.importorskip("triton")
tl = pytest.importorskip("triton.language")

from planned_index import DEVICE  # noqa: E402
from voxelquant.numerics import FP8_E4M3, INT8, quantize  # noqa: E402
from voxelquant.sparse.backends.triton.epilogue import (  # noqa: E402
    LARGEST_STEP,
    LEAST_STEP,
    divide_for_code,
    finish,
    finish_as_operand,
    load_divisor,
    load_scale,
    operand_value,
    with_reciprocal,
)


def rounded(value: Fraction) -> Fraction:
    """Nearest float32, half to even, subnormals included; overflow is left to the caller."""
    if value == 0:
        return value
    exponent = abs(value).numerator.bit_length() - abs(value).denominator.bit_length()
    if abs(value) < Fraction(2) ** exponent:
        exponent -= 1
    gap = Fraction(2) ** (max(exponent, -126) - 23)
    return round(value / gap) * gap


def quotient(x: Fraction, step: Fraction) -> Fraction:
    """`divide_for_code`, operation by operation; each is one rounding of an exact value."""
    _, high, low = map(Fraction, with_reciprocal(torch.tensor(float(step))).tolist())
    return rounded(x * high + rounded(x * low))


def code_of(ratio: Fraction) -> int:
    return round(min(max(ratio, Fraction(-128)), Fraction(127)))


def float32(mantissa: int, exponent: int) -> Fraction:
    return Fraction(mantissa) * Fraction(2) ** exponent


def clamped(x: Fraction, step: Fraction) -> Fraction:
    """As `finish` clamps what it divides."""
    return min(max(x, -128 * step), rounded(127 * step))


SIGNIFICANDS = st.integers(2**23, 2**24 - 1)
STEPS = st.builds(float32, SIGNIFICANDS, st.integers(-113, 36))  # LEAST_STEP ... LARGEST_STEP
LARGEST = float32(2**24 - 1, 104)
VALUES = st.one_of(
    st.builds(float32, SIGNIFICANDS, st.integers(-149, 104)),
    st.builds(float32, st.integers(0, 2**23 - 1), st.just(-149)),  # zero and subnormals
)


@given(STEPS)
def test_a_reciprocal_has_48_bits(step: Fraction) -> None:
    """What the bound of `divide_for_code` begins with."""
    same, high, low = map(Fraction, with_reciprocal(torch.tensor(float(step))).tolist())
    assert (same, high) == (step, rounded(1 / step))
    assert abs((high + low) * step - 1) <= Fraction(2) ** -48 + Fraction(2) ** -70


def test_the_least_and_the_largest_step() -> None:
    assert float32(2**23, -113) == LEAST_STEP
    assert float32(2**23, 37) == LARGEST_STEP


@settings(max_examples=1500)
@given(VALUES, STEPS)
@example(LARGEST, float32(2**23, -113))
@example(Fraction(0), float32(2**23, 37))
@example(float32(1, -149), float32(2**24 - 1, -113))
def test_codes_of_any_value(x: Fraction, step: Fraction) -> None:
    for value in (x, -x):
        assert code_of(quotient(clamped(value, step), step)) == code_of(rounded(value / step))


@settings(max_examples=2000)
@given(st.integers(-130, 130), STEPS, st.integers(-2, 2))
def test_ties_and_their_neighbours(code: int, step: Fraction, beside: int) -> None:
    """Values nearest to `(code + 1/2) * step`, and two units in the last place around them."""
    middle = rounded((code + Fraction(1, 2)) * step)
    gap = abs(middle) / 2**23
    x = rounded(middle + beside * gap)
    assert code_of(quotient(clamped(x, step), step)) == code_of(rounded(x / step))


def middles() -> Iterator[tuple[int, int]]:
    """`(M, e)`: `M * 2**e` between a tie k / 2 of codes and the floats beside it, M < 2**25."""
    for k in range(1, 256, 2):
        places = 25 - k.bit_length()
        for beside in (-1, 1):
            yield (k << places) + beside, -places - 1
    yield 2**25 - 1, -26  # below 1/2, a power of two, floats are twice as close


def test_codes_of_the_steps_that_the_bound_leaves_open() -> None:
    """All steps within four of a multiple of 2**17, all values that come near to a middle."""
    tried = 0
    for significand in (j * 2**17 + d for j in range(64, 129) for d in range(-4, 5) if d):
        if not 2**23 <= significand < 2**24:
            continue
        for middle, exponent in middles():
            product = significand * middle
            places = product.bit_length() - 24
            nearest = (product + (1 << (places - 1))) >> places
            if abs((nearest << places) - product) <= 4:
                x, step = (
                    Fraction(nearest << places) * Fraction(2) ** exponent,
                    Fraction(significand),
                )
                assert code_of(quotient(x, step)) == code_of(rounded(x / step))
                tried += 1
    assert tried > 100


def test_rounding_of_rationals_is_that_of_numpy() -> None:
    generator = np.random.default_rng(0)
    bits = generator.integers(0, 2**32, (2000, 2), dtype=np.uint32).view(np.float32)
    bits = bits[np.isfinite(bits).all(1) & (bits[:, 1] != 0)]
    with np.errstate(over="ignore", under="ignore"):
        ratios = bits[:, 0] / bits[:, 1]
    for (a, b), ratio in zip(bits.tolist(), ratios.tolist(), strict=True):
        if np.isfinite(ratio):
            assert rounded(Fraction(a) / Fraction(b)) == Fraction(ratio)


@pytest.fixture(autouse=True)
def quiet_overflow() -> Iterator[None]:
    """Quotients may be infinite; the interpreter's NumPy would warn."""
    with np.errstate(over="ignore", under="ignore"):
        yield


@triton.jit
def _divide(x_ptr, step_ptr, out_ptr, N: tl.constexpr):
    places = tl.program_id(0) * N + tl.arange(0, N)
    x, by = tl.load(x_ptr + places), load_divisor(step_ptr, "int8")
    tl.store(out_ptr + places, divide_for_code(x, by))


@triton.jit
def _finish(x_ptr, step_ptr, out_ptr, RELU: tl.constexpr, FORMAT: tl.constexpr, N: tl.constexpr):
    places = tl.program_id(0) * N + tl.arange(0, N)
    tl.store(
        out_ptr + places,
        finish(tl.load(x_ptr + places), load_divisor(step_ptr, FORMAT), RELU, FORMAT),
    )


@triton.jit
def _value(codes_ptr, step_ptr, out_ptr, FORMAT: tl.constexpr, N: tl.constexpr):
    places = tl.arange(0, N)
    tl.store(
        out_ptr + places,
        operand_value(tl.load(codes_ptr + places), load_scale(step_ptr, FORMAT), FORMAT),
    )


def values_around_codes(step: float) -> Tensor:
    """`[8192]` float32: ties, their neighbours, zeros, subnormals, values far beyond the codes."""
    ties = (torch.arange(-512, 512) / 2 * step).float()
    one = torch.nextafter(ties, torch.tensor(torch.inf))
    other = torch.nextafter(ties, torch.tensor(-torch.inf))
    tiny = torch.tensor([0.0, -0.0, 1e-45, -1e-45, 1.1e-38, 3e38, -3e38, 6.5e4, -6.6e4])
    generator = torch.Generator().manual_seed(0)
    rest = torch.randn(8192 - 3 * 1024 - len(tiny), generator=generator) * 150 * step
    return torch.cat([ties, one, other, tiny, rest]).to(DEVICE)


def _step(step: float) -> Tensor:
    return with_reciprocal(torch.tensor(step, dtype=torch.float32, device=DEVICE))


@pytest.mark.parametrize("step", [0.0371, 1.0, 3e-7, 2.0**-20, 977.3])
def test_quotients_of_a_kernel_are_torchs(step: float) -> None:
    x = values_around_codes(step)
    out = torch.full_like(x, torch.nan)
    _divide[(8,)](x, _step(step), out, N=1024)
    expected = x / _step(step)[0]
    near = (expected.abs() < 449) & ((expected == 0) | (expected.abs() > 2.0**-10))
    assert near.sum() > 7500
    assert torch.equal(out[near], expected[near])


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("step", [0.0371, 1.0, 3e-7, 977.3])
@pytest.mark.parametrize("fmt", [INT8, FP8_E4M3], ids=["int8", "fp8"])
def test_codes_of_a_kernel_are_those_of_the_law(fmt, step: float, relu: bool) -> None:
    x = values_around_codes(step)
    out = torch.full(x.shape, 77, dtype=fmt.dtype, device=DEVICE)
    stored = out if fmt is INT8 else out.view(torch.uint8)
    _finish[(8,)](x, _step(step), stored, relu, "int8" if fmt is INT8 else "fp8", N=1024)
    expected = quantize(x.relu() if relu else x, _step(step)[0], fmt)
    assert torch.equal(out.float(), expected.float())


@triton.jit
def _operand(
    x_ptr, step_ptr, other_ptr, out_ptr, RELU: tl.constexpr, FORMAT: tl.constexpr, N: tl.constexpr
):
    places = tl.program_id(0) * N + tl.arange(0, N)
    x, by = tl.load(x_ptr + places), load_divisor(step_ptr, FORMAT)
    scale = load_scale(other_ptr, FORMAT)
    tl.store(out_ptr + places, finish_as_operand(x, by, scale, RELU, FORMAT))


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("fmt", [INT8, FP8_E4M3], ids=["int8", "fp8"])
def test_an_operand_is_the_value_of_what_would_be_stored(fmt, relu: bool) -> None:
    step, other = 0.0371, 0.0412  # a sum may read codes with a step of its own
    x = values_around_codes(step)
    out = torch.full_like(x, torch.nan)
    name = "int8" if fmt is INT8 else "fp8"
    _operand[(8,)](x, _step(step), _step(other), out, relu, name, N=1024)
    codes = quantize(x.relu() if relu else x, _step(step)[0], fmt)
    assert torch.equal(out, codes.float() * _step(other)[0])


@pytest.mark.parametrize("relu", [False, True])
def test_fp16_results_are_rounded_once(relu: bool) -> None:
    x = values_around_codes(0.0371).clamp(-6e4, 6e4)
    out = torch.full(x.shape, torch.nan, dtype=torch.float16, device=DEVICE)
    _finish[(8,)](x, _step(1.0), out, relu, "fp16", N=1024)
    assert torch.equal(out, (x.relu() if relu else x).half())


@pytest.mark.parametrize("fmt", ["int8", "fp8"])
def test_values_of_all_codes(fmt: str) -> None:
    stored = torch.arange(256, device=DEVICE).to(torch.uint8)
    codes = stored.view(torch.int8 if fmt == "int8" else torch.float8_e4m3fn)
    out = torch.zeros(256, device=DEVICE)
    _value[(1,)](codes if fmt == "int8" else stored, _step(0.0371), out, fmt, N=256)
    expected = codes.float() * _step(0.0371)[0]
    finite = ~expected.isnan()
    assert finite.sum() == (256 if fmt == "int8" else 254)
    assert torch.equal(out[finite], expected[finite])
