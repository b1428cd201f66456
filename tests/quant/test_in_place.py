"""Ranges of readers, applied in place: what the reference's residual blocks really compute."""

import dataclasses

import numpy as np
import pytest
import torch
from torch import Tensor

import voxelquant as vq
from voxelquant.errors import ConfigError, GraphError
from voxelquant.quant import quantization_of
from voxelquant.quant.calibrate import observe, set_ranges
from voxelquant.quant.compare import capture_nodes, layer_parity, real_values
from voxelquant.quant.plan_json import plan_from_json, plan_to_json
from voxelquant.sparse import SparseAdd, SparseConv3d, SparseModule, SparseTensor, SubMConv3d

IN_PLACE = vq.Recipe(name="r", ranges="in_place")


@pytest.fixture
def in_place(calibrated):
    def build(name: str, **fields: object):
        return calibrated(name, vq.Recipe(name="r", ranges="in_place", **fields))

    return build


def test_every_reader_has_a_range_of_its_own(in_place) -> None:
    plan = quantization_of(in_place("residual")).require_plan()
    node = plan.graph.node
    block_input = "conv1.0.add"
    assert plan.read_with(node("conv1.1.conv1"), block_input) == ("conv1.1.conv1/input",)
    both = ("conv1.1.conv1/input", "conv1.1.add/input")
    assert plan.read_with(node("conv1.1.add"), block_input) == both
    assert plan.read_with(node("conv1.1.add"), "conv1.1.conv2") == ("conv1.1.add/input",)
    assert plan.stored_with(block_input) == "conv1.1.conv1/input"
    assert plan.read_with(node("conv_input.0"), "@input") == ()
    assert "conv2.0/input" in plan.range_names
    assert len(plan.range_names) == sum(p == "int8" for p in plan.precision.values())
    assert plan_from_json(plan_to_json(plan)) == plan
    older = {k: v for k, v in plan_to_json(plan).items() if k != "ranges"}
    assert plan_from_json(older).ranges == "tensor"
    with pytest.raises(ValueError, match="'each'"):
        plan_from_json({**older, "ranges": "each"})


def test_layers_part_only_at_ties(in_place, frames_of, network_name) -> None:
    qmodel = in_place(network_name)
    engine = vq.lower(qmodel)
    for frame in frames_of(network_name)[:2]:
        for layer in layer_parity(qmodel, engine, frame):
            assert layer.unexplained == 0, layer


def fake_quantized(x: np.ndarray, amax: Tensor) -> np.ndarray:
    scale = np.float32(amax.numpy()) / np.float32(127)
    return np.clip(np.rint(x / scale), -128, 127).astype(np.float32) * scale


def test_the_skip_passes_both_quantizers_in_both_executions(in_place, frames_of) -> None:
    qmodel, frame = in_place("residual"), frames_of("residual")[0]
    ranges = {n: q.amax for n, q in quantization_of(qmodel).tensor_quantizers.items()}
    qmodel = set_range(qmodel, "conv1.1.conv1/input", 0.8 * ranges["conv1.1.conv1/input"])
    first, own = (
        quantization_of(qmodel).tensor_quantizers[f"conv1.1.{n}/input"].amax
        for n in ("conv1", "add")
    )
    plan = quantization_of(qmodel).require_plan()
    for model in (qmodel, vq.lower(qmodel)):
        records = capture_nodes(model, plan, frame)
        branch, skip = (real_values(x).numpy() for x in records["conv1.1.add"].inputs)
        twice = fake_quantized(fake_quantized(skip, first), own)
        if model is qmodel:  # the engine's tensor holds the first reader's codes already
            assert not np.array_equal(twice, fake_quantized(skip, own))
        total = np.maximum(fake_quantized(branch, own) + twice, 0)
        made = real_values(records["conv1.1.add"].output).numpy()
        step = quantization_of(qmodel).tensor_quantizers["conv2.0/input"].amax
        assert np.array_equal(fake_quantized(made, step), fake_quantized(total, step))


def set_range(qmodel, name: str, amax: Tensor):
    quantization_of(qmodel).tensor_quantizers[name].set_amax(amax)
    return qmodel


class ThreeReaders(SparseModule):
    """A tensor read by two convolutions, then by a sum; another summed with itself."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(4)
        self.stem, self.a, self.b = (SubMConv3d(c, 8, 3) for c in (5, 8, 8))
        self.add1, self.add2, self.twice = SparseAdd(), SparseAdd(), SparseAdd()
        self.last = SparseConv3d(8, 8, 3, 2, 1)

    def forward(self, x: SparseTensor) -> SparseTensor:
        x = self.stem(x)
        x = self.add2(self.add1(self.a(x), self.b(x)), x)
        return self.last(self.twice(x, x))


def three_readers(make_frame, recipe: vq.Recipe):
    qmodel = vq.quantize(ThreeReaders(), recipe)
    vq.calibrate(qmodel, [make_frame(seed) for seed in range(2)])
    return qmodel


def test_readers_of_one_tensor_follow_each_other(make_frame) -> None:
    qmodel = three_readers(make_frame, IN_PLACE)
    for index, name in enumerate(("a", "b", "add2")):
        set_range(qmodel, f"{name}/input", torch.tensor(2.0 - 0.3 * index))
    plan = quantization_of(qmodel).require_plan()
    node = plan.graph.node
    assert plan.read_with(node("add2"), "stem") == ("a/input", "b/input", "add2/input")
    assert plan.read_with(node("twice"), "add2") == ("twice/input",)
    engine = vq.lower(qmodel)
    for layer in layer_parity(qmodel, engine, make_frame(5)):
        assert layer.unexplained == 0, layer
    codes = capture_nodes(engine, plan, make_frame(5))["stem"].output
    x = real_values(codes).numpy()
    for amax in (2.0, 1.7, 1.4):
        x = fake_quantized(x, torch.tensor(amax))
    read = engine.add2.operand_b
    found = read.codes(codes).float() * read.scales[-1]
    assert np.array_equal(found.numpy(), x)


def test_an_fp16_reader_sees_what_was_quantized_before_it(make_frame) -> None:
    rules = [{"match": "add2", "precision": "fp16"}, {"match": "b", "precision": "fp16"}]
    qmodel = three_readers(make_frame, vq.Recipe(name="r", ranges="in_place", rules=rules))
    plan = quantization_of(qmodel).require_plan()
    assert plan.tensor_precision["stem"] == "fp16"
    assert plan.read_with(plan.graph.node("b"), "stem") == ("a/input",)
    engine, frame = vq.lower(qmodel), make_frame(5)
    for layer in layer_parity(qmodel, engine, frame):
        assert layer.unexplained == 0, layer
    for model in (qmodel, engine):
        records = capture_nodes(model, plan, frame)
        skip = real_values(records["add2"].inputs[1]).half().float().numpy()
        skip = fake_quantized(skip, quantization_of(qmodel).tensor_quantizers["a/input"].amax)
        branch = real_values(records["add2"].inputs[0]).half().float().numpy()
        total = branch + torch.from_numpy(skip).half().float().numpy()
        made = real_values(records["add2"].output).numpy()
        step = quantization_of(qmodel).tensor_quantizers["twice/input"].amax
        assert np.array_equal(fake_quantized(made, step), fake_quantized(total, step))


def test_calibration_sees_unquantized_tensors_once_for_each_reader(make_network, frames_of) -> None:
    frames = frames_of("residual")
    qmodel = vq.quantize(make_network("residual"), "nvidia")
    seen = observe(qmodel, frames)
    tied = vq.quantize(make_network("residual"), "reference")
    wanted = observe(tied, frames)
    skip, branch = wanted["conv1.0.add"], wanted["conv1.1.conv2"]
    counts = seen["conv1.1.conv1/input"]
    assert (counts.total, counts.largest) == (skip.total, skip.largest)
    summed = seen["conv1.1.add/input"]
    assert summed.total == skip.total + branch.total
    assert summed.largest == max(skip.largest, branch.largest)
    statistics = set_ranges(qmodel, seen)
    assert statistics["conv1.1.add/input"].amax == summed.largest
    assert statistics["conv1.1.add/input"].spec.method == "max"
    assert statistics["conv1.1.conv1/input"].spec.method == "mse"
    assert statistics["conv1.1.conv1/input"].amax == pytest.approx(
        set_ranges(tied, wanted)["conv1.0.add"].amax
    )


def test_an_fp16_tensor_is_counted_once_for_each_reader(make_frame) -> None:
    rules = [{"match": "add2", "precision": "fp16"}]
    recipe = vq.Recipe(name="r", ranges="in_place", rules=rules)
    frame = make_frame(0)
    seen = observe(vq.quantize(ThreeReaders(), recipe), [frame])
    assert {seen[f"{n}/input"].total for n in ("a", "b")} == {8.0 * len(frame.sites)}


def test_the_state_keeps_it(tmp_path, in_place, make_network, frames_of) -> None:
    qmodel, frame = in_place("residual"), frames_of("residual")[0]
    vq.QuantState.of(qmodel).save(tmp_path / "s.safetensors")
    again = vq.QuantState.load(tmp_path / "s.safetensors").apply(make_network("residual"))
    with torch.no_grad():
        assert torch.equal(again(frame), qmodel(frame))


def test_a_reader_outside_of_our_layers_is_refused_by_name(make_frame) -> None:
    class Leaves(ThreeReaders):
        def forward(self, x: SparseTensor) -> tuple[SparseTensor, SparseTensor]:
            x = self.stem(x)
            return self.add1(self.a(x), self.b(x)), x

    with pytest.raises(ConfigError, match=r"a quantizes stem in place .*the rest of the model"):
        vq.quantize(Leaves(), IN_PLACE, example=make_frame(0))


def test_codes_of_another_step_are_refused(in_place, frames_of) -> None:
    qmodel, frame = in_place("residual"), frames_of("residual")[0]
    engine = vq.lower(qmodel)
    plan = quantization_of(qmodel).require_plan()
    made = capture_nodes(engine, plan, frame)["conv1.0.add"].output
    wrong = dataclasses.replace(made, scale=made.scale * 2)
    with pytest.raises(GraphError, match=r"conv1\.1\.conv1: got int8 features of step"):
        engine.conv1[1].conv1(wrong)
