"""Models of every kind through quantize → calibrate → lower → export → check → run."""

import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import voxelquant as vq
from voxelquant.detection.backbone import SpMiddleResNetFHD
from voxelquant.detection.config import load_config
from voxelquant.errors import ExportError, GraphError
from voxelquant.export import FileRunner, check_file, read
from voxelquant.export.from_graph import export_libspconv
from voxelquant.export.ir import Add, Relu, SparseConvolution
from voxelquant.quant import (
    QuantState,
    Recipe,
    calibrate,
    load_recipe,
    lower,
    quantization_of,
    quantize,
)
from voxelquant.quant.recipe import Rule
from voxelquant.sparse import (
    SparseAdd,
    SparseConv3d,
    SparseInverseConv3d,
    SparseSequential,
    SparseTensor,
    SparseToDense,
    SubMConv3d,
    apply_module,
)

GRID = (9, 32, 32)


def voxels(channels: int, seed: int = 0, count: int = 400, grid=GRID) -> SparseTensor:
    generator = torch.Generator().manual_seed(seed)
    cells = torch.randperm(math.prod(grid), generator=generator)[:count]
    z, y, x = cells // (grid[1] * grid[2]), cells // grid[2] % grid[1], cells % grid[2]
    coords = torch.stack([torch.zeros_like(z), z, y, x], 1).int()
    features = torch.randn((count, channels), generator=generator)
    return SparseTensor.from_coords(features, coords, grid, 1)


def train_statistics(model: nn.Module, example: SparseTensor) -> nn.Module:
    """Batch norms with statistics of their own, as a trained model has."""
    with torch.no_grad():
        for _ in range(3):
            model.train()(example)
    return model.eval()


def normed(conv: nn.Module) -> list[nn.Module]:
    return [conv, nn.BatchNorm1d(conv.out_channels, eps=1e-3), nn.ReLU(inplace=True)]


def plain_model() -> nn.Module:
    """3 input channels, four convs, one of them (3, 1, 1), no residuals."""
    torch.manual_seed(1)
    return SparseSequential(
        *normed(SubMConv3d(3, 16, 3, bias=False)),
        *normed(SparseConv3d(16, 32, 3, 2, 1, bias=False)),
        *normed(SubMConv3d(32, 32, 3, bias=True)),
        *normed(SparseConv3d(32, 32, (3, 1, 1), (2, 1, 1), bias=False)),
        SparseToDense(),
    )


class UpDown(nn.Module):
    """A U-shaped model: down, a conv, up by the inverse conv, a skip; a sparse output."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.stem = SparseSequential(*normed(SubMConv3d(5, 16, 3, indice_key="top")))
        self.down = SparseSequential(*normed(SparseConv3d(16, 32, 3, 2, 1, indice_key="d")))
        self.low = SparseSequential(*normed(SubMConv3d(32, 32, 3)))
        self.up = SparseInverseConv3d(32, 16, 3, indice_key="d")
        self.skip = SparseAdd()
        self.relu = nn.ReLU()
        self.last = SparseSequential(*normed(SubMConv3d(16, 16, 3, indice_key="top")))

    def forward(self, x: SparseTensor) -> SparseTensor:
        x = self.stem(x)
        y = self.up(self.low(self.down(x)))
        return self.last(apply_module(self.relu, self.skip(y, x)))


def pointwise_model() -> nn.Module:
    """1x1x1 convs, submanifold and regular."""
    torch.manual_seed(3)
    return SparseSequential(
        *normed(SubMConv3d(4, 16, 3)),
        *normed(SubMConv3d(16, 32, 1, bias=False)),
        *normed(SparseConv3d(32, 16, 1)),
        *normed(SubMConv3d(16, 16, 3)),
    )


class SharedRelu(nn.Module):
    """A residual block with one ReLU module for both places, straight into a map of 5 axes."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.stem = SparseSequential(*normed(SubMConv3d(4, 16, 3)))
        self.conv1, self.conv2 = SubMConv3d(16, 16, 3), SubMConv3d(16, 16, 3)
        self.relu, self.add = nn.ReLU(inplace=True), SparseAdd()
        self.dense = SparseToDense(fold_height=False)

    def forward(self, x: SparseTensor) -> torch.Tensor:
        x = self.stem(x)
        y = self.conv2(apply_module(self.relu, self.conv1(x)))
        return self.dense(apply_module(self.relu, self.add(y, x)))


class TwoScales(nn.Module):
    """Two outputs, sparse and dense; one of them is read further on. Dilation, one key twice."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(6)
        self.stem = SubMConv3d(4, 16, 3, indice_key="k")
        self.wide = SubMConv3d(16, 16, 3, dilation=2, indice_key="k")
        self.down = SparseConv3d(16, 32, 3, 2, 1)
        self.deep = SubMConv3d(32, 32, 3)
        self.dense = SparseToDense()

    def forward(self, x: SparseTensor) -> dict[str, object]:
        half = self.down(self.wide(self.stem(x)))
        return {"half": half, "deep": self.dense(self.deep(half))}


MODELS = {"plain": (plain_model, 3), "inverse": (UpDown, 5), "pointwise": (pointwise_model, 4)}
MORE_MODELS = MODELS | {"shared relu": (SharedRelu, 4), "two scales": (TwoScales, 4)}


def calibrated(build, channels: int, recipe="int8", **frame) -> tuple[nn.Module, SparseTensor]:
    example = voxels(channels, **frame)
    qmodel = quantize(train_statistics(build(), example), recipe)
    calibrate(qmodel, [example, voxels(channels, seed=1, **frame)], method="max")
    return qmodel, example


def engine_outputs(engine: nn.Module, frame: SparseTensor, paths) -> dict[str, torch.Tensor]:
    """What the modules of the integer engine hand on, by path."""
    found: dict[str, torch.Tensor] = {}
    handles = []
    for path in paths:

        def hook(module, args, out, path=path) -> None:
            found[path] = (out.features if isinstance(out, SparseTensor) else out).clone()

        handles.append(engine.get_submodule(path).register_forward_hook(hook))
    with torch.no_grad():
        engine(frame)
    for handle in handles:
        handle.remove()
    return found


def assert_bit_equal(qmodel: nn.Module, file: Path, frame: SparseTensor) -> None:
    run = FileRunner(file)(frame.features, frame.coords_bzyx, frame.spatial_shape)
    by_module = run.by_module
    engine = engine_outputs(lower(qmodel), frame, by_module)
    assert len(engine) == len(by_module) > 0
    for path, features in engine.items():
        stored = by_module[path].features
        assert torch.equal(features.to(stored.dtype), stored), path
        if stored.dtype == torch.int8:
            assert features.dtype == torch.int8, path


@pytest.mark.parametrize("name", MORE_MODELS)
def test_models_that_are_not_centerpoint(name, tmp_path) -> None:
    qmodel, example = calibrated(*MORE_MODELS[name])
    written = export_libspconv(qmodel, tmp_path / "scn.onnx", example=example)
    assert not [d for d in check_file(written.path) if d.severity == "error"]
    assert any(conv.precision == "int8" for conv in written.graph.convs)
    assert_bit_equal(qmodel, written.path, voxels(MORE_MODELS[name][1], seed=9))


@pytest.mark.parametrize("name", MODELS)
def test_float_models_are_written_in_fp16(name, tmp_path) -> None:
    build, channels = MODELS[name]
    example = voxels(channels)
    model = train_statistics(build(), example)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    written = export_libspconv(model, tmp_path / "scn.onnx", example=example)
    assert {conv.precision for conv in written.graph.convs} == {"fp16"}
    run = FileRunner(written.path)(example.features, example.coords_bzyx, GRID)
    with torch.no_grad():
        wanted = model(example)
    wanted = wanted if isinstance(wanted, torch.Tensor) else wanted.features
    (output,) = run.outputs.values()
    error = (output.values - wanted).norm() / wanted.norm()
    # At most six layers, each rounding weights and output to 11 bits.
    assert error < 12 * 2**-11
    after = model.state_dict()
    assert all(torch.equal(value, after[key]) for key, value in before.items())


def test_a_stored_state_gives_the_same_file(tmp_path) -> None:
    qmodel, example = calibrated(*MODELS["inverse"])
    QuantState.of(qmodel).save(tmp_path / "ptq.safetensors")
    restored = QuantState.load(tmp_path / "ptq.safetensors").apply(UpDown().eval())
    first = vq.export_libspconv(qmodel, tmp_path / "first.onnx", example=example)
    second = vq.export_libspconv(restored, tmp_path / "second.onnx", example=example)
    assert first.path.read_bytes() == second.path.read_bytes()
    assert vq.check_file(first.path) == first.warnings


def test_pointwise_weights_keep_their_meaning(tmp_path) -> None:
    model = SparseSequential(SubMConv3d(4, 16, 1), SubMConv3d(16, 16, 3))
    graph = export_libspconv(model, tmp_path / "scn.onnx", example=voxels(4)).graph
    stored = torch.from_numpy(graph.initializers["spconv0.weight"])
    assert torch.equal(stored, model[0].weight.detach().half())
    assert stored.shape == (16, 1, 1, 1, 4)


def test_rulebooks_follow_sites_and_kernels(tmp_path) -> None:
    qmodel, example = calibrated(*MODELS["inverse"])
    graph = export_libspconv(qmodel, tmp_path / "scn.onnx", example=example).graph
    keys = {conv.module_path: conv.rulebook for conv in graph.convs}
    assert keys == {
        "stem.0": "top",
        "down.0": "d",
        "low.0": "subm0",
        "up": "d",
        "last.0": "top",
    }
    qmodel, example = calibrated(*MODELS["plain"])
    graph = export_libspconv(qmodel, tmp_path / "scn.onnx", example=example).graph
    assert [conv.rulebook for conv in graph.convs] == ["subm0", "", "subm1", ""]
    example = voxels(4)
    graph = export_libspconv(TwoScales().eval(), tmp_path / "fp16.onnx", example=example).graph
    assert [conv.rulebook for conv in graph.convs] == ["k", "subm0", "", "subm1"]
    assert [info.shape for info in graph.outputs][1] == (1, 32 * 5, 16, 16)


def backbone() -> nn.Module:
    torch.manual_seed(4)
    return SpMiddleResNetFHD(load_config("centerpoint_voxel0075").backbone)


@pytest.fixture(scope="module")
def exported_backbone(tmp_path_factory):
    """The published network with the published policy, on a small grid."""
    frame = {"count": 3000, "grid": (41, 64, 64)}
    qmodel, example = calibrated(backbone, 5, "reference", **frame)
    path = tmp_path_factory.mktemp("export") / "scn.onnx"
    return qmodel, example, export_libspconv(qmodel, path, example=example)


def test_backbone_has_the_published_topology(exported_backbone) -> None:
    _, _, written = exported_backbone
    graph = read(written.path)
    assert Counter(node.op_type for node in graph.nodes) == {
        "SparseConvolution": 21,
        "Add": 8,
        "Relu": 8,
        "ScatterDense": 1,
        "Reshape": 1,
    }
    keys = [conv.rulebook for conv in graph.convs]
    stages = ["subm0"] * 5 + [""] + ["subm1"] * 4 + [""] + ["subm2"] * 4 + [""] + ["subm3"] * 4
    assert keys == [*stages, ""]
    assert [n.name for n in graph.nodes[:6]] == [
        "conv0",
        "conv1",
        "conv2",
        "add0",
        "relu0",
        "conv3",
    ]
    assert [n.output for n in graph.nodes] == [str(i) for i in range(1, 40)]
    assert check_file(written.path) == []


def test_backbone_has_the_published_precisions(exported_backbone) -> None:
    graph = exported_backbone[2].graph
    precisions = [(c.precision, c.output_precision) for c in graph.convs]
    assert precisions[:3] == [("fp16", "fp16")] * 3
    assert precisions[3:20] == [("int8", "int8")] * 17
    assert precisions[20] == ("int8", "fp16")
    adds = [(n.precision, n.output_precision) for n in graph.nodes if isinstance(n, Add)]
    assert adds == [("fp16", "int8")] + [("int8", "int8")] * 7


def test_every_tensor_has_the_range_of_the_state(exported_backbone) -> None:
    qmodel, _, written = exported_backbone
    state, graph = QuantState.of(qmodel), written.graph
    maker = {node.output: node for node in graph.nodes}
    for conv in graph.convs[3:]:
        source = maker[conv.inputs[0]]
        source = maker[source.inputs[0]] if isinstance(source, Relu) else source
        assert conv.input_dynamic_range == float(state.activation_amax(source.module_path))
        amax = state.weight_amax(conv.module_path)
        assert torch.equal(torch.tensor(conv.weight_dynamic_ranges), amax)
    stored = graph.initializers["spconv5.weight"]
    assert np.array_equal(stored, state.tensors[f"{graph.convs[5].module_path}.weight"].numpy())


def test_backbone_engine_and_file_are_bit_equal(exported_backbone) -> None:
    qmodel, _, written = exported_backbone
    frame = voxels(5, seed=11, count=3000, grid=(41, 64, 64))
    assert_bit_equal(qmodel, written.path, frame)


@pytest.fixture(scope="module")
def in_place_backbone(tmp_path_factory):
    """The full-size backbone with a range for each reader, its state, and its file."""
    qmodel, example = calibrated(backbone, 5, "nvidia", count=1500, grid=(41, 64, 64))
    for name, quantizer in quantization_of(qmodel).tensor_quantizers.items():
        if name.endswith(".add/input"):  # with random weights both calibrators find one range
            quantizer.set_amax(0.8 * quantizer.amax)
    path = tmp_path_factory.mktemp("in_place") / "scn.onnx"
    return qmodel, export_libspconv(qmodel, path, example=example)


def test_ranges_of_readers_are_written_and_said(in_place_backbone) -> None:
    qmodel, written = in_place_backbone
    state = QuantState.of(qmodel)
    for node in written.graph.nodes:
        if isinstance(node, (SparseConvolution, Add)) and node.precision == "int8":
            amax = float(state.activation_amax(f"{node.module_path}/input"))
            if isinstance(node, SparseConvolution):
                assert node.input_dynamic_range == amax
            else:
                assert (node.input0_dynamic_range, node.input1_dynamic_range) == (amax, amax)
    assert {(d.severity, d.rule) for d in written.warnings} == {("warning", "range-conflict")}
    assert [d.node for d in written.warnings] == [f"add{i}" for i in range(1, 8)]


def test_the_file_of_a_backbone_quantized_in_place_equals_the_engine(in_place_backbone) -> None:
    qmodel, written = in_place_backbone
    assert_bit_equal(qmodel, written.path, voxels(5, seed=11, count=1500, grid=(41, 64, 64)))


def refused(model: nn.Module, folder: Path, message: str, error=ExportError, **options) -> None:
    options = {"example": voxels(3)} | options
    with pytest.raises(error, match=message) as raised:
        export_libspconv(model, folder / "scn.onnx", **options)
    assert "\n" not in str(raised.value)
    assert list(folder.iterdir()) == []


def test_an_uncalibrated_model_is_refused(tmp_path) -> None:
    model = plain_model().eval()
    refused(quantize(model, "int8"), tmp_path, "need its graph")
    refused(quantize(model, "int8", example=voxels(3)), tmp_path, "without a range")


def test_an_unusable_example_is_refused(tmp_path) -> None:
    model = plain_model().eval()
    refused(model, tmp_path, "0 voxels, need one frame", example=voxels(3, count=0))
    refused(model, tmp_path, "got a frame of Tensor", example=torch.zeros(3, 3))
    two = SparseTensor.from_coords(
        torch.ones(2, 3), torch.tensor([[0, 1, 1, 1], [1, 1, 1, 1]]), GRID, 2
    )
    refused(model, tmp_path, "2 samples", example=two)


def test_more_voxels_than_the_bound_are_refused(tmp_path) -> None:
    refused(plain_model().eval(), tmp_path, "output_bound is 100", output_bound=100)


def test_weights_that_are_not_finite_are_refused(tmp_path) -> None:
    model = plain_model().eval()
    with torch.no_grad():
        model[0].weight[0, 0, 0, 0, 0] = math.nan
    refused(model, tmp_path, "0: got a weight of magnitude nan")


def test_fp8_layers_are_refused_by_name(tmp_path) -> None:
    recipe = Recipe(name="mixed", rules=(Rule(match="6", precision="fp8"),))
    qmodel, example = calibrated(plain_model, 3, recipe)
    message = r"got 1 fp8 layers \(6\), libspconv computes in int8 and fp16 alone"
    refused(qmodel, tmp_path, message, example=example)


def test_four_bit_weights_are_refused(tmp_path) -> None:
    recipe = Recipe(name="w4", rules=(Rule(match="6", weight_bits=4),))
    qmodel, example = calibrated(plain_model, 3, recipe)
    refused(qmodel, tmp_path, "6: got 4-bit weights", example=example)


def test_an_fp16_reader_of_what_was_quantized_in_place_is_refused(tmp_path) -> None:
    rule = Rule(match="*conv2.3.add", precision="fp16")
    policy = load_recipe("nvidia")
    recipe = policy.model_copy(update={"rules": (*policy.rules, rule)})
    qmodel, example = calibrated(backbone, 5, recipe, count=600, grid=(41, 64, 64))
    message = r"conv2\.3\.add: got an fp16 layer that reads .*conv2\.0 after it was quantized in "
    refused(qmodel, tmp_path, message, example=example)


class LooseRelu(nn.Module):
    """The ReLU is not the only reader of its input."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.relu, self.add = SubMConv3d(3, 16, 3), nn.ReLU(), SparseAdd()

    def forward(self, x: SparseTensor) -> SparseTensor:
        y = self.conv(x)
        return self.add(y, apply_module(self.relu, y))


def test_a_relu_that_cannot_be_fused_is_refused(tmp_path) -> None:
    refused(LooseRelu(), tmp_path, "relu: got a relu that belongs to no conv")


class Outside(nn.Module):
    """Features computed by a function."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.last = SubMConv3d(3, 16, 3), SubMConv3d(16, 16, 3)

    def forward(self, x: SparseTensor) -> SparseTensor:
        y = self.conv(x)
        return self.last(y.replace_features(torch.sigmoid(y.features)))


def test_features_computed_outside_of_modules_are_refused(tmp_path) -> None:
    refused(
        Outside(),
        tmp_path,
        r"last: consumes features that no traced module produced \(sigmoid in",
        GraphError,
    )


def test_int8_on_the_raw_input_is_written_with_a_warning(tmp_path) -> None:
    qmodel, example = calibrated(plain_model, 3, Recipe(name="raw", raw_input="int8"))
    written = export_libspconv(qmodel, tmp_path / "scn.onnx", example=example)
    assert isinstance(written.graph.nodes[0], SparseConvolution)
    assert ("conv0", "fp16-into-int8") in {(d.node, d.rule) for d in written.warnings}
    assert_bit_equal(qmodel, written.path, example)
