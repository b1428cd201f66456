from dataclasses import replace

import numpy as np
import onnx
import pytest

from voxelquant import __version__
from voxelquant.errors import ExportError
from voxelquant.export.ir import Graph
from voxelquant.export.libspconv_reader import read
from voxelquant.export.libspconv_writer import serialize, to_model_proto, write


def assert_same_graph(a: Graph, b: Graph) -> None:
    assert a.nodes == b.nodes
    assert a.inputs == b.inputs
    assert a.outputs == b.outputs
    assert list(a.initializers) == list(b.initializers)
    for name, values in a.initializers.items():
        assert b.initializers[name].dtype == np.float16
        assert np.array_equal(values, b.initializers[name])


@pytest.mark.parametrize("name", ["residual_graph", "inverse_graph"])
def test_a_file_holds_the_whole_graph(name, request, tmp_path) -> None:
    graph = request.getfixturevalue(name)
    path = write(graph, tmp_path / "scn.onnx")
    assert_same_graph(read(path), graph)
    assert_same_graph(read(serialize(graph)), graph)
    assert [p.name for p in tmp_path.iterdir()] == ["scn.onnx"]


def test_container_is_what_the_engine_expects(residual_graph) -> None:
    model = to_model_proto(residual_graph)
    assert model.graph.name == "scn"
    assert [(o.domain, o.version) for o in model.opset_import] == [("ai.onnx", 11)]
    assert (model.producer_name, model.producer_version) == ("voxelquant", __version__)
    for value in (*model.graph.input, *model.graph.output):
        assert value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT16
    weights = [t.name for t in model.graph.initializer]
    assert weights[:2] == ["spconv0.weight", "spconv0.bias"]
    assert not set(weights) & {i.name for i in model.graph.input}
    assert all(t.raw_data and not t.int32_data for t in model.graph.initializer)


def test_every_attribute_has_the_type_that_the_parser_reads(residual_graph) -> None:
    # Python ints in float fields are the trap: they would arrive as 0.0.
    conv = replace(residual_graph.convs[1], input_dynamic_range=3, weight_dynamic_ranges=(1,) * 16)
    graph = replace(residual_graph, nodes=(conv,))
    written = {a.name: a for a in to_model_proto(graph).graph.node[0].attribute}
    kinds = onnx.AttributeProto
    assert written["input_dynamic_range"].type == kinds.FLOAT
    assert written["input_dynamic_range"].f == 3.0
    assert written["weight_dynamic_ranges"].type == kinds.FLOATS
    assert written["stride"].type == kinds.INTS
    assert (written["subm"].type, written["subm"].i) == (kinds.INT, 1)
    assert (written["rulebook"].type, written["rulebook"].s) == (kinds.STRING, b"res0")
    for only_open_engine in ("ndim", "groups", "transposed", "output_padding", "input_shape"):
        assert only_open_engine in written


def test_an_empty_rulebook_is_written(residual_graph) -> None:
    node = to_model_proto(residual_graph).graph.node[5]
    assert [a.s for a in node.attribute if a.name == "rulebook"] == [b""]


def test_truncated_and_foreign_files_are_one_clear_error(residual_graph, tmp_path) -> None:
    content = serialize(residual_graph)
    for broken in (b"", b"not an onnx file at all", content[: len(content) // 2]):
        with pytest.raises(ExportError, match="not a whole ONNX model"):
            read(broken)
    with pytest.raises(ExportError, match=r"nowhere\.onnx: No such file"):
        read(tmp_path / "nowhere.onnx")


def test_names_that_are_no_text_are_refused(residual_graph) -> None:
    content = serialize(residual_graph).replace(b"spconv1.bias", b"spconv1.bi\xff\xfe")
    with pytest.raises(ExportError, match="not UTF-8 text"):
        read(content)


def test_writing_never_leaves_half_a_file(residual_graph, tmp_path) -> None:
    (tmp_path / "taken.onnx").mkdir()
    with pytest.raises(ExportError, match="cannot be written"):
        write(residual_graph, tmp_path / "taken.onnx")
    assert [p.name for p in tmp_path.iterdir()] == ["taken.onnx"]


def test_float32_initializers_are_refused(residual_graph) -> None:
    values = {"spconv0.bias": np.zeros(16, np.float32)}
    with pytest.raises(ExportError, match=r"spconv0\.bias: got float32"):
        serialize(replace(residual_graph, initializers=values))
