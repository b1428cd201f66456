"""Write a graph as a libspconv ONNX file: `docs/libspconv.md` says what is in it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto

from voxelquant import __version__
from voxelquant.atomic_file import atomic_path
from voxelquant.errors import ExportError
from voxelquant.export.attributes import write_attribute
from voxelquant.export.ir import (
    Graph,
    Node,
    TensorInfo,
    attribute_specs,
)

_OPSET = 11


def write(graph: Graph, path: str | Path) -> Path:
    """Write the graph to `path`, which then holds the whole file or what it held before.

    Raises:
        ExportError: the folder cannot be made or written.
    """
    content = serialize(graph)
    with atomic_path(path, ExportError) as temporary:
        temporary.write_bytes(content)
    return Path(path)


def serialize(graph: Graph) -> bytes:
    """Bytes of the ONNX file; equal graphs give equal bytes."""
    content: bytes = to_model_proto(graph).SerializeToString(deterministic=True)
    return content


def to_model_proto(graph: Graph) -> ModelProto:
    """The ONNX model: graph `scn`, opset `ai.onnx` 11, inline raw float16 initializers."""
    proto = GraphProto(name="scn")
    proto.node.extend(_node(node) for node in graph.nodes)
    proto.input.extend(_value_info(info) for info in graph.inputs)
    proto.output.extend(_value_info(info) for info in graph.outputs)
    for name, values in graph.initializers.items():
        proto.initializer.append(_initializer(name, values))
    model = ModelProto(ir_version=onnx.IR_VERSION, graph=proto)
    model.producer_name = "voxelquant"
    model.producer_version = __version__
    model.opset_import.append(onnx.helper.make_opsetid("ai.onnx", _OPSET))
    return model


def _node(node: Node) -> NodeProto:
    proto = NodeProto(name=node.name, op_type=node.op_type, doc_string=node.module_path)
    proto.input.extend(node.inputs)
    proto.output.append(node.output)
    for name, spec in attribute_specs(type(node)).items():
        value = getattr(node, name)
        if value is not None and value != ():
            proto.attribute.append(write_attribute(name, spec, value))
    return proto


def _initializer(name: str, values: NDArray[np.float16]) -> TensorProto:
    if values.dtype != np.float16:
        raise ExportError(f"{name}: got {values.dtype}, need float16 initializers")
    proto = TensorProto(name=name, data_type=TensorProto.FLOAT16, dims=values.shape)
    proto.raw_data = np.ascontiguousarray(values).astype("<f2", copy=False).tobytes()
    return proto


def _value_info(info: TensorInfo) -> ValueInfoProto:
    value_info: ValueInfoProto = onnx.helper.make_tensor_value_info(
        info.name, TensorProto.FLOAT16, list(info.shape)
    )
    return value_info
