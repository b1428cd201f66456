"""The storage law of fp8 weights: `fp16(q * scale)` gives every code back, from a least step on."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from voxelquant.errors import QuantStateError
from voxelquant.numerics import FP8_E4M3, INT8, dequantize, quantize, scale_from_amax
from voxelquant.quant.quantizer import smallest_weight_amax, weight_amax
from voxelquant.quant.stored_weight import encode_weight, verify_stored_weight, weight_codes

BITS = torch.arange(256, dtype=torch.uint8)
CODES = BITS[BITS & 0x7F != 0x7F].view(torch.float8_e4m3fn)  # all finite ones
LEAST = smallest_weight_amax(FP8_E4M3)
LARGEST = 65504.0  # of fp16


def found_again(amax: Tensor) -> Tensor:
    """For every code, whether a reader of the stored fp16 value finds it."""
    scale = scale_from_amax(amax, FP8_E4M3)
    stored = dequantize(CODES, scale).to(torch.float16)
    return quantize(stored, scale, FP8_E4M3).float() == CODES.float()


def test_the_least_step_is_two_fp16_subnormals_for_each_fp8_subnormal() -> None:
    assert scale_from_amax(torch.tensor(LEAST), FP8_E4M3).item() == 2.0**-14
    assert smallest_weight_amax(INT8) == 127 * 2.0**-23


@given(st.floats(LEAST, LARGEST, width=32))
def test_every_code_is_found_again(amax: float) -> None:
    assert found_again(torch.tensor(amax)).all()


def test_every_code_is_found_again_throughout_the_last_binades() -> None:
    """Where fp16 is subnormal: ranges 2**-11 apart from the least one up."""
    for amax in LEAST * torch.arange(1, 8, 2.0**-11):
        assert found_again(amax).all(), float(amax)


@pytest.mark.parametrize("amax", [LEAST / 4, LEAST * 0.4])
def test_below_it_subnormal_codes_are_lost(amax: float) -> None:
    lost = CODES[~found_again(torch.tensor(amax))].float().abs()
    assert len(lost) > 0
    assert lost.max() < 2.0**-5  # the smallest normal codes have the gap of the subnormals


@pytest.mark.parametrize("size", [2.0**-22, 2.0**-12, 1e-3, 0.3, 60000.0])
def test_a_weak_channel_loses_no_more_than_fp16_does(size: float) -> None:
    """A larger step makes codes smaller, not coarser, until they are subnormal."""
    generator = torch.Generator().manual_seed(3)
    weight = (torch.rand(4, 3, 3, 3, 16, generator=generator) * 2 - 1) * size
    weight = weight.half().float()
    amax = weight_amax(weight, FP8_E4M3)
    assert bool((amax >= LEAST).all())
    stored = encode_weight(weight, amax, FP8_E4M3, "layer").float()
    error = (stored - weight).abs()
    # Half a gap of codes: a sixteenth of the value, or one fp16 subnormal; fp16 rounds once more.
    assert bool((error <= weight.abs() * (2.0**-4 + 2.0**-11) + 2.0**-24).all())


def test_a_range_too_small_is_named_with_its_channel() -> None:
    weight = torch.randn(3, 1, 1, 1, 40).half().float()
    amax = weight_amax(weight, FP8_E4M3)
    weight[1] *= 1e-6 / weight[1].abs().max()
    amax[1] = 1e-6
    with pytest.raises(QuantStateError, match=r"^layer: got a weight in output channel 1 that"):
        encode_weight(weight, amax, FP8_E4M3, "layer")


def test_a_value_between_two_codes_is_no_stored_weight() -> None:
    weight = torch.randn(3, 1, 1, 1, 8).half().float()
    amax = weight_amax(weight, FP8_E4M3)
    stored = encode_weight(weight, amax, FP8_E4M3, "layer")
    verify_stored_weight(stored, amax, FP8_E4M3, "layer")
    stored[2, 0, 0, 0, 5] *= 1.01
    with pytest.raises(QuantStateError, match="output channel 2"):
        verify_stored_weight(stored, amax, FP8_E4M3, "layer")
    assert weight_codes(stored, amax, FP8_E4M3).dtype == torch.float8_e4m3fn
