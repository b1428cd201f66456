import copy
import math

import pytest
import torch

from voxelquant.errors import CalibrationError
from voxelquant.numerics import FP8_E4M3, INT4, INT8, fake_quantize
from voxelquant.quant.quantizer import QuantizerMode, TensorQuantizer, weight_amax
from voxelquant.quant.spec import QuantSpec
from voxelquant.quant.stored_weight import encode_weight, weight_codes

PER_CHANNEL = QuantSpec(granularity="per_channel", method="max")


def test_an_uncalibrated_quantizer_names_itself_when_read_or_run() -> None:
    quantizer = TensorQuantizer(QuantSpec(), "backbone.conv2.0")
    assert not quantizer.calibrated
    assert math.isnan(quantizer.stored_amax.item())
    for read in (lambda: quantizer.amax, lambda: quantizer.scale, lambda: quantizer(torch.ones(2))):
        with pytest.raises(CalibrationError, match=r"backbone\.conv2\.0: got a quantizer without"):
            read()


def test_modes_off_observe_quantize() -> None:
    quantizer = TensorQuantizer(QuantSpec(), "t")
    x = torch.tensor([[0.0, -3.0, 1.26]])
    quantizer.mode = QuantizerMode.OFF
    assert quantizer(x) is x
    quantizer.start_observing()
    assert quantizer(x) is x
    assert not quantizer.calibrated  # watching chooses nothing
    histogram = quantizer.stop_observing()
    assert (histogram.largest, histogram.zeros, histogram.total) == (3.0, 1.0, 3.0)
    quantizer.set_amax(2.0)
    assert torch.equal(quantizer(x), fake_quantize(x, torch.tensor(2.0)))


def test_a_shared_tensor_is_counted_once_and_a_new_one_again() -> None:
    quantizer = TensorQuantizer(QuantSpec(), "t")
    quantizer.start_observing()
    x = torch.ones(5)
    quantizer(x)
    quantizer(x)
    quantizer(x.clone())
    assert quantizer.stop_observing().total == 10


def test_a_range_whose_step_vanishes_in_float32_is_refused() -> None:
    """Half the smallest subnormal, 2**-150, rounds to zero; what is above it has a step."""
    quantizer = TensorQuantizer(QuantSpec(), "t")
    step = 2.0**-149
    quantizer.set_amax(64 * step)
    assert quantizer.scale == step
    with pytest.raises(CalibrationError, match=r"t: got a range of 8.8.*e-44, need one whose step"):
        quantizer.set_amax(63 * step)
    assert quantizer.amax == 64 * step
    with pytest.raises(CalibrationError, match="in channel 1, need one whose step"):
        TensorQuantizer(PER_CHANNEL, "w", 2).set_amax(torch.tensor([1.0, step]))


@pytest.mark.parametrize("bad", [0.0, -1.0, math.nan, math.inf])
def test_ranges_are_positive_and_finite(bad: float) -> None:
    with pytest.raises(CalibrationError, match="t: got a range of"):
        TensorQuantizer(QuantSpec(), "t").set_amax(bad)
    with pytest.raises(CalibrationError, match="in channel 1"):
        TensorQuantizer(PER_CHANNEL, "w", 2).set_amax(torch.tensor([1.0, bad]))
    with pytest.raises(CalibrationError, match="shape"):
        TensorQuantizer(PER_CHANNEL, "w", 2).set_amax(1.0)


def test_ranges_travel_in_the_state_dict_and_copies_are_independent() -> None:
    quantizer = TensorQuantizer(QuantSpec(), "t")
    quantizer.set_amax(2.5)
    other = TensorQuantizer(QuantSpec(), "t")
    other.load_state_dict(quantizer.state_dict())
    assert other.amax == 2.5
    twin = copy.deepcopy(quantizer)
    twin.set_amax(1.0)
    assert quantizer.amax == 2.5


def test_gradients_are_clipped_straight_through() -> None:
    quantizer = TensorQuantizer(PER_CHANNEL, "w", 2)
    quantizer.set_amax(torch.tensor([1.0, 2.0]))
    weight = torch.tensor([[0.5, 1.5], [1.5, -2.5]]).view(2, 1, 1, 1, 2).requires_grad_()
    quantizer(weight).sum().backward()
    assert weight.grad is not None
    assert weight.grad.flatten().tolist() == [1.0, 0.0, 1.0, 0.0]


def test_weight_ranges_are_channel_maxima() -> None:
    weight = torch.randn(6, 3, 3, 3, 5)
    expected = torch.stack([channel.abs().max() for channel in weight])
    assert torch.equal(weight_amax(weight, INT8), expected)


def test_a_dead_channel_takes_the_range_of_its_layer() -> None:
    weight = torch.randn(3, 1, 1, 1, 4)
    weight[1] = 0.0
    amax = weight_amax(weight, INT8)
    assert amax[1] == weight.abs().max()
    assert bool((weight_amax(torch.zeros(2, 1, 1, 1, 3), INT8) > 0).all())


@pytest.mark.parametrize("fmt", [INT8, INT4, FP8_E4M3], ids=["int8", "int4", "fp8"])
@pytest.mark.parametrize("exponent", range(-28, 12, 2))
def test_every_channel_survives_fp16_storage(fmt, exponent) -> None:
    """From fp16 subnormals to large weights: the stored form finds its codes again."""
    generator = torch.Generator().manual_seed(exponent + 100)
    weight = torch.randn(8, 3, 3, 3, 16, generator=generator) * 2.0**exponent
    weight = weight.half().float()
    amax = weight_amax(weight, fmt)
    stored = encode_weight(weight, amax, fmt, "layer")
    assert torch.equal(weight_codes(stored, amax, fmt), weight_codes(weight, amax, fmt))
