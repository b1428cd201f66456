import json
from collections.abc import Callable

import pytest
import torch
from torch import nn

from voxelquant.errors import ConfigError, GraphError
from voxelquant.quant.insert import trace_fused_graph
from voxelquant.quant.plan import PrecisionPlan, make_plan
from voxelquant.quant.plan_json import plan_from_json, plan_to_json
from voxelquant.quant.recipe import Recipe, Rule, load_recipe
from voxelquant.quant.topology import FusedGraph
from voxelquant.sparse import (
    SparseSequential,
    SparseTensor,
    SparseToDense,
    SubMConv3d,
    apply_module,
)


@pytest.fixture
def graph_of(make_network, frames_of) -> Callable[[str], FusedGraph]:
    return lambda name: trace_fused_graph(make_network(name), (frames_of(name)[0],))


def plan_of(graph: FusedGraph, **fields: object) -> PrecisionPlan:
    rules = tuple(Rule(**rule) for rule in fields.pop("rules", ()))
    return make_plan(graph, Recipe(name="r", rules=rules, **fields))


def table(plan: PrecisionPlan) -> dict[str, str]:
    return {
        node.name: f"{plan.precision[node.name]}→{plan.tensor_precision[node.name]}"
        for node in plan.graph.nodes
    }


def test_norms_and_relus_are_absorbed(graph_of) -> None:
    graph = graph_of("residual")
    assert {node.kind for node in graph.nodes} == {"conv", "add", "to_dense"}
    conv2 = graph.node("conv1.0.conv2")
    assert (conv2.batchnorm_path, conv2.relu_path) == ("conv1.0.bn2", None)
    add = graph.node("conv1.0.add")
    assert add.inputs == ("conv1.0.conv2", "conv_input.0")
    assert add.relu_path == "conv1.0.relu" == graph.node("conv1.0.conv1").relu_path
    assert [node.name for node in graph.consumers("conv1.0.add")] == [
        "conv1.1.conv1",
        "conv1.1.add",
    ]
    assert graph.outputs == ("to_dense",)
    assert graph.shared_relus == ()


def test_int8_recipe_keeps_the_raw_input_in_fp16_and_says_so(graph_of) -> None:
    plan = make_plan(graph_of("residual"), load_recipe("int8"))
    assert table(plan) == {
        "conv_input.0": "fp16→int8",
        "conv1.0.conv1": "int8→int8",
        "conv1.0.conv2": "int8→int8",
        "conv1.0.add": "int8→int8",
        "conv1.1.conv1": "int8→int8",
        "conv1.1.conv2": "int8→int8",
        "conv1.1.add": "int8→int8",
        "conv2.0": "int8→int8",
        "conv2.3.conv1": "int8→int8",
        "conv2.3.conv2": "int8→int8",
        "conv2.3.add": "int8→int8",
        "extra_conv.0": "int8→fp16",
        "to_dense": "fp16→fp16",
    }
    assert plan.tensor_precision["@input"] == "fp16"
    assert len(plan.notes) == 1
    assert "conv_input.0 computes in fp16: its input is the raw graph input" in plan.notes[0]


def test_reference_recipe_is_the_published_policy(graph_of) -> None:
    plan = make_plan(graph_of("residual"), load_recipe("reference"))
    resolved = table(plan)
    assert resolved["conv_input.0"] == "fp16→fp16"
    assert resolved["conv1.0.conv1"] == resolved["conv1.0.conv2"] == "fp16→fp16"
    assert resolved["conv1.0.add"] == "fp16→int8"
    assert resolved["conv1.1.conv1"] == resolved["conv1.1.add"] == "int8→int8"
    assert resolved["extra_conv.0"] == "int8→fp16"
    assert plan.notes == ()


def test_fp16_recipe_quantizes_nothing(graph_of) -> None:
    plan = make_plan(graph_of("residual"), load_recipe("fp16"))
    assert set(table(plan).values()) == {"fp16→fp16"}
    assert plan.quantized_tensors == ()


def test_raw_input_can_be_forced(graph_of) -> None:
    plan = plan_of(graph_of("plain"), raw_input="int8")
    assert plan.precision["stem"] == "int8"
    assert plan.tensor_precision["@input"] == "fp16"  # quantized on entry
    assert "@input" in plan.quantized_tensors


def test_fp8_recipe_is_the_int8_recipe_in_another_format(graph_of, network_name) -> None:
    graph = graph_of(network_name)
    plans = {name: make_plan(graph, load_recipe(name)) for name in ("int8", "fp8")}
    assert table(plans["fp8"]) == {
        node: types.replace("int8", "fp8") for node, types in table(plans["int8"]).items()
    }
    assert plans["fp8"].quantized_tensors == plans["int8"].quantized_tensors
    assert plans["fp8"].quantized_convs == plans["int8"].quantized_convs
    assert "raw_input: fp8 forces it" in plans["fp8"].notes[0]
    assert set(plans["fp8"].range_precisions.values()) == {"fp8"}


def test_reference_fp8_is_the_published_policy_in_another_format(graph_of) -> None:
    plans = {
        name: make_plan(graph_of("residual"), load_recipe(name))
        for name in ("reference", "reference_fp8")
    }
    assert table(plans["reference_fp8"]) == {
        node: types.replace("int8", "fp8") for node, types in table(plans["reference"]).items()
    }


def test_a_raw_input_may_be_read_in_fp8_and_the_rest_in_int8(graph_of) -> None:
    plan = plan_of(graph_of("plain"), raw_input="fp8")
    assert table(plan)["stem"] == "fp8→int8"
    assert table(plan)["down.0"] == "int8→int8"
    assert plan.range_precisions["@input"] == "fp8"
    ruled = plan_of(
        graph_of("plain"), raw_input="fp8", rules=[{"match": "stem", "precision": "int8"}]
    )
    assert table(ruled)["stem"] == "int8→int8"


def test_a_tensor_is_stored_in_the_one_precision_of_its_readers(graph_of) -> None:
    rules = [{"match": "conv2.0", "precision": "fp8"}, {"match": "*3.conv?", "precision": "fp8"}]
    plan = plan_of(graph_of("residual"), rules=rules)
    resolved = table(plan)
    # The sum before makes int8 and cannot hand on fp8; the one after reads what fp8 reads as well.
    assert resolved["conv1.1.add"] == "fp16→fp8"
    assert resolved["conv1.1.conv2"] == "int8→fp16"
    assert resolved["conv2.0"] == "fp8→fp16"
    assert resolved["conv2.3.conv1"] == "fp8→fp8"
    assert resolved["conv2.3.add"] == "fp16→int8"
    assert "conv1.1.add computes in fp16: its output is an fp8 tensor" in plan.notes
    mixed = plan_of(graph_of("residual"), rules=[{"match": "conv1.1.conv1", "precision": "fp8"}])
    assert mixed.tensor_precision["conv1.0.add"] == "fp16"
    assert mixed.range_precisions["conv1.0.add"] == "fp8"  # the sum gave way to fp16
    assert plan_from_json(json.loads(json.dumps(plan_to_json(mixed)))) == mixed


def test_rules_that_fp8_excludes_are_named(graph_of) -> None:
    rules = [
        {"match": "conv1.1.conv1", "precision": "int8"},
        {"match": "conv1.0.conv1", "output_precision": "int8"},
        {"match": "conv1.1.add", "precision": "fp8"},
        {"match": "conv2.0", "weight_bits": 4},
    ]
    with pytest.raises(ConfigError, match="got 3 rules") as caught:
        plan_of(graph_of("residual"), precision="fp8", rules=rules)
    message = str(caught.value)
    assert "conv1.1.add is to compute in fp8, but its operand conv1.0.add is an fp16" in message
    assert "conv1.0.conv1 is to be an int8 tensor, but ['conv1.0.conv2'] read it in fp8" in message
    assert "conv2.0 is to have 4-bit weights, but computes in fp8" in message
    with pytest.raises(
        ConfigError, match=r"conv2\.0 computes in fp8, which has no ranges: in_place"
    ):
        plan_of(
            graph_of("residual"),
            ranges="in_place",
            rules=[{"match": "conv2.0", "precision": "fp8"}],
        )


def test_a_tensor_with_an_fp16_reader_is_fp16_and_its_sum_gives_way(graph_of) -> None:
    plan = plan_of(graph_of("residual"), rules=[{"match": "conv1.1.conv1", "precision": "fp16"}])
    resolved = table(plan)
    # conv1.1 reads the first sum's output in fp16: so does the second sum, and the first hands
    # out fp16, hence computes in it, and so do all whose tensors they read.
    assert resolved["conv1.1.add"] == "fp16→int8"
    assert resolved["conv1.0.add"] == "fp16→fp16"
    assert resolved["conv1.0.conv2"] == resolved["conv1.1.conv2"] == "int8→fp16"
    assert resolved["conv1.0.conv1"] == "int8→int8"
    assert plan.tensor_precision["conv_input.0"] == "fp16"
    assert any(note.startswith("conv1.1.add computes in fp16: its operand") for note in plan.notes)


def test_every_conflict_between_rules_is_named(graph_of) -> None:
    rules = [
        {"match": "conv1.1.conv1", "precision": "fp16"},
        {"match": "conv1.1.add", "precision": "int8"},
        {"match": "conv1.0.add", "output_precision": "int8"},
        {"match": "conv_input.0", "precision": "int8"},
        {"match": "extra_conv.0", "output_precision": "int8"},
    ]
    with pytest.raises(ConfigError, match="got 4 rules") as caught:
        plan_of(graph_of("residual"), rules=rules)
    message = str(caught.value)
    assert "conv1.1.add is to compute in int8, but its operand conv1.0.add" in message
    assert "conv1.0.add is to be an int8 tensor, but ['conv1.1.conv1', 'conv1.1.add']" in message
    assert "conv_input.0 is to compute in int8, but its input is the raw graph input" in message
    assert "extra_conv.0 is to be an int8 tensor, but ['to_dense'] read it in fp16" in message


def test_output_of_a_sum_that_must_be_fp16_makes_the_sum_fp16(graph_of) -> None:
    plan = plan_of(
        graph_of("residual"), rules=[{"match": "conv2.3.add", "output_precision": "fp16"}]
    )
    assert table(plan)["conv2.3.add"] == "fp16→fp16"
    assert table(plan)["extra_conv.0"] == "int8→fp16"  # quantizes on entry


def test_inverse_and_plain_graphs(graph_of) -> None:
    plan = plan_of(graph_of("inverse"))
    up = plan.graph.node("up")
    assert up.inverse
    assert table(plan) == {
        "stem.0": "fp16→int8",
        "down.0": "int8→int8",
        "up": "int8→int8",
        "add": "int8→int8",
        "last": "int8→fp16",
    }
    assert plan_of(graph_of("plain")).graph.outputs == ("squeeze",)


def test_plans_survive_json(graph_of, network_name) -> None:
    plan = plan_of(graph_of(network_name))
    assert plan_from_json(json.loads(json.dumps(plan_to_json(plan)))) == plan


class Returning(nn.Module):
    """Hands out an intermediate tensor beside its result, and shares a ReLU with a dense part."""

    def __init__(self) -> None:
        super().__init__()
        self.first = SubMConv3d(5, 8, 3)
        self.relu = nn.ReLU()
        self.second = SubMConv3d(8, 8, 3)
        self.third = SubMConv3d(8, 8, 3)
        self.head = nn.Linear(8, 2)

    def forward(self, x: SparseTensor) -> dict[str, object]:
        first = apply_module(self.relu, self.first(x))
        second = apply_module(self.relu, self.second(first))
        pooled = self.head(self.third(second).features.mean(0))
        return {"middle": [second], "dense": self.relu(pooled)}


def test_returned_tensors_are_outputs_and_relus_of_the_dense_part_are_shared(make_frame) -> None:
    torch.manual_seed(0)
    graph = trace_fused_graph(Returning(), (make_frame(0),))
    assert graph.outputs == ("second", "third")
    assert graph.shared_relus == ("relu",)
    plan = plan_of(graph)
    assert plan.tensor_precision["second"] == "fp16"
    assert plan.precision["third"] == "int8"


def test_a_layer_that_runs_twice_is_refused(make_frame) -> None:
    conv = SubMConv3d(5, 5, 3)
    with pytest.raises(GraphError, match=r"^0: got a module that runs 2 times"):
        trace_fused_graph(SparseSequential(conv, nn.ReLU(), conv), (make_frame(0),))


@pytest.mark.parametrize(
    "layers",
    [
        lambda: (nn.BatchNorm1d(5), SubMConv3d(5, 5, 3)),
        lambda: (SubMConv3d(5, 5, 3), nn.ReLU(), nn.BatchNorm1d(5)),
        lambda: (SubMConv3d(5, 5, 3), nn.BatchNorm1d(5), nn.BatchNorm1d(5)),
    ],
)
def test_a_norm_that_cannot_be_folded_is_refused(make_frame, layers) -> None:
    with pytest.raises(GraphError, match="got a batch norm after"):
        trace_fused_graph(SparseSequential(*layers()), (make_frame(0),))


def test_standalone_relus_compute_in_fp16(make_frame) -> None:
    network = SparseSequential(nn.ReLU(), SubMConv3d(5, 5, 3), SubMConv3d(5, 5, 3))
    plan = plan_of(trace_fused_graph(network, (make_frame(0),)))
    assert plan.graph.node("1").inputs == ("0",)
    assert table(plan) == {"0": "fp16→fp16", "1": "int8→int8", "2": "int8→fp16"}


def test_a_relu_on_the_dense_map_is_no_part_of_the_graph(make_frame) -> None:
    class Dense(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.to_dense, self.relu = SubMConv3d(5, 4, 3), SparseToDense(), nn.ReLU()

        def forward(self, x: SparseTensor) -> torch.Tensor:
            return self.relu(self.to_dense(self.conv(x)))

    graph = trace_fused_graph(Dense(), (make_frame(0),))
    assert [node.kind for node in graph.nodes] == ["conv", "to_dense"]
    assert graph.outputs == ("to_dense",)
