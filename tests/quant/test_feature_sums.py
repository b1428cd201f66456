"""Sums in the code of a forward, on this package's own tensors: no spconv is needed for these."""

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import voxelquant as vq
from voxelquant.errors import GraphError
from voxelquant.quant import quantization_of
from voxelquant.quant.feature_sums import QuantFeatureAdd, SumsOfForward, _frames
from voxelquant.sparse import SparseAdd, SparseSequential, SparseTensor, SubMConv3d


class Block(nn.Module):
    """relu(conv2(relu(conv1(x))) + x), its sum written in one of several ways."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way = way
        self.conv1, self.conv2 = SubMConv3d(8, 8, 3), SubMConv3d(8, 8, 3)
        self.relu1, self.relu2 = nn.ReLU(inplace=True), nn.ReLU()
        if way == "module":
            self.add = SparseAdd()

    def forward(self, x: SparseTensor) -> SparseTensor:
        out = self.conv1(x)
        out = self.conv2(out.replace_features(self.relu1(out.features)))
        out = self.total(out, x)
        return out.replace_features(self.relu2(out.features))

    def total(self, out: SparseTensor, x: SparseTensor) -> SparseTensor:
        if self.way == "module":
            return self.add(out, x)
        a, b = out.features, x.features
        if self.way == "in place":
            a += b
            return out
        if self.way == "add_":
            return out.replace_features(a.add_(b))
        ways = {
            "plus": lambda: a + b,
            "torch.add": lambda: torch.add(a, other=b),
            "sum": lambda: sum([a, b]),
            "copied": lambda: a.clone().contiguous() + b.float(),
        }
        return out.replace_features(ways[self.way]())


WAYS = ["plus", "torch.add", "sum", "copied", "in place", "add_"]


class Net(nn.Module):
    def __init__(self, way: str) -> None:
        super().__init__()
        self.stem = SparseSequential(SubMConv3d(5, 8, 3), nn.ReLU())
        self.blocks = nn.ModuleList([Block(way), Block(way)])
        self.last = SubMConv3d(8, 6, 3)

    def forward(self, x: SparseTensor) -> SparseTensor:
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.last(x)


def build(way: str) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return Net(way).eval()


@pytest.fixture
def pair(make_frame) -> Any:
    """Calibrated networks, sums in the code and sums by modules, with the same weights."""

    def calibrated(way: str) -> tuple[nn.Module, nn.Module]:
        frames = [make_frame(seed) for seed in range(3)]
        models = [vq.quantize(build(kind)) for kind in (way, "module")]
        for model in models:
            vq.calibrate(model, frames)
        return models[0], models[1]

    return calibrated


@pytest.mark.parametrize("way", WAYS)
def test_a_sum_in_the_code_is_quantized_as_one_by_a_module(pair, make_frame, way: str) -> None:
    coded, by_module = pair(way)
    plan = quantization_of(coded).plan
    assert plan == quantization_of(by_module).plan
    assert [n.path for n in plan.graph.nodes if n.kind == "add"] == ["blocks.0.add", "blocks.1.add"]
    mine, other = vq.QuantState.of(coded), vq.QuantState.of(by_module)
    assert all(torch.equal(mine.tensors[key], other.tensors[key]) for key in other.tensors)
    x = make_frame(9)
    with torch.no_grad():
        assert torch.equal(coded(x).features, by_module(x).features)
        assert not torch.equal(coded(x).features, build(way)(x).features)


@pytest.mark.parametrize("ranges", ["frozen", "learned"])
@pytest.mark.parametrize("way", WAYS)
def test_gradients_are_those_of_the_module(pair, make_frame, way: str, ranges: str) -> None:
    models = pair(way)
    for model in models:
        model.train()
        if ranges == "learned":  # autograd tells if it kept an operand that is written over
            for quantizer in quantization_of(model).tensor_quantizers.values():
                quantizer.learn()
        model(make_frame(9)).features.square().sum().backward()
    for (name, mine), (_, other) in zip(*(m.named_parameters() for m in models), strict=True):
        assert mine.grad is not None, name
        assert mine.grad.abs().sum() > 0, name
        assert torch.equal(mine.grad, other.grad), name


def test_copies_pickles_and_states_compute_the_same(pair, make_frame, tmp_path) -> None:
    coded, _ = pair("plus")
    x = make_frame(9)
    vq.QuantState.of(coded).save(tmp_path / "state.safetensors")
    torch.save(coded.state_dict(), tmp_path / "weights.pt")
    others = {
        "deepcopy": copy.deepcopy(coded),
        "pickle": pickle.loads(pickle.dumps(coded)),
        "state": vq.QuantState.load(tmp_path / "state.safetensors").apply(build("plus")),
        "state dict": copy.deepcopy(coded),
    }
    for module in others["state dict"].modules():
        if hasattr(module, "stored_amax"):
            module.stored_amax.fill_(1e-3)
    others["state dict"].load_state_dict(torch.load(tmp_path / "weights.pt", weights_only=True))
    with torch.no_grad():
        expected = coded(x).features
        for name, other in others.items():
            assert torch.equal(other(x).features, expected), name
    copied = others["deepcopy"].blocks[0]
    assert isinstance(copied, Block)
    assert isinstance(copied, SumsOfForward)
    assert copied.add is not coded.blocks[0].add


def test_the_float_model_and_its_class_stay_as_they_are(make_frame) -> None:
    model = build("plus")
    before = [type(module) for module in model.modules()]
    vq.calibrate(vq.quantize(model), [make_frame(0)])
    assert [type(module) for module in model.modules()] == before
    assert not model.blocks[0]._forward_hooks


class NestedNet(nn.Module):
    """Sums in a block, in a block inside of it, in its container, and one of other numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.inner, self.last = SubMConv3d(5, 8, 3), Block("plus"), SubMConv3d(8, 8, 3)
        self.helper = Helper()

    def forward(self, x: SparseTensor) -> SparseTensor:
        x = self.stem(x)
        unrelated = torch.ones(4, 2) + torch.ones(4, 2)  # a sum, but none of features
        y = self.inner(self.helper(x))
        y = y.replace_features(y.features + x.features)
        return self.last(y.replace_features(y.features * unrelated.mean() / 2.0))


class Helper(nn.Module):
    def forward(self, x: SparseTensor) -> SparseTensor:
        assert (torch.ones(3, 3) + torch.ones(3, 3)).sum() == 18
        return x


def test_sums_of_inner_modules_and_of_other_numbers_are_told_apart(make_frame) -> None:
    model = NestedNet()
    with pytest.raises(GraphError, match=r"^last: consumes features .* \(mul in 'the model' made"):
        vq.quantize(model, example=make_frame(0))

    class Net(NestedNet):
        def forward(self, x: SparseTensor) -> SparseTensor:
            x = self.stem(x)
            assert (torch.ones(4, 2) + torch.ones(4, 2)).sum() == 16
            y = self.inner(self.helper(x))
            return self.last(y.replace_features(y.features + x.features))

    torch.manual_seed(0)
    qmodel = vq.quantize(Net().eval(), example=make_frame(0))
    sums = [n for n in quantization_of(qmodel).plan.graph.nodes if n.kind == "add"]
    # The sum of ones is counted, so that the quantized forward finds the second by its number.
    assert [n.path for n in sums] == ["inner.add", "add2"]
    vq.calibrate(qmodel, [make_frame(0)])
    calls: list[str] = []
    for name, module in qmodel.named_modules():
        if isinstance(module, QuantFeatureAdd):
            module.register_forward_hook(lambda m, a, o, name=name: calls.append(name))
    qmodel(make_frame(1))
    assert calls == ["inner.add", "add2"]


class Changing(Block):
    """A block whose code changed after it was traced."""

    skip = True

    def total(self, out: SparseTensor, x: SparseTensor) -> SparseTensor:
        return super().total(out, x) if self.skip else out


def test_a_forward_that_no_longer_sums_is_named(make_frame) -> None:
    qmodel = vq.quantize(nn.Sequential(SubMConv3d(5, 8, 3), Changing("plus")))
    vq.calibrate(qmodel, [make_frame(0)])
    qmodel[1].skip = False
    with pytest.raises(GraphError, match=r"a forward of Changing with 0 sums .* need at least 1"):
        qmodel(make_frame(0))


class Interrupted(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        raise KeyboardInterrupt


def test_an_interrupt_leaves_no_watch_behind(pair, make_frame) -> None:
    coded, _ = pair("plus")
    with torch.no_grad():
        expected = coded(make_frame(9)).features
        relu = coded.blocks[0].relu2
        coded.blocks[0].relu2 = Interrupted()
        with pytest.raises(KeyboardInterrupt):
            coded(make_frame(9))
        coded.blocks[0].relu2 = relu
        assert not _frames.stack
        assert torch.equal(torch.ones(2, 2) + torch.ones(2, 2), torch.full((2, 2), 2.0))
        assert torch.equal(coded(make_frame(9)).features, expected)


def test_the_integer_engine_refuses_sums_in_code(pair) -> None:
    coded, by_module = pair("plus")
    vq.lower(by_module)
    with pytest.raises(GraphError, match=r"^blocks\.0\.add: got a sum in the code.*FileRunner"):
        vq.lower(coded)


@pytest.mark.parametrize("operation", ["mul_", "scaled", "setitem", "sigmoid"])
def test_what_the_graph_cannot_express_is_named(make_frame, operation: str) -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = SubMConv3d(5, 8, 3), SubMConv3d(8, 8, 3)

        def forward(self, x: SparseTensor) -> SparseTensor:
            x = self.first(x)
            features = x.features
            if operation == "mul_":
                features.mul_(2.0)
            elif operation == "setitem":
                features[features < 0] = 0.0
            elif operation == "scaled":
                features = torch.add(features, features, alpha=2)
            else:
                features = torch.sigmoid(features)
            return self.second(x.replace_features(features))

    word = {"setitem": "__setitem__", "scaled": "add"}.get(operation, operation)
    with pytest.raises(GraphError, match=rf"\b{word} in 'the model'"):
        vq.quantize(Model(), example=make_frame(0))
