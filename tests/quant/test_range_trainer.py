"""Ranges in training: what moves them, what stops them, and that forwards never do."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

from voxelquant.errors import CalibrationError, ConfigError
from voxelquant.numerics import INT8, fake_quantize_learned
from voxelquant.quant import QuantState, lower, quantization_of, quantize
from voxelquant.quant.quantizer import TensorQuantizer, weight_amax
from voxelquant.quant.range_trainer import RangeTrainer, quantized_weights
from voxelquant.quant.recipe import RangeTraining, parse_recipe
from voxelquant.quant.spec import QuantSpec

Calibrated = Callable[..., nn.Module]


def all_ranges(model: nn.Module) -> dict[str, torch.Tensor]:
    tensors = quantization_of(model).tensor_quantizers
    weights = {quantizer.name: quantizer for quantizer, _ in quantized_weights(model)}
    return {name: q.amax.clone() for name, q in (tensors | weights).items()}


def assert_same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, amax in found.items():
        assert torch.equal(amax, expected[name]), name


def train(
    model: nn.Module, frames: list, policy: RangeTraining, steps: int, lr: float = 1e-3
) -> RangeTrainer:
    """A training in which every parameter, ranges among them, has one rate."""
    trainer = RangeTrainer(model, policy, steps)
    optimizer = torch.optim.Adam(model.parameters(), lr)
    for step in range(steps):
        model.train()
        optimizer.zero_grad()
        model(frames[step % len(frames)]).square().mean().backward()
        trainer.before_update(step)
        optimizer.step()
        trainer.after_update(step)
    return trainer


def test_frozen_ranges_stay_while_weights_move(calibrated: Calibrated, frames_of) -> None:
    model = calibrated("residual")
    before = all_ranges(model)
    weights = [weight.detach().clone() for _, weight in quantized_weights(model)]
    trainer = train(model, frames_of("residual"), RangeTraining(), 3)
    assert trainer.learned == []
    assert_same(all_ranges(model), before)
    for old, (quantizer, new) in zip(weights, quantized_weights(model), strict=True):
        assert not torch.equal(old, new), quantizer.name


def test_a_forward_moves_no_range(calibrated: Calibrated, frames_of) -> None:
    model = calibrated("residual")
    RangeTrainer(model, RangeTraining(activation_ranges="ema", weight_ranges="max"), 10)
    before = all_ranges(model)
    model.train()
    for frame in frames_of("residual"):
        model(frame)
    assert_same(all_ranges(model), before)


def test_moving_averages_follow_the_largest_magnitude(calibrated: Calibrated, frames_of) -> None:
    model = calibrated("plain")
    policy = RangeTraining(activation_ranges="ema", ema_momentum=0.25)
    trainer = RangeTrainer(model, policy, 10)
    (name, quantizer), *_ = quantization_of(model).tensor_quantizers.items()
    seen: list[float] = []
    quantizer.register_forward_pre_hook(
        lambda m, args: seen.append(float(args[0].detach().abs().max()))
    )
    expected = float(quantizer.amax)
    model.train()
    for step, frame in enumerate(frames_of("plain")):
        seen.clear()
        model(frame)
        trainer.after_update(step)
        expected = 0.75 * expected + 0.25 * max(seen)
        assert float(quantizer.amax) == pytest.approx(expected, rel=1e-6), name


def test_moving_averages_take_the_largest_of_all_processes(calibrated: Calibrated) -> None:
    model = calibrated("plain")
    trainer = RangeTrainer(model, RangeTraining(activation_ranges="ema", ema_momentum=1.0), 10)
    trainer.after_update(0, lambda values: torch.full_like(values, 7.5))
    ranges = quantization_of(model).tensor_quantizers.values()
    assert {float(quantizer.amax) for quantizer in ranges} == {7.5}


def test_a_step_without_active_sites_says_nothing_of_a_range(calibrated: Calibrated) -> None:
    model = calibrated("plain")
    trainer = RangeTrainer(model, RangeTraining(activation_ranges="ema"), 10)
    before = all_ranges(model)
    for quantizer in quantization_of(model).tensor_quantizers.values():
        quantizer.train()
        assert quantizer(torch.empty(0, 3)).shape == (0, 3)
    trainer.after_update(0)
    assert_same(all_ranges(model), before)


def test_evaluation_leaves_the_averages_alone(calibrated: Calibrated, frames_of) -> None:
    model = calibrated("plain")
    trainer = RangeTrainer(model, RangeTraining(activation_ranges="ema"), 10)
    before = all_ranges(model)
    model.eval()
    model(frames_of("plain")[0].replace_features(frames_of("plain")[0].features * 50))
    trainer.after_update(0)
    assert_same(all_ranges(model), before)


def test_ranges_of_weights_are_their_maxima_after_every_step(
    calibrated: Calibrated, frames_of
) -> None:
    model = calibrated("residual")
    train(model, frames_of("residual"), RangeTraining(weight_ranges="max", freeze_after=1.0), 3)
    for quantizer, weight in quantized_weights(model):
        assert torch.equal(quantizer.amax, weight_amax(weight, INT8)), quantizer.name


@pytest.mark.parametrize("activations", ["ema", "learned"])
@pytest.mark.parametrize("weights", ["max", "learned"])
def test_nothing_moves_a_range_once_it_is_frozen(
    calibrated: Calibrated, frames_of, activations: str, weights: str
) -> None:
    policy = RangeTraining(
        activation_ranges=activations, weight_ranges=weights, freeze_after=0.5, ema_momentum=0.5
    )
    model, frames = calibrated("residual"), frames_of("residual")
    trainer = RangeTrainer(model, policy, 6)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    history = [all_ranges(model)]
    for step in range(6):
        model.train()
        optimizer.zero_grad()
        model(frames[step % 4]).square().mean().backward()
        trainer.before_update(step)
        optimizer.step()
        trainer.after_update(step)
        history.append(all_ranges(model))
    for name in history[0]:
        assert not torch.equal(history[0][name], history[3][name]), name
        assert torch.equal(history[3][name], history[6][name]), name


def test_learned_ranges_begin_at_the_calibrated_ones_bit_for_bit(
    calibrated: Calibrated, frames_of
) -> None:
    model, frame = calibrated("residual"), frames_of("residual")[0]
    before, expected = all_ranges(model), model.eval()(frame)
    RangeTrainer(model, RangeTraining(activation_ranges="learned", weight_ranges="learned"), 10)
    assert_same(all_ranges(model), before)
    assert torch.equal(model.eval()(frame), expected)


def test_a_learned_range_has_the_papers_gradient_scale_over_active_elements() -> None:
    quantizer = TensorQuantizer(QuantSpec(), "t")
    quantizer.set_amax(1.5)
    growth = quantizer.learn()
    for rows in (10, 1000):
        x = torch.randn(rows, 4, generator=torch.Generator().manual_seed(rows))
        growth.grad = None
        quantizer(x).sum().backward()
        amax = torch.tensor(1.5, requires_grad=True)
        fake_quantize_learned(x, amax, (rows * 4 * 127) ** -0.5).sum().backward()
        assert growth.grad is not None
        assert amax.grad is not None
        # d/d growth = amax * d/d amax
        assert growth.grad.item() == pytest.approx(1.5 * amax.grad.item(), rel=1e-5)


@pytest.mark.parametrize("growth", [-1e9, -20.0, 20.0, 1e9])
def test_a_learned_range_stays_above_0_and_finite(growth: float) -> None:
    quantizer = TensorQuantizer(QuantSpec(granularity="per_channel", method="max"), "w", 2)
    quantizer.set_amax(torch.tensor([1e-5, 1.0]))
    nn.init.constant_(quantizer.learn(), growth)
    assert bool(torch.isfinite(quantizer.amax).all())
    assert bool((quantizer.amax >= 127 * 2.0**-23).all())  # what fp16 storage keeps apart


def test_a_range_is_not_learned_before_it_is_calibrated() -> None:
    with pytest.raises(CalibrationError, match="need a calibrated one"):
        TensorQuantizer(QuantSpec(), "t").learn()


def test_an_uncalibrated_model_is_refused(make_network, frames_of) -> None:
    frame = frames_of("plain")[0]
    model = quantize(make_network("plain"), "int8", example=frame)
    with pytest.raises(CalibrationError, match="need a calibrated one"):
        RangeTrainer(model, RangeTraining(activation_ranges="ema"), 3)


@pytest.mark.parametrize("bits", [4, 8])
def test_trained_ranges_reach_the_state_and_the_engine(
    calibrated: Calibrated, frames_of, make_network, bits: int
) -> None:
    recipe = parse_recipe({"name": "r", "weights": {"bits": bits}}, "r")
    model, frames = calibrated("residual", recipe), frames_of("residual")
    before = all_ranges(model)
    policy = RangeTraining(activation_ranges="learned", weight_ranges="learned", freeze_after=1.0)
    train(model, frames, policy, 4, lr=1e-2)
    assert all(not torch.equal(amax, before[name]) for name, amax in all_ranges(model).items())
    state = QuantState.of(model)
    applied = state.apply(make_network("residual"))
    assert_same(all_ranges(applied), all_ranges(model))
    # What is deployed computes what was trained, as far as the dense head's mode allows.
    torch.testing.assert_close(model.eval()(frames[0]), _with_head_of(applied, model)(frames[0]))
    assert bool(torch.isfinite(lower(model)(frames[0])).all())


def _with_head_of(applied: nn.Module, model: nn.Module) -> nn.Module:
    applied.head.load_state_dict(model.head.state_dict())
    return applied.eval()


def test_autocast_does_not_reach_the_fake_quantized_part(calibrated: Calibrated, frames_of) -> None:
    model, frame = calibrated("plain"), frames_of("plain")[0]
    expected = model.eval()(frame)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = model(frame)
    assert found.features.dtype == torch.float32
    assert torch.equal(found.features, expected.features)


def test_averages_that_never_freeze_are_refused() -> None:
    section = {"activation_ranges": "ema", "freeze_after": 1.0}
    with pytest.raises(ConfigError, match=r"qat: got .*give freeze_after below 1"):
        parse_recipe({"name": "r", "qat": section}, "r")
