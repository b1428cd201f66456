"""The law of numbers, property by property."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from voxelquant.numerics import (
    FP8_E4M3,
    INT4,
    INT8,
    IntFormat,
    add_dequantized,
    dequantize,
    dequantize_accumulator,
    epilogue_multiplier,
    fake_quantize,
    fake_quantize_learned,
    quantize,
    round_to_float16,
    scale_from_amax,
)

ALL_CODES = torch.arange(-128, 128, dtype=torch.int8)
# Normal float32 scales only: below, amax / 127 itself is rounded to a few bits.
amaxes = st.floats(127 * 2.0**-126, 2.0**127, width=32, allow_subnormal=False)


def _f32(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float32)


@given(amaxes, st.sampled_from([INT8, INT4, IntFormat(2)]))
def test_scale_is_the_float32_quotient(amax: float, fmt: IntFormat) -> None:
    assert scale_from_amax(_f32(amax), fmt).item() == float(np.float32(amax) / np.float32(fmt.qmax))


@given(amaxes, st.sampled_from([INT8, INT4]))
def test_amax_has_the_largest_code_and_its_negative_one_more_than_the_smallest(
    amax: float, fmt: IntFormat
) -> None:
    scale = scale_from_amax(_f32(amax), fmt)
    assert quantize(torch.tensor([amax, -amax]), scale, fmt).tolist() == [fmt.qmax, -fmt.qmax]


@given(amaxes)
def test_every_code_survives_the_round_trip(amax: float) -> None:
    scale = scale_from_amax(_f32(amax))
    values = dequantize(ALL_CODES, scale)
    keeps = values.isfinite()  # the largest ranges overflow at -128
    assert keeps[1:].all()
    assert torch.equal(quantize(values, scale)[keeps], ALL_CODES[keeps])


@pytest.mark.parametrize("scale", [2.0**-126, 2.0**-20, 0.25, 1.0, 2.0**100])
def test_ties_go_to_even(scale: float) -> None:
    halves = torch.arange(-130, 130, dtype=torch.float32) + 0.5
    expected = [min(max(round(h), -128), 127) for h in halves.tolist()]  # Python: half to even
    assert quantize(halves * scale, _f32(scale)).tolist() == expected


@pytest.mark.parametrize("step", [-1, 1])
def test_the_float_next_to_a_tie_goes_to_its_own_side(step: int) -> None:
    ties = np.arange(-127, 127, dtype=np.float32) + np.float32(0.5)
    beside = torch.from_numpy(np.nextafter(ties, np.float32(step) * np.inf, dtype=np.float32))
    expected = np.floor(ties) if step < 0 else np.ceil(ties)
    assert quantize(beside, _f32(1.0)).tolist() == expected.astype(int).tolist()


def test_values_beyond_the_range_saturate() -> None:
    wild = torch.tensor([1e30, -1e30, math.inf, -math.inf, 127.49, 127.5, -128.5, -128.51])
    assert quantize(wild, _f32(1.0)).tolist() == [127, -128, 127, -128, 127, 127, -128, -128]
    assert quantize(wild, _f32(1.0), INT4).tolist() == [7, -8, 7, -8, 7, 7, -8, -8]


def test_a_subnormal_scale_still_gives_codes_in_range() -> None:
    scale = scale_from_amax(_f32(1e-40))
    assert 0 < scale.item() < 2.0**-126
    codes = quantize(torch.tensor([1e-40, -1e-40, 0.0, 1.0]), scale)
    assert codes.tolist() == [127, -127, 0, 127]


def test_division_is_not_multiplication_by_the_reciprocal() -> None:
    """The case that a reciprocal gets wrong, held: 2.5 steps of 0.1 up to the last bit."""
    x = (torch.arange(-128, 128, dtype=torch.float32) + 0.5) * torch.linspace(0.01, 1, 500)[:, None]
    scale = torch.linspace(0.01, 1, 500)[:, None]
    exact = np.rint(x.numpy() / scale.numpy()).clip(-128, 127).astype(np.int8)
    by_reciprocal = np.rint(x.numpy() * (np.float32(1) / scale.numpy())).clip(-128, 127)
    differing = np.argwhere(exact != by_reciprocal.astype(np.int8))
    assert len(differing) > 1000
    assert np.array_equal(quantize(x, scale).numpy(), exact)
    one = _f32(x[tuple(differing[0])].item()), _f32(scale[differing[0][0], 0].item())
    assert quantize(*one).item() == exact[tuple(differing[0])]
    assert quantize(*one).item() != by_reciprocal[tuple(differing[0])]


def test_a_division_in_float64_is_another_law() -> None:
    """Rounding the quotient to float32 first makes ties that float64 does not see."""
    x, scale = torch.rand(2_000_000, generator=torch.Generator().manual_seed(0)) * 12.7, _f32(0.1)
    in_double = torch.round(x.double() / scale.double()).clamp(-128, 127).to(torch.int8)
    differing = int((quantize(x, scale) != in_double).sum())
    assert 0 < differing < 200


@given(
    st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=50),
    amaxes,
    st.sampled_from([INT8, INT4]),
)
def test_fake_quantize_is_quantize_then_dequantize_bit_for_bit(
    values: list[float], amax: float, fmt: IntFormat
) -> None:
    x = torch.tensor(values, dtype=torch.float32)
    scale = scale_from_amax(_f32(amax), fmt)
    expected = dequantize(quantize(x, scale, fmt), scale)
    # `==`, not the bits of zero: -0.0 and 0.0 are one code.
    assert torch.equal(fake_quantize(x, _f32(amax), fmt), expected)


def test_fake_quantize_per_channel() -> None:
    weight = torch.randn(6, 3, 3, 3, 4)
    amax = weight.abs().amax((1, 2, 3, 4), keepdim=True)
    out = fake_quantize(weight, amax)
    for channel in range(6):
        assert torch.equal(out[channel], fake_quantize(weight[channel], amax[channel]))


def test_gradient_passes_up_to_amax_inclusive() -> None:
    above = float(np.nextafter(np.float32(2), np.float32(3)))
    x = torch.tensor([0.0, 1.9, 2.0, above, -2.0, -above, 50.0, math.nan], requires_grad=True)
    amax = torch.tensor(2.0, requires_grad=True)
    upstream = torch.arange(1.0, 9.0)
    fake_quantize(x, amax).backward(upstream)
    assert x.grad is not None
    assert x.grad.tolist() == [1, 2, 3, 0, 5, 0, 0, 0]
    assert amax.grad is None


def learned_gradients(
    x: Tensor, amax: Tensor, incoming: Tensor, fmt: IntFormat, grad_scale: float = 1.0
) -> tuple[Tensor, Tensor, Tensor]:
    """Output and the gradients of x and of the range."""
    x, amax = x.clone().requires_grad_(), amax.clone().requires_grad_()
    out = fake_quantize_learned(x, amax, grad_scale, fmt)
    out.backward(incoming)
    assert x.grad is not None
    assert amax.grad is not None
    return out.detach(), x.grad, amax.grad


@given(st.integers(0, 10_000), st.sampled_from([INT8, INT4]), st.floats(0.01, 100.0))
def test_the_gradient_of_a_range_is_the_published_formula(
    seed: int, fmt: IntFormat, amax: float
) -> None:
    generator = torch.Generator().manual_seed(seed)
    x, incoming = (torch.randn(50, generator=generator, dtype=torch.float64) for _ in range(2))
    x, incoming = (x * amax).float(), incoming.float()
    out, of_x, of_amax = learned_gradients(x, _f32(amax), incoming, fmt)
    assert torch.equal(out, fake_quantize(x, _f32(amax), fmt))
    step = scale_from_amax(_f32(amax), fmt)
    v = (x / step).double()
    inside = v.abs() <= fmt.qmax
    of_step = torch.where(inside, v.round() - v, v.round().clamp(fmt.qmin, fmt.qmax))
    expected = float((of_step * incoming.double()).sum()) / fmt.qmax  # ∂step/∂amax
    assert of_amax.item() == pytest.approx(expected, rel=1e-4, abs=1e-4)
    assert torch.equal(of_x, incoming * inside)


@given(st.integers(0, 10_000), st.sampled_from([INT8, INT4]))
def test_the_gradient_of_a_range_is_a_slope_with_the_rounding_error_held(
    seed: int, fmt: IntFormat
) -> None:
    """Finite differences: straight through means that `round(v) - v` does not change."""
    x = torch.randn(40, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 1.5
    x = x[(x.abs() - 1.0).abs() > 1e-3].float().double()  # not at the edge of the range

    def output(amax: float) -> Tensor:
        step = amax / fmt.qmax
        held = (x * fmt.qmax).round() - x * fmt.qmax
        ends = (x * fmt.qmax).round().clamp(fmt.qmin, fmt.qmax)
        return torch.where(x.abs() <= 1.0, step * (x / step + held), step * ends)

    incoming = torch.linspace(-1, 1, len(x), dtype=torch.float64)
    slope = ((output(1.0 + 1e-4) - output(1.0 - 1e-4)) / 2e-4 * incoming).sum()
    _, _, of_amax = learned_gradients(x.float(), _f32(1.0), incoming.float(), fmt)
    assert of_amax.item() == pytest.approx(slope.item(), rel=1e-3, abs=1e-4)


def test_each_channel_has_the_gradient_of_its_own_range() -> None:
    x = torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(0))
    amax = torch.tensor([0.5, 1.0, 2.0]).view(3, 1, 1)
    incoming = torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(1))
    _, _, together = learned_gradients(x, amax, incoming, INT8, grad_scale=0.25)
    for channel in range(3):
        one = (x[channel], amax[channel], incoming[channel], INT8)
        assert together[channel].item() == pytest.approx(0.25 * learned_gradients(*one)[2].item())


def test_values_that_the_grid_holds_pull_at_no_range() -> None:
    out, _, of_amax = learned_gradients(ALL_CODES[1:] * 0.5, _f32(63.5), torch.ones(255), INT8)
    assert torch.equal(out, ALL_CODES[1:] * 0.5)
    assert of_amax.item() == 0.0


def test_torch_fake_quantize_agrees_except_at_the_documented_rate() -> None:
    """torch multiplies by the reciprocal: some codes in 10⁷ differ, each by one step."""
    x = torch.randn(10_000_000, generator=torch.Generator().manual_seed(1))
    amax = _f32(4.123)
    scale = scale_from_amax(amax)
    ours = fake_quantize(x, amax)
    theirs = torch.fake_quantize_per_tensor_affine(x, float(scale), 0, -128, 127)
    differing = ours != theirs
    assert int(differing.sum()) <= 30
    steps = ((ours - theirs)[differing] / scale).abs()
    assert torch.allclose(steps, torch.ones_like(steps))


def test_epilogue_rounds_after_every_operation() -> None:
    generator = torch.Generator().manual_seed(2)
    acc = torch.randint(-(2**30), 2**30, (5000, 8), generator=generator, dtype=torch.int32)
    multiplier = epilogue_multiplier(_f32(0.0123), torch.rand(8, generator=generator) * 1e-3)
    bias = torch.randn(8, generator=generator) * 3000
    a, m, b = acc.numpy(), multiplier.numpy(), bias.numpy()
    expected = (a.astype(np.float32) * m).astype(np.float32) + b
    assert np.array_equal(dequantize_accumulator(acc, multiplier, bias).numpy(), expected)
    fused = (a.astype(np.float32).astype(np.float64) * m + b).astype(np.float32)
    assert (fused != expected).any()  # the data can tell a fused multiply-add from the law


def test_residual_sum_rounds_each_operand() -> None:
    q_a, q_b = torch.meshgrid(ALL_CODES, ALL_CODES, indexing="ij")
    s_a, s_b = _f32(0.0371), _f32(1.93e-3)
    a, b = q_a.numpy().astype(np.float32), q_b.numpy().astype(np.float32)
    expected = a * s_a.numpy() + b * s_b.numpy()
    assert np.array_equal(add_dequantized(q_a, s_a, q_b, s_b).numpy(), expected)


def test_fp8_values_are_scaled_codes_and_saturate() -> None:
    amax = _f32(3.5)
    scale = scale_from_amax(amax, FP8_E4M3)
    assert scale.item() == float(np.float32(3.5) / np.float32(448))
    codes = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).float()
    codes = codes[codes.isfinite()]
    assert torch.equal(fake_quantize(codes * scale, amax, FP8_E4M3), codes * scale)
    wild = torch.tensor([1e9, -1e9, 3.6])
    assert fake_quantize(wild, amax, FP8_E4M3).tolist() == [3.5, -3.5, 3.5]


def test_float16_rounding_passes_the_gradient() -> None:
    x = torch.randn(100, requires_grad=True)
    y = round_to_float16(x)
    assert torch.equal(y, x.detach().half().float())
    y.backward(torch.full((100,), 3.0))
    assert x.grad is not None
    assert (x.grad == 3).all()


def test_float64_is_rounded_to_float16_once() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(300_000, generator=generator, dtype=torch.float64)
    expected = torch.from_numpy(x.numpy().astype(np.float16)).float()
    assert (expected != x.float().half().float()).any()  # by way of float32 some differ
    assert torch.equal(round_to_float16(x), expected)
    edges = torch.tensor([65504.0, 65520.0, 1e300, -1e300, 0.0], dtype=torch.float64)
    assert round_to_float16(edges).tolist() == [65504.0, math.inf, math.inf, -math.inf, 0.0]
