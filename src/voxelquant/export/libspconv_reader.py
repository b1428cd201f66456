"""Read a libspconv ONNX file into the graph, and collect what is wrong with its encoding.

NVIDIA's parser takes attribute fields without looking at their type and turns initializers that it
cannot read into empty ones. The reader does not: each such case is a defect with a name. Nothing
in a file is executed, and no other file is opened.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
from google.protobuf.message import DecodeError
from numpy.typing import NDArray
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto

from voxelquant.errors import ExportError
from voxelquant.export.attributes import read_attributes
from voxelquant.export.defects import Defect, error, errors_of, warning
from voxelquant.export.ir import (
    NODE_TYPES,
    Graph,
    Node,
    TensorInfo,
    attribute_specs,
)


@dataclass(frozen=True)
class NodeOutline:
    """A node as the file lists it, whatever its op type."""

    name: str
    op_type: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


@dataclass(frozen=True)
class FileContent:
    """What a file holds: the graph of the nodes we know, the outline of all, and the defects.

    `initializer_names` keeps repetitions, and names whose values could not be read.
    """

    graph: Graph
    outline: tuple[NodeOutline, ...]
    initializer_names: tuple[str, ...]
    defects: tuple[Defect, ...]


def read(source: str | Path | bytes) -> Graph:
    """The graph of a file.

    Raises:
        ExportError: unreadable or truncated file, or the first error in its encoding.
    """
    content = read_content(source)
    found = errors_of(list(content.defects))
    if found:
        raise ExportError(f"cannot read the file: {found[0]}")
    return content.graph


def read_content(source: str | Path | bytes) -> FileContent:
    """Everything in a file, with the defects of its encoding.

    Raises:
        ExportError: the file is missing or is not an ONNX protobuf.
    """
    proto = _parse(source)
    defects: list[Defect] = []
    initializers: dict[str, NDArray[np.float16]] = {}
    for tensor in proto.initializer:
        values = _read_initializer(tensor, defects)
        if values is not None:
            initializers.setdefault(tensor.name, values)
    nodes = tuple(node for p in proto.node if (node := _read_node(p, defects)) is not None)
    graph = Graph(
        nodes,
        tuple(_read_tensor_info(info, defects) for info in proto.input),
        tuple(_read_tensor_info(info, defects) for info in proto.output),
        initializers,
    )
    outline = tuple(
        NodeOutline(p.name, p.op_type, tuple(p.input), tuple(p.output)) for p in proto.node
    )
    names = tuple(tensor.name for tensor in proto.initializer)
    return FileContent(graph, outline, names, tuple(defects))


def _parse(source: str | Path | bytes) -> GraphProto:
    if isinstance(source, bytes):
        label, content = "the given bytes", source
    else:
        label = str(source)
        try:
            content = Path(source).read_bytes()
        except OSError as reason:
            raise ExportError(f"cannot read {label}: {reason.strerror}") from None
    model = ModelProto()
    try:
        model.ParseFromString(content)
    except DecodeError:
        model.Clear()
    if not model.HasField("graph"):
        raise ExportError(
            f"{label}: got {len(content)} bytes that are not a whole ONNX model; "
            "the file is truncated or of another kind, export it again"
        )
    if not all(isinstance(name, str) for name in _names(model.graph)):
        raise ExportError(f"{label}: got names that are not UTF-8 text; export it again")
    return model.graph


def _names(graph: GraphProto) -> Iterator[str]:
    """Every name in the file; protobuf hands out bytes for one that is not text."""
    for node in graph.node:
        yield from (node.name, node.op_type, node.doc_string, *node.input, *node.output)
        yield from (attribute.name for attribute in node.attribute)
    for named in (*graph.initializer, *graph.input, *graph.output):
        yield named.name


def _read_tensor_info(info: ValueInfoProto, defects: list[Defect]) -> TensorInfo:
    tensor_type = info.type.tensor_type
    if tensor_type.elem_type != TensorProto.FLOAT16:
        message = f"got element type {_type_name(tensor_type.elem_type)}, published files FLOAT16"
        defects.append(warning(info.name, "value-type", message, "declare it FLOAT16"))
    return TensorInfo(info.name, tuple(d.dim_value for d in tensor_type.shape.dim))


def _type_name(data_type: int) -> str:
    known = TensorProto.DataType.values()
    return str(TensorProto.DataType.Name(data_type)) if data_type in known else str(data_type)


def _read_initializer(tensor: TensorProto, defects: list[Defect]) -> NDArray[np.float16] | None:
    def refuse(rule: str, message: str, mend: str) -> None:
        defects.append(error(tensor.name, rule, message, mend))

    if tensor.data_location == TensorProto.EXTERNAL or tensor.external_data:
        refuse("initializer-external", "got external data, need inline bytes", "save it inline")
    elif tensor.data_type != TensorProto.FLOAT16:
        found = _type_name(tensor.data_type)
        refuse("initializer-type", f"got {found}, need FLOAT16", "cast it to float16")
    elif not tensor.HasField("raw_data"):
        refuse("initializer-not-raw", "got typed fields, need raw_data", "write it as raw_data")
    elif min(tensor.dims, default=1) < 0 or len(tensor.raw_data) != 2 * math.prod(tensor.dims):
        got = f"got {len(tensor.raw_data)} bytes for float16 {list(tensor.dims)}"
        refuse("initializer-size", f"{got}, need {2 * math.prod(tensor.dims)}", "export it again")
    else:
        values = np.frombuffer(tensor.raw_data, "<f2").reshape(tuple(tensor.dims))
        return values.astype(np.float16, copy=False)
    return None


def _read_node(proto: NodeProto, defects: list[Defect]) -> Node | None:
    node_type = NODE_TYPES.get(proto.op_type)
    name = proto.name or f"unnamed {proto.op_type}"
    if node_type is None:
        message = f"got op type {proto.op_type!r}, need one of {sorted(NODE_TYPES)}"
        defects.append(error(name, "op-type", message, "leave the op outside of the sparse graph"))
        return None
    if len(proto.input) != node_type.input_count or len(proto.output) != 1:
        defects.append(_wrong_arity(name, proto, node_type))
        return None
    found = read_attributes(name, proto, attribute_specs(node_type), defects)
    return cast(Any, node_type)(
        name=proto.name,
        inputs=tuple(proto.input),
        output=proto.output[0],
        module_path=proto.doc_string,
        **found,
    )


def _wrong_arity(name: str, proto: NodeProto, node_type: type[Node]) -> Defect:
    message = (
        f"got {len(proto.input)} inputs and {len(proto.output)} outputs, "
        f"need {node_type.input_count} and 1"
    )
    if proto.op_type == "SparseConvolution" and len(proto.input) == 2:
        return error(name, "bias-missing", message, "fold BatchNorm, or write a bias of zeros")
    return error(name, "node-arity", message, "export the node again")
