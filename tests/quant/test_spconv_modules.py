"""Models built of `spconv.pytorch`, quantized in place; the oracle is this package's backbone."""

import copy
import importlib
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import voxelquant as vq
from voxelquant.detection.backbone import SpMiddleResNetFHD
from voxelquant.detection.config_schema import BackboneConfig
from voxelquant.errors import CalibrationError, GraphError, QuantStateError
from voxelquant.numerics import sqnr_db
from voxelquant.quant import QuantState, Recipe, quantization_of
from voxelquant.quant.range_trainer import RangeTrainer
from voxelquant.quant.recipe import RangeTraining
from voxelquant.sparse import SparseTensor

spconv: Any = pytest.importorskip("spconv.pytorch", reason="spconv is not installed here")
ground: Any = importlib.import_module("spconv_ground")
networks: Any = importlib.import_module("spconv_networks")
layers: Any = importlib.import_module("spconv_layers")

# spconv indexes with a list where torch wants a tuple, on purpose or not; it is their code.
pytestmark = pytest.mark.filterwarnings("ignore:Using a non-tuple sequence:UserWarning")
NAMES = ["det3d", "pcdet", "mmdet", "odd"]
FRAMES = 3
# Two executions whose quantization noise has become independent are 3 dB apart further than each
# is from the float network: codes on ties differ, and feed every later layer.
DECORRELATED_DB = 4.0


@pytest.fixture(autouse=True)
def mended() -> Any:
    with ground.spconv_mended_on_cpu():
        yield


class OwnDetector(nn.Module):
    """The det3d network, its backbone of this package's modules."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = SpMiddleResNetFHD(BackboneConfig(channels=(8, 8, 16, 24, 32)))
        self.neck = networks.Det3dDetector().neck

    def forward(self, x: SparseTensor) -> Tensor:
        return self.neck(self.backbone(x))


def own_frame(seed: int, batch: int = 1) -> SparseTensor:
    features, coords = ground.make_voxels(seed, batch=batch)
    return SparseTensor.from_coords(features, coords, ground.GRID, batch)


def frame_of(name: str, seed: int, batch: int = 1) -> Any:
    return networks.NETWORKS[name].frame(seed, batch=batch)


def run(model: nn.Module, frame: Any) -> Tensor:
    """Output of a model on a frame, which it must leave as it is."""
    arguments = frame if isinstance(frame, tuple) else (frame,)
    out = model(*(dict(x) if isinstance(x, dict) else x for x in arguments))
    return out.features if hasattr(out, "features") else out


def calibrated(name: str, recipe: Any = "int8", **options: Any) -> nn.Module:
    qmodel = vq.quantize(networks.build_network(name), recipe)
    vq.calibrate(qmodel, [frame_of(name, seed) for seed in range(FRAMES)], **options)
    return qmodel


@pytest.fixture(scope="module")
def quantized() -> dict[str, nn.Module]:
    with ground.spconv_mended_on_cpu():
        return {name: calibrated(name) for name in NAMES}


@pytest.mark.parametrize("method", ["max", "mse"])
def test_ranges_and_outputs_are_those_of_the_own_backbone(method: Any) -> None:
    theirs = calibrated("det3d", method=method)
    model = OwnDetector().eval()
    model.load_state_dict(networks.build_network("det3d").state_dict())
    ours = vq.quantize(model)
    vq.calibrate(ours, [own_frame(seed) for seed in range(FRAMES)], method=method)
    state, other = QuantState.of(theirs), QuantState.of(ours)
    assert state.tensors.keys() == other.tensors.keys()
    assert state.plan.precision == other.plan.precision
    assert state.plan.tensor_precision == other.plan.tensor_precision
    for key, value in other.tensors.items():
        # Ranges are taken from float32 sums in another order; weights are equal to the bit.
        # Candidates of MSE stand a 4096th apart, and near a tie the next one may be chosen.
        relative = {"max": 1e-5, "mse": 1e-3}[method] if "activation_amax" in key else 0.0
        torch.testing.assert_close(state.tensors[key], value, rtol=relative, atol=0.0, msg=key)
    ours = state.apply(model)
    with torch.no_grad():
        expected, found = ours(own_frame(7)), run(theirs, frame_of("det3d", 7))
        float_output = run(networks.build_network("det3d"), frame_of("det3d", 7))
    assert sqnr_db(expected, found) > sqnr_db(float_output, found) - DECORRELATED_DB


@pytest.mark.parametrize("name", NAMES)
def test_every_layer_computes_what_the_reference_does(quantized: Any, name: str) -> None:
    frame = frame_of(name, 6, batch=2)
    arguments = frame if isinstance(frame, tuple) else (frame,)
    errors = layers.layer_errors(copy.deepcopy(quantized[name]), *arguments)
    plan = quantization_of(quantized[name]).plan
    assert errors.keys() == {node.path for node in plan.graph.convs if not node.inverse}
    for path, error in errors.items():
        # float32 sums in another order; where the tensor is fp16, a few roundings to it differ.
        assert error.worst < 1e-4, (path, error)


@pytest.mark.parametrize("name", NAMES)
def test_the_quantized_model_stays_near_the_float_one(quantized: Any, name: str) -> None:
    frame = frame_of(name, 5)
    with torch.no_grad():
        expected = run(networks.build_network(name), frame)
        found = run(quantized[name], frame)
    assert 25.0 < sqnr_db(expected, found) < 60.0
    plan = quantization_of(quantized[name]).plan
    blocks = sum(node.kind == "add" for node in plan.graph.nodes)
    assert blocks == {"det3d": 8, "pcdet": 2, "mmdet": 4, "odd": 4}[name]
    raw = plan.graph.nodes[0].name
    assert {n.name for n in plan.graph.nodes if plan.precision[n.name] == "fp16"} <= {
        raw,
        *(n.name for n in plan.graph.nodes if n.kind == "to_dense"),
    }


def test_every_tensor_has_one_quantizer_in_all_its_readers(quantized: Any) -> None:
    block = quantized["det3d"].backbone.conv2[3]
    own = quantized["det3d"].backbone.conv2[4].conv1.input_quantizer
    assert block.conv1.input_quantizer is block.add.input1_quantizer
    assert quantized["det3d"].backbone.conv2[4].add.input1_quantizer is own
    assert block.add.input0_quantizer is not block.add.input1_quantizer


@pytest.mark.parametrize("name", NAMES)
def test_copies_pickles_and_states_compute_the_same(
    quantized: Any, name: str, tmp_path: Any
) -> None:
    qmodel = quantized[name]
    QuantState.of(qmodel).save(tmp_path / "ptq.safetensors")
    others = [
        copy.deepcopy(qmodel),
        pickle.loads(pickle.dumps(qmodel)),
        QuantState.load(tmp_path / "ptq.safetensors").apply(networks.build_network(name)),
    ]
    fresh = vq.quantize(networks.build_network(name), example=frame_of(name, 0))
    fresh.load_state_dict(qmodel.state_dict())
    frame = frame_of(name, 6)
    with torch.no_grad():
        expected = run(qmodel, frame)
        for other in [*others, fresh]:
            assert torch.equal(run(other, frame), expected)


def test_swapped_modules_stay_of_their_classes_and_the_float_model_as_it_is() -> None:
    model = networks.build_network("det3d")
    before = [type(module) for module in model.modules()]
    weights = copy.deepcopy(model.state_dict())
    qmodel = vq.quantize(model, example=frame_of("det3d", 0))
    assert [type(module) for module in model.modules()] == before
    assert all(torch.equal(model.state_dict()[key], value) for key, value in weights.items())
    assert isinstance(qmodel.backbone.conv_input[0], spconv.SubMConv3d)
    assert isinstance(qmodel.backbone.conv1[0], networks.Det3dBlock)
    assert isinstance(qmodel.backbone.conv1[0].bn1, nn.Identity)
    assert type(qmodel.backbone.conv_input[0]).__name__ == "QuantSubMConv3d"
    assert qmodel.backbone.conv1[0].conv1.weight.requires_grad


@pytest.mark.parametrize("name", NAMES)
def test_training_reaches_every_weight_and_lowers_the_loss(quantized: Any, name: str) -> None:
    qmodel = copy.deepcopy(quantized[name]).train()
    for module in qmodel.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()  # the dense part is not what is trained here
    frame = frame_of(name, 1, batch=2)
    with torch.no_grad():
        target = run(networks.build_network(name), frame) / 2.0
    convs = [n.path for n in quantization_of(qmodel).plan.graph.convs]
    parameters = {f"{path}.weight": qmodel.get_submodule(path).weight for path in convs}
    optimizer = torch.optim.Adam(qmodel.parameters(), lr=1e-3)
    losses = []
    for _ in range(4):
        optimizer.zero_grad()
        loss = (run(qmodel, frame) - target).square().mean()
        loss.backward()
        for key, parameter in parameters.items():
            assert parameter.grad is not None, key
            assert parameter.grad.abs().sum() > 0, key
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("name", ["det3d", "odd"])
@pytest.mark.parametrize("ranges", ["learned", "followed"])
def test_ranges_train_with_the_weights(quantized: Any, name: str, ranges: str) -> None:
    policy = RangeTraining(activation_ranges="learned", weight_ranges="learned")
    if ranges == "followed":
        policy = RangeTraining(activation_ranges="ema", weight_ranges="max")
    qmodel = copy.deepcopy(quantized[name]).train()
    before = QuantState.of(qmodel).tensors
    trainer = RangeTrainer(qmodel, policy, total_steps=4)
    optimizer = torch.optim.Adam(qmodel.parameters(), lr=1e-3)
    run(qmodel, frame_of(name, 1)).square().mean().backward()
    trainer.before_update(0)
    optimizer.step()
    trainer.after_update(0)
    after = QuantState.of(qmodel).tensors
    moved = [key for key in before if "_amax/" in key and not torch.equal(before[key], after[key])]
    assert len(moved) > 0.8 * sum("_amax/" in key for key in before)


def test_ranges_of_each_reader_as_the_reference_has_them() -> None:
    qmodel = calibrated("det3d", "nvidia")
    plan = quantization_of(qmodel).plan
    assert (plan.ranges, "backbone.conv2.3.add/input" in plan.range_names) == ("in_place", True)
    model = OwnDetector().eval()
    model.load_state_dict(networks.build_network("det3d").state_dict())
    ours = QuantState.of(qmodel).apply(model)
    with torch.no_grad():
        expected, found = ours(own_frame(7)), run(qmodel, frame_of("det3d", 7))
        plain = run(networks.build_network("det3d"), frame_of("det3d", 7))
    assert sqnr_db(expected, found) > sqnr_db(plain, found) - DECORRELATED_DB


def test_a_wrapped_model_computes_the_same(quantized: Any, tmp_path: Any) -> None:
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1
    )
    try:
        qmodel = copy.deepcopy(quantized["det3d"]).train()
        wrapped = nn.parallel.DistributedDataParallel(qmodel)
        frame = frame_of("det3d", 1)
        out = run(wrapped, frame)
        out.sum().backward()
        assert torch.equal(out, run(qmodel, frame))
        assert qmodel.backbone.conv4[4].conv2.weight.grad.abs().sum() > 0
    finally:
        torch.distributed.destroy_process_group()


def test_weight_ranges_follow_what_a_flat_weight_means(quantized: Any) -> None:
    qmodel = quantized["odd"]
    conv = qmodel.point[0]  # 8 → 12, kernel 1: the buffer is [c_in, c_out]
    columns = conv.weight.detach().reshape(8, 12).abs().amax(0)
    assert torch.equal(conv.weight_quantizer.amax, columns)
    stored = QuantState.of(qmodel).tensors["point.0.weight"]
    assert torch.equal(stored[:, 0, 0, 0].float().abs().amax(1), columns.half().float())


def test_recipes_match_module_paths_of_the_model() -> None:
    rules = [
        {"match": "*conv1.0.*", "precision": "fp16"},
        {"match": "*conv3.3.add", "output_precision": "fp16"},
        {"match": "*extra_conv.*", "weight_bits": 4},
    ]
    qmodel = calibrated("det3d", Recipe.model_validate({"name": "mixed", "rules": rules}))
    plan = quantization_of(qmodel).plan
    assert plan.precision["backbone.conv1.0.add"] == "fp16"
    assert plan.tensor_precision["backbone.conv3.3.add"] == "fp16"
    assert qmodel.backbone.extra_conv[0].weight_quantizer.spec.fmt.bits == 4
    calibrated("det3d", "reference")


def test_maps_that_a_bare_backbone_hands_out_leave_in_fp16() -> None:
    model = networks.build_network("det3d").backbone
    features, coords = ground.make_voxels(0)
    qmodel = vq.quantize(model, example=(features, coords, 1))
    outputs = quantization_of(qmodel).plan.graph.outputs
    assert outputs == ("conv1.1.add", "conv2.4.add", "conv3.4.add", "conv4.4.add", "to_dense")


def test_what_stands_between_layers_is_named() -> None:
    class Pooled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = spconv.SubMConv3d(5, 8, 3, bias=False)
            self.pool = spconv.SparseMaxPool3d(2, 2)
            self.last = spconv.SubMConv3d(8, 8, 3, bias=False)

        def forward(self, x: Any) -> Any:
            return self.last(self.pool(self.conv(x)))

    message = r"^last: consumes features .*\(SparseMaxPool3d at 'pool' made them\)"
    with pytest.raises(GraphError, match=message):
        vq.quantize(Pooled(), example=frame_of("odd", 0))


def test_the_integer_engine_refuses_with_the_way_to_go(quantized: Any) -> None:
    message = r"conv_input\.0: got a SubMConv3d of spconv, .*export_libspconv.*FileRunner"
    with pytest.raises(GraphError, match=message):
        vq.lower(quantized["det3d"])


def test_bad_input_is_named(quantized: Any) -> None:
    frame, flag = frame_of("det3d", 0)
    frame["voxels"][0] = float("nan")
    with pytest.raises(
        CalibrationError, match=r"^backbone\.conv\S+: got nan among the calibration"
    ):
        vq.calibrate(copy.deepcopy(quantized["det3d"]), [(frame, flag)])
    state, other = QuantState.of(quantized["det3d"]), networks.build_network("det3d")
    other.backbone.conv3[0].stride = [1, 2, 2]
    with pytest.raises(QuantStateError, match=r"^backbone\.conv3\.0: .* the state needs"):
        state.apply(other)
    with pytest.raises(QuantStateError, match="layer that the model lacks"):
        state.apply(networks.build_network("pcdet"))
