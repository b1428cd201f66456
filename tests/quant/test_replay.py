"""Single layers changed by replay equal whole forwards, bit for bit, on networks of every shape."""

import copy
from collections import Counter
from collections.abc import Callable

import pytest
import torch
from torch import nn

from voxelquant.errors import GraphError
from voxelquant.quant import (
    LayerPrecision,
    Recipe,
    TensorQuantizer,
    calibrate,
    quantization_of,
    quantize,
)
from voxelquant.quant.insert import detach
from voxelquant.quant.layer_forms import LayerForms, layer_forms, with_ranges_of
from voxelquant.quant.replay import ReplayableGraph, Value
from voxelquant.quant.state import QuantState
from voxelquant.quant.substitute import substitute_modules
from voxelquant.sparse import SparseAdd, SparseTensor, SubMConv3d

EVERY_LAYER = Recipe(name="every", raw_input="int8")
CHANNELS = {"residual": 5, "plain": 3, "inverse": 5, "pointwise": 5}


@pytest.fixture(params=["one", "all-but-one"])
def mode(request: pytest.FixtureRequest) -> str:
    return request.param


def features(value: Value) -> torch.Tensor:
    return value.features if isinstance(value, SparseTensor) else value


def last_outputs(graph: ReplayableGraph, values: dict[str, Value]) -> list[torch.Tensor]:
    return [features(values[name]) for name in graph.graph.outputs]


def whole_forward(
    qmodel: nn.Module, graph: ReplayableGraph, name: str | None, changed: nn.Module | None, x
) -> list[torch.Tensor]:
    """The naive way: a model with these modules in place runs from end to end."""
    model = copy.deepcopy(qmodel)
    detach(model)
    modules = {graph.graph.node(n).path: module for n, module in graph.modules.items()}
    if name is not None:
        assert changed is not None
        modules[graph.graph.node(name).path] = changed
    substitute_modules(model, modules)
    seen: dict[str, torch.Tensor] = {}
    for node in graph.graph.nodes:
        for path in (node.path, node.relu_path):
            if path is not None:

                def keep(m, args, out, name=node.name) -> None:
                    seen[name] = features(out)

                model.get_submodule(path).register_forward_hook(keep)
    with torch.no_grad():
        model.eval()(x)
    return [seen[name] for name in graph.graph.outputs]


@pytest.fixture
def forms_of(calibrated: Callable[..., nn.Module]) -> Callable[..., tuple[nn.Module, LayerForms]]:
    def build(name: str, mode: str) -> tuple[nn.Module, LayerForms]:
        qmodel = calibrated(name, EVERY_LAYER).eval()
        return qmodel, layer_forms(qmodel, mode)

    return build


def test_a_changed_layer_equals_the_naive_forward(network_name, mode, forms_of, make_frame) -> None:
    qmodel, forms = forms_of(network_name, mode)
    x = make_frame(9, channels=CHANNELS[network_name])
    layers = [n.name for n in forms.plan.graph.nodes if n.kind in ("conv", "add")]
    assert list(forms.changed) == [n for n in layers if forms.plan.precision[n] == "int8"]
    with torch.no_grad():
        values = forms.shared.run(x)
        before = {name: features(value).clone() for name, value in values.items()}
        results = {n: forms.shared.rerun(values, n, m) for n, m in forms.changed.items()}
    for name, changed in results.items():
        made = last_outputs(forms.shared, {**values, **changed})
        naive = whole_forward(qmodel, forms.shared, name, forms.changed[name], x)
        for replayed, wanted, untouched in zip(
            made, naive, last_outputs(forms.shared, values), strict=True
        ):
            assert torch.equal(replayed, wanted), name
            assert not torch.equal(replayed, untouched), name
    # Replaying has written into nothing that was kept.
    assert all(torch.equal(before[name], features(values[name])) for name in values)


def test_the_quantized_network_equals_the_fake_quant_model(
    network_name, forms_of, make_frame
) -> None:
    qmodel, forms = forms_of(network_name, "one")
    x = make_frame(9, channels=CHANNELS[network_name])
    with torch.no_grad():
        made = last_outputs(forms.quantized, forms.quantized.run(x))
    naive = whole_forward(qmodel, forms.quantized, None, None, x)
    assert all(torch.equal(a, b) for a, b in zip(made, naive, strict=True))


def test_layers_before_the_changed_one_run_once_a_frame(forms_of, mode, make_frame) -> None:
    _, forms = forms_of("residual", mode)
    runs: Counter[str] = Counter()
    for name, module in forms.shared.modules.items():
        module.register_forward_hook(lambda m, a, o, name=name: runs.update([name]))
    with torch.no_grad():
        values = forms.shared.run(make_frame(9))
        for name, module in forms.changed.items():
            forms.shared.rerun(values, name, module)
    names = list(forms.shared.modules)
    # In the shared form a node runs once for the frame, and again for changes before it alone:
    # the network is a chain with skips, so that every change reaches all that comes after.
    changes_before = Counter(n for name in forms.changed for n in names[names.index(name) + 1 :])
    assert runs == {name: 1 + changes_before[name] for name in names}
    assert runs["conv_input.0"] == 1


def test_what_does_not_depend_on_a_layer_is_not_run_again(forms_of) -> None:
    _, forms = forms_of("inverse", "one")
    reached = [node.name for node in forms.shared.dependents("down.0")]
    assert reached == ["down.0", "up", "add", "last"]
    assert [n.name for n in forms.shared.dependents("add")] == ["add", "last"]


def test_alone_means_that_no_other_quantizer_works(forms_of, mode, make_frame) -> None:
    qmodel, forms = forms_of("residual", mode)
    quantizers = {q.name for q in qmodel.modules() if isinstance(q, TensorQuantizer)}
    used: set[str] = set()
    for quantizer in qmodel.modules():
        if isinstance(quantizer, TensorQuantizer):
            quantizer.register_forward_hook(lambda m, a, o: used.add(m.name))
    x = make_frame(9)
    with torch.no_grad():
        forms.float.run(x)
        assert not used
        forms.quantized.run(x)
        assert used == quantizers
        used.clear()
        shared = forms.shared.run(x)
        used.clear()
        forms.shared.rerun(shared, "extra_conv.0", forms.changed["extra_conv.0"])
        if mode == "all-but-one":
            assert not used
            return
        assert used == {"conv2.3.add", "extra_conv.0.weight"}
        used.clear()
        forms.shared.rerun(shared, "conv1.0.add", forms.changed["conv1.0.add"])
        assert used == {"conv1.0.conv2", "conv_input.0"}


class Branches(nn.Module):
    """Two convolutions of one tensor, summed: a change reaches the sum by either operand."""

    def __init__(self) -> None:
        super().__init__()
        self.left = SubMConv3d(5, 6, 3)
        self.right = SubMConv3d(5, 6, 3)
        self.add = SparseAdd()
        self.last = SubMConv3d(6, 4, 1)

    def forward(self, x: SparseTensor) -> SparseTensor:
        return self.last(self.add(self.left(x), self.right(x)))


def test_a_change_reaches_a_sum_by_either_operand(make_frame, mode) -> None:
    qmodel = quantize(Branches(), EVERY_LAYER, example=make_frame(0)).eval()
    calibrate(qmodel, [make_frame(0)])
    forms = layer_forms(qmodel, mode)
    for side in ("left", "right"):
        assert [n.name for n in forms.shared.dependents(side)] == [side, "add", "last"]
        with torch.no_grad():
            changed = forms.shared.rerun(forms.shared.run(make_frame(9)), side, forms.changed[side])
        naive = whole_forward(qmodel, forms.shared, side, forms.changed[side], make_frame(9))
        assert torch.equal(features(changed["last"]), naive[0])


def test_an_fp8_layer_alone_computes_in_fp8(calibrated, make_frame) -> None:
    qmodel = calibrated("residual", "fp8").eval()
    forms = layer_forms(qmodel, "one")
    assert len(forms.changed) > 5
    assert {module.precision.compute for module in forms.changed.values()} == {"fp8"}
    x = make_frame(9)
    with torch.no_grad():
        values = forms.shared.run(x)
        for name in ("conv1.0.conv1", "conv1.0.add"):
            made = last_outputs(
                forms.shared, {**values, **forms.shared.rerun(values, name, forms.changed[name])}
            )
            naive = whole_forward(qmodel, forms.shared, name, forms.changed[name], x)
            assert torch.equal(made[0], naive[0])


def test_alone_stands_between_fp16_tensors(forms_of) -> None:
    _, forms = forms_of("residual", "one")
    for name, module in forms.changed.items():
        inputs = ("fp16",) * len(forms.plan.graph.node(name).inputs)
        assert module.precision == LayerPrecision("int8", inputs, "fp16"), name
        assert forms.float.modules[name].precision == LayerPrecision("fp16", inputs, "fp16")
    _, forms = forms_of("residual", "all-but-one")
    for name, module in forms.changed.items():
        inputs = ("fp16",) * len(forms.plan.graph.node(name).inputs)
        output = forms.plan.tensor_precision[name]
        assert module.precision == LayerPrecision("fp16", inputs, output), name
    assert {module.precision.output for module in forms.changed.values()} == {"fp16", "int8"}


class SumInForward(nn.Module):
    """A residual block without a module for its sum."""

    def __init__(self) -> None:
        super().__init__()
        self.first = SubMConv3d(5, 5, 3)
        self.second = SubMConv3d(5, 5, 3)

    def forward(self, x: SparseTensor) -> SparseTensor:
        x = self.first(x)
        return x.replace_features(self.second(x).features + x.features)


def test_what_is_no_module_of_ours_cannot_be_replayed(make_frame) -> None:
    qmodel = quantize(SumInForward(), EVERY_LAYER, example=make_frame(0))
    with pytest.raises(GraphError, match=r"add: got a layer that is spconv's, or computed in the"):
        layer_forms(qmodel)


def test_float_weights_take_the_ranges_of_a_state(calibrated, make_network, make_frame) -> None:
    qmodel = calibrated("residual", EVERY_LAYER).eval()
    state = QuantState.of(qmodel)
    again = with_ranges_of(state, make_network("residual")).eval()
    assert quantization_of(again).require_plan() == state.plan
    x = make_frame(9)
    with torch.no_grad():
        assert torch.equal(again(x), qmodel(x))
        # The state's own weights are on their grid: quantizing the float ones finds the same codes.
        assert torch.equal(again(x), state.apply(make_network("residual")).eval()(x))
    conv = again.get_submodule("conv1.0.conv1")
    assert torch.equal(conv.weight, qmodel.get_submodule("conv1.0.conv1").weight)
