"""Each rule is broken once, alone, in an otherwise valid file, and must be the only finding."""

import ast
import math
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from voxelquant.errors import ExportError
from voxelquant.export import validate
from voxelquant.export.ir import Graph, Node, Relu, ScatterDense, TensorInfo
from voxelquant.export.libspconv_writer import serialize, write
from voxelquant.export.validate import check_file

Finding = tuple[str, str, str]


def findings(source) -> list[Finding]:
    return [(d.severity, d.node, d.rule) for d in check_file(source)]


def with_node(graph: Graph, name: str, /, **changes) -> Graph:
    nodes = tuple(replace(n, **changes) if n.name == name else n for n in graph.nodes)
    return replace(graph, nodes=nodes)


def with_values(graph: Graph, name: str, edit: Callable[[np.ndarray], object]) -> Graph:
    values = {key: array.copy() for key, array in graph.initializers.items()}
    edited = edit(values[name])
    if isinstance(edited, np.ndarray):
        values[name] = edited
    return replace(graph, initializers=values)


def node(graph: Graph, name: str) -> Node:
    return next(n for n in graph.nodes if n.name == name)


def set_first(value: float, position=0) -> Callable[[np.ndarray], None]:
    def edit(array: np.ndarray) -> None:
        array.flat[position] = value

    return edit


def scale_channel(factor: float) -> Callable[[np.ndarray], None]:
    def edit(array: np.ndarray) -> None:
        array[0] = array[0] * np.float16(factor)

    return edit


@pytest.mark.parametrize("name", ["residual_graph", "inverse_graph"])
def test_valid_files_have_no_defect(name, request, tmp_path) -> None:
    graph = request.getfixturevalue(name)
    assert findings(serialize(graph)) == []
    assert findings(write(graph, tmp_path / "scn.onnx")) == []


def with_input(graph: Graph, name: str, tensor: str, **changes) -> Graph:
    inputs = (tensor, *node(graph, name).inputs[1:])
    return with_node(graph, name, inputs=inputs, **changes)


def with_weight_range(graph: Graph, amax: float) -> Graph:
    ranges = (amax, *graph.convs[1].weight_dynamic_ranges[1:])
    return with_node(graph, "conv1", weight_dynamic_ranges=ranges)


def collapsed_relu(g: Graph) -> Graph:
    return with_input(with_node(g, "relu0", output="4"), "conv3", "4")


def renamed_weight(g: Graph) -> Graph:
    names = {"spconv1.weight": "spconv1.kernel"}
    values = {names.get(name, name): array for name, array in g.initializers.items()}
    inputs = ("1", "spconv1.kernel", "spconv1.bias")
    return replace(with_node(g, "conv1", inputs=inputs), initializers=values)


def narrow_output(g: Graph) -> Graph:
    """16 → 24 channels, consistently."""
    amax = g.convs[3].weight_dynamic_ranges[:24]
    g = with_node(g, "conv3", out_channels=24, output_shape=(280, 24), weight_dynamic_ranges=amax)
    g = with_node(g, "scatter0", output_shape=(1, 24, 5, 12, 12))
    g = with_node(g, "reshape0", dims=(1, 120, 12, 12))
    return with_values(with_values(g, "spconv3.weight", first_24), "spconv3.bias", first_24)


def first_24(array: np.ndarray) -> np.ndarray:
    return array[:24]


def other_kernel(g: Graph) -> Graph:
    g = with_node(g, "conv1", kernel_size=(1, 3, 3))
    return with_values(g, "spconv1.weight", lambda w: w[:, 1:2])


def other_inverse_kernel(g: Graph) -> Graph:
    g = with_node(g, "conv2", kernel_size=(1, 3, 3))
    return with_values(g, "spconv2.weight", lambda w: w[:, 1:2])


def sparse_transpose(g: Graph) -> Graph:
    outputs = (*g.outputs, TensorInfo("6", (1, 16, 5, 12, 12)))
    return replace(with_input(g, "transpose0", "2"), outputs=outputs)


def two_levels_in_a_sum(g: Graph) -> Graph:
    return with_node(g, "add0", inputs=("3", "2"))


def inverse_of_another_level(g: Graph) -> Graph:
    """An inverse conv on the full grid, where the coupled conv made the half one."""
    shapes = {"input_spatial_shape": (9, 24, 24)}
    return with_input(g, "conv2", "1", **shapes)


def shared_sum(g: Graph) -> Graph:
    return replace(g, outputs=(*g.outputs, TensorInfo("4", (300, 16))))


def relu_after_conv(g: Graph) -> Graph:
    g = with_input(with_node(g, "conv1", activation="None"), "conv2", "90")
    g = with_input(g, "scatter0", "90")
    relu = Relu(name="relu9", inputs=("2",), output="90")
    return replace(g, nodes=(*g.nodes[:2], relu, *g.nodes[2:]))


def standalone_relu(g: Graph) -> Graph:
    g = with_input(g, "conv0", "90")
    return replace(g, nodes=(Relu(name="relu9", inputs=("0",), output="90"), *g.nodes))


def two_formats(g: Graph) -> Graph:
    full, half = (24, 24, 24), (12, 12, 12)
    g = with_node(g, "conv0", input_spatial_shape=full, output_spatial_shape=full)
    g = with_node(g, "conv1", input_spatial_shape=full, output_spatial_shape=half)
    g = with_node(g, "conv2", input_spatial_shape=half, output_spatial_shape=full)
    g = with_node(g, "scatter0", input_spatial_shape=half, output_shape=(1, 16, *half))
    second = ScatterDense(
        name="scatter1",
        inputs=("5",),
        output="91",
        format="xyz",
        input_spatial_shape=full,
        output_shape=(1, 16, *full),
    )
    outputs = (*g.outputs, TensorInfo("91", (1, 16, *full)))
    return replace(g, nodes=(*g.nodes, second), outputs=outputs)


def no_rulebooks(g: Graph) -> Graph:
    return with_node(with_node(g, "conv1", rulebook=""), "conv2", rulebook="")


def fp16_after_int8_sum(g: Graph) -> Graph:
    return with_node(with_node(g, "add0", output_precision="fp16"), "conv3", precision="fp16")


def two_frames(g: Graph) -> Graph:
    g = with_node(g, "scatter0", output_shape=(2, 32, 5, 12, 12))
    return with_node(g, "reshape0", dims=(2, 160, 12, 12))


def other_grid(g: Graph) -> Graph:
    shapes = {"input_spatial_shape": (5, 12, 24), "output_shape": (1, 16, 5, 12, 24)}
    return with_node(g, "scatter0", **shapes)


def spoil(name: str, /, **changes) -> Callable[[Graph], Graph]:
    return lambda graph: with_node(graph, name, **changes)


def spoil_values(name: str, edit: Callable[[np.ndarray], object]) -> Callable[[Graph], Graph]:
    return lambda graph: with_values(graph, name, edit)


# rule, node, what is done to the residual graph
RESIDUAL_ERRORS = [
    ("graph-outputs", "graph", lambda g: replace(g, outputs=())),
    (
        "output-unknown",
        "graph",
        lambda g: replace(g, outputs=(*g.outputs, TensorInfo("77", (1,)))),
    ),
    (
        "initializer-in-inputs",
        "spconv0.weight",
        lambda g: replace(g, inputs=(*g.inputs, TensorInfo("spconv0.weight", (1,)))),
    ),
    (
        "graph-inputs",
        "graph",
        lambda g: replace(g, inputs=(*g.inputs, TensorInfo("coords", (1, 4)))),
    ),
    ("node-name-repeated", "conv1", spoil("conv2", name="conv1")),
    ("tensor-repeated", "relu0", collapsed_relu),
    ("input-unknown", "conv1", lambda g: with_input(g, "conv1", "66")),
    (
        "graph-order",
        "add0",
        lambda g: replace(g, nodes=(*g.nodes[:2], g.nodes[3], g.nodes[2], *g.nodes[4:])),
    ),
    ("weight-shape", "conv1", spoil_values("spconv1.weight", lambda w: w.reshape(3, 3, 3, 16, 16))),
    ("bias-shape", "conv1", spoil_values("spconv1.bias", lambda b: b[:15])),
    ("weight-not-finite", "conv1", spoil_values("spconv1.weight", set_first(math.nan))),
    ("weight-not-finite", "conv0", spoil_values("spconv0.weight", set_first(math.inf))),
    ("weight-not-finite", "conv1", spoil_values("spconv1.bias", set_first(-math.inf))),
    ("weight-ranges-length", "conv1", spoil("conv1", weight_dynamic_ranges=(1.0,))),
    ("weight-ranges-length", "conv1", spoil("conv1", weight_dynamic_ranges=())),
    ("weight-ranges-value", "conv1", lambda g: with_weight_range(g, math.nan)),
    ("weight-ranges-value", "conv1", lambda g: with_weight_range(g, 0.0)),
    ("precision-word", "conv3", spoil("conv3", output_precision="FP16")),
    ("activation-unknown", "conv1", spoil("conv1", activation="Relu")),
    ("input-range", "conv2", spoil("conv2", input_dynamic_range=None)),
    ("input-range", "conv2", spoil("conv2", input_dynamic_range=math.nan)),
    ("input-range", "conv2", spoil("conv2", input_dynamic_range=math.inf)),
    ("input-range", "add0", spoil("add0", input0_dynamic_range=-1.0)),
    ("precision-mismatch", "conv1", spoil("conv1", precision="fp16")),
    ("precision-mismatch", "add0", spoil("conv2", output_precision="fp16")),
    ("scatter-int8", "scatter0", spoil("conv3", output_precision="int8")),
    ("conv-parameters", "conv1", spoil("conv1", stride=(2, 1, 1))),
    ("conv-parameters", "conv1", spoil("conv1", dilation=(0, 1, 1), rulebook="")),
    ("conv-inexpressible", "conv1", spoil("conv1", transposed=True)),
    ("conv-inexpressible", "conv1", spoil("conv1", groups=16)),
    ("conv-inexpressible", "conv1", spoil("conv1", ndim=2)),
    ("conv-inexpressible", "conv1", spoil("conv1", output_padding=(0, 1, 0))),
    ("channel-chain", "conv0", lambda g: replace(g, inputs=(TensorInfo("0", (1, 4)),))),
    ("spatial-shape", "conv3", spoil("conv3", input_spatial_shape=(9, 24, 23))),
    ("spatial-shape", "conv3", spoil("conv3", padding=(0, 1, 1))),
    ("output-bound", "conv1", spoil("conv1", output_bound=299)),
    ("rulebook-conflict", "conv1", other_kernel),
    ("rulebook-conflict", "conv1", spoil("conv1", dilation=(2, 2, 2))),
    ("rulebook-conflict", "conv3", spoil("conv3", rulebook="res0")),
    ("scatter-format", "scatter0", spoil("scatter0", format="yxz")),
    ("scatter-layout", "scatter0", spoil("scatter0", output_layout="nhwc")),
    ("scatter-batch", "scatter0", two_frames),
    ("scatter-shape", "scatter0", spoil("scatter0", output_shape=(1, 5, 32, 12, 12))),
    ("scatter-shape", "scatter0", other_grid),
    ("reshape-dims", "reshape0", spoil("reshape0", dims=(1, 160, 12, 13))),
    ("reshape-dims", "reshape0", spoil("reshape0", dims=(1, -1, 12, 12))),
]

RESIDUAL_WARNINGS = [
    (
        "initializer-unused",
        "spare",
        lambda g: replace(g, initializers={**g.initializers, "spare": np.zeros(1, np.float16)}),
    ),
    ("name-substring", "conv1", renamed_weight),
    ("weight-subnormal", "conv0", spoil_values("spconv0.weight", scale_channel(6e-5))),
    ("weight-range-far", "conv1", lambda g: with_weight_range(g, 50.0)),
    ("activation-unproven", "conv1", spoil("conv1", activation="LeakyReLU")),
    ("fp16-into-int8", "conv2", spoil("conv1", output_precision="fp16")),
    ("range-conflict", "add0", spoil("add0", input1_dynamic_range=2.5)),
    ("add-int8-to-fp16", "add0", fp16_after_int8_sum),
    ("channel-pair", "conv3", narrow_output),
    ("rulebook-missing", "conv2", no_rulebooks),
    ("scatter-format-order", "scatter0", spoil("scatter0", format="xyz")),
]

INVERSE_ERRORS = [
    ("output-int8", "add0", spoil("add0", output_precision="int8")),
    ("tensor-kind", "transpose0", sparse_transpose),
    ("conv-parameters", "conv0", spoil("conv0", inverse=True)),
    ("add-operands", "add0", two_levels_in_a_sum),
    ("rulebook-inverse", "conv2", spoil("conv2", rulebook="nowhere")),
    ("rulebook-inverse", "conv2", spoil("conv2", rulebook="")),
    ("rulebook-inverse", "conv2", other_inverse_kernel),
    ("rulebook-inverse", "conv2", inverse_of_another_level),
    ("relu-shared-sum", "relu0", shared_sum),
    ("relu-after-conv", "relu9", relu_after_conv),
    ("scatter-format-mixed", "scatter1", two_formats),
    ("transpose-dims", "transpose0", spoil("transpose0", dims=(0, 1, 2, 3, 3))),
]

INVERSE_WARNINGS = [
    (
        "dead-node",
        "transpose0",
        lambda g: replace(g, outputs=(g.outputs[0], TensorInfo("6", (1, 16, 5, 12, 12)))),
    ),
    ("relu-standalone", "relu9", standalone_relu),
]

CASES = [
    pytest.param(fixture, (severity, name, rule), edit, id=f"{rule}-{name}-{index}")
    for fixture, severity, cases in (
        ("residual_graph", "error", RESIDUAL_ERRORS),
        ("residual_graph", "warning", RESIDUAL_WARNINGS),
        ("inverse_graph", "error", INVERSE_ERRORS),
        ("inverse_graph", "warning", INVERSE_WARNINGS),
    )
    for index, (rule, name, edit) in enumerate(cases)
]


@pytest.mark.parametrize(("fixture", "expected", "edit"), CASES)
def test_a_broken_rule_is_named_alone(fixture, expected, edit, request) -> None:
    graph = request.getfixturevalue(fixture)
    assert findings(serialize(edit(graph))) == [expected]


def test_a_computed_weight_is_refused(residual_graph) -> None:
    graph = with_node(residual_graph, "conv1", inputs=("1", "1", "spconv1.bias"))
    assert findings(serialize(graph)) == [
        ("error", "conv1", "weight-not-initializer"),
        ("warning", "spconv1.weight", "initializer-unused"),
        ("warning", "conv1", "name-substring"),
    ]


def test_an_int8_dead_end_has_no_range(inverse_graph) -> None:
    extra = replace(inverse_graph.convs[0], name="conv9", output="99", output_precision="int8")
    graph = replace(inverse_graph, nodes=(*inverse_graph.nodes, extra))
    assert findings(serialize(graph)) == [
        ("error", "conv9", "range-undeclared"),
        ("warning", "conv9", "dead-node"),
    ]


def test_an_empty_graph_is_named() -> None:
    empty = Graph((), (TensorInfo("0", (1, 5)),), (), {})
    assert findings(serialize(empty)) == [("error", "graph", "graph-empty")]


def test_a_file_that_is_no_model_is_one_error(tmp_path) -> None:
    with pytest.raises(ExportError, match="not a whole ONNX model"):
        check_file(b"\x00\x01")
    with pytest.raises(ExportError, match="No such file"):
        check_file(tmp_path / "nowhere.onnx")


def test_findings_say_what_to_do(residual_graph) -> None:
    (defect,) = check_file(serialize(with_node(residual_graph, "conv1", output_bound=3)))
    assert str(defect) == (
        "error: conv1: got output_bound 3, the trace has 300 voxels; the engine drops voxels "
        "above it: raise output_bound [output-bound]"
    )


def test_errors_come_before_warnings(residual_graph) -> None:
    graph = with_node(with_weight_range(residual_graph, 50.0), "conv3", padding=(0, 1, 1))
    assert [severity for severity, *_ in findings(serialize(graph))] == ["error", "warning"]


def rules_in_source() -> set[str]:
    """The rule of every `error(...)`, `warning(...)` and `refuse(...)` of the export room."""
    position = {"error": 1, "warning": 1, "make": 1, "refuse": 0}
    found = set()
    for path in Path(validate.__file__).parent.rglob("*.py"):
        for call in ast.walk(ast.parse(path.read_text())):
            if isinstance(call, ast.Call) and isinstance(call.func, ast.Name):
                index = position.get(call.func.id)
                rule = call.args[index] if index is not None else None
                if isinstance(rule, ast.Constant):
                    found.add(rule.value)
    return found


def test_every_rule_is_broken_by_a_test_and_described() -> None:
    rules = rules_in_source()
    tests = "".join(path.read_text() for path in Path(__file__).parent.glob("test_*.py"))
    assert {rule for rule in rules if f'"{rule}"' in tests} == rules
    page = Path(__file__).parents[2] / "docs" / "libspconv.md"
    table = page.read_text().split("## Rules of the validator")[1]
    assert set(re.findall(r"`([a-z0-9]+(?:-[a-z0-9]+)+)`", table)) == rules
