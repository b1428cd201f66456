"""Graph of the libspconv dialect: typed nodes, tensors by name, float16 initializers.

One dataclass for each op; every field that becomes an ONNX attribute is annotated with its
`AttributeSpec`, so that reader, writer and validator share one table. A graph may describe a
defective file: the reader fills in what NVIDIA's parser would see, and `validate` says what is
wrong with it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Annotated, ClassVar, get_type_hints

import numpy as np
from numpy.typing import NDArray

from voxelquant.export.attributes import AttributeSpec, Ints, Kind, Need

INT8 = "int8"
FP16 = "fp16"


_Ints3 = Annotated[Ints, AttributeSpec(Kind.INTS, (), Need.REQUIRED, 3)]
_Ints5 = Annotated[Ints, AttributeSpec(Kind.INTS, (), Need.REQUIRED, 5)]
_Ints = Annotated[Ints, AttributeSpec(Kind.INTS, (), Need.REQUIRED)]
_TraceInts2 = Annotated[Ints, AttributeSpec(Kind.INTS, (), Need.OPEN_ENGINE, 2)]
_TraceInts3 = Annotated[Ints, AttributeSpec(Kind.INTS, (), Need.OPEN_ENGINE, 3)]
_RequiredInt = Annotated[int, AttributeSpec(Kind.INT, 0, Need.REQUIRED)]
_OptionalInt = Annotated[int | None, AttributeSpec(Kind.INT, None, Need.OPTIONAL)]
_TraceInt = Annotated[int, AttributeSpec(Kind.INT, 0, Need.OPEN_ENGINE)]
_Ndim = Annotated[int, AttributeSpec(Kind.INT, 3, Need.OPEN_ENGINE)]
_Groups = Annotated[int, AttributeSpec(Kind.INT, 1, Need.OPEN_ENGINE)]
_RequiredFlag = Annotated[bool, AttributeSpec(Kind.FLAG, False, Need.REQUIRED)]
_OptionalFlag = Annotated[bool, AttributeSpec(Kind.FLAG, False, Need.OPTIONAL)]
_TraceFlag = Annotated[bool, AttributeSpec(Kind.FLAG, False, Need.OPEN_ENGINE)]
_RequiredString = Annotated[str, AttributeSpec(Kind.STRING, "", Need.REQUIRED)]
_ExpectedString = Annotated[str, AttributeSpec(Kind.STRING, "", Need.EXPECTED)]
_OptionalString = Annotated[str | None, AttributeSpec(Kind.STRING, None, Need.OPTIONAL)]
_Precision = Annotated[str, AttributeSpec(Kind.STRING, FP16, Need.EXPECTED)]
_Range = Annotated[float | None, AttributeSpec(Kind.FLOAT, None, Need.OPTIONAL)]
_Ranges = Annotated[tuple[float, ...], AttributeSpec(Kind.FLOATS, (), Need.OPTIONAL)]


@dataclass(frozen=True, kw_only=True)
class Node:
    """What all nodes share; `module_path` names the module it came from (ONNX `doc_string`)."""

    op_type: ClassVar[str]
    input_count: ClassVar[int] = 1

    name: str
    inputs: tuple[str, ...]
    output: str
    module_path: str = ""


@dataclass(frozen=True, kw_only=True)
class SparseConvolution(Node):
    """Sparse convolution with bias; inputs are features, weight, bias (specification section 4).

    Geometry is in coordinate-axis order (z, y, x). Ranges are amax values; None or () where the
    node computes in fp16. `input_shape` and `output_shape` are rows and channels of the trace.
    """

    op_type = "SparseConvolution"
    input_count = 3

    kernel_size: _Ints3
    stride: _Ints3
    padding: _Ints3
    dilation: _Ints3
    subm: _RequiredFlag
    inverse: _OptionalFlag = False
    activation: _ExpectedString
    rulebook: _ExpectedString
    output_bound: _RequiredInt
    fixed_launch_points: _OptionalInt = None
    precision: _Precision
    output_precision: _Precision
    input_dynamic_range: _Range = None
    weight_dynamic_ranges: _Ranges = ()
    ndim: _Ndim = 3
    in_channels: _TraceInt
    out_channels: _TraceInt
    groups: _Groups = 1
    transposed: _TraceFlag = False
    output_padding: _TraceInts3 = (0, 0, 0)
    input_spatial_shape: _TraceInts3
    output_spatial_shape: _TraceInts3
    input_shape: _TraceInts2
    output_shape: _TraceInts2


@dataclass(frozen=True, kw_only=True)
class Add(Node):
    """Residual sum of two sparse tensors on the same sites."""

    op_type = "Add"
    input_count = 2

    precision: _Precision
    output_precision: _Precision
    input0_dynamic_range: _Range = None
    input1_dynamic_range: _Range = None


@dataclass(frozen=True, kw_only=True)
class Relu(Node):
    """Rectifier; the engine folds it into the Add that feeds it."""

    op_type = "Relu"


@dataclass(frozen=True, kw_only=True)
class ScatterDense(Node):
    """Sparse features onto the dense grid; `output_shape` is `[N, C, s0, s1, s2]`."""

    op_type = "ScatterDense"

    format: _RequiredString
    input_spatial_shape: _Ints3
    output_shape: _Ints5
    output_layout: _OptionalString = None
    input_dynamic_range: _Range = None


@dataclass(frozen=True, kw_only=True)
class Reshape(Node):
    """New shape of a dense tensor; `dims` is an attribute, unlike in standard ONNX."""

    op_type = "Reshape"

    dims: _Ints


@dataclass(frozen=True, kw_only=True)
class Transpose(Node):
    """Permutation of a dense tensor; standard ONNX calls the attribute `perm`."""

    op_type = "Transpose"

    dims: _Ints


NODE_TYPES: dict[str, type[Node]] = {
    "SparseConvolution": SparseConvolution,
    "Add": Add,
    "QuantAdd": Add,
    "Relu": Relu,
    "ScatterDense": ScatterDense,
    "Reshape": Reshape,
    "Transpose": Transpose,
}


def attribute_specs(node_type: type[Node]) -> dict[str, AttributeSpec]:
    """ONNX attributes of an op, in the order in which they are written.

    >>> attribute_specs(Reshape)["dims"].kind.value
    'INTS'
    """
    hints = get_type_hints(node_type, include_extras=True)
    found = {}
    for item in fields(node_type):
        for extra in getattr(hints[item.name], "__metadata__", ()):
            found[item.name] = extra
    return found


@dataclass(frozen=True)
class TensorInfo:
    """A graph input or output: name and the shape of the trace (rows are a placeholder)."""

    name: str
    shape: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Graph:
    """A sparse network as the file describes it, nodes in execution order."""

    nodes: tuple[Node, ...]
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    initializers: Mapping[str, NDArray[np.float16]]

    @property
    def convs(self) -> list[SparseConvolution]:
        """The convolutions, in execution order."""
        return [node for node in self.nodes if isinstance(node, SparseConvolution)]

    def producer(self, tensor: str) -> Node | None:
        """Node that makes a tensor; None for a graph input or an unknown name."""
        return next((node for node in self.nodes if node.output == tensor), None)

    def consumers(self, tensor: str) -> list[Node]:
        """Nodes that read a tensor, in execution order."""
        return [node for node in self.nodes if tensor in node.inputs]


@dataclass(frozen=True)
class DeclaredRange:
    """The amax that one int8 consumer declares for one of its inputs.

    Attributes:
        tensor: what is read.
        consumer: name of the node that reads it.
        operand: which input of the node it is.
        amax: the range.
    """

    tensor: str
    consumer: str
    operand: int
    amax: float


def declared_ranges(graph: Graph) -> list[DeclaredRange]:
    """Ranges of tensors as their int8 consumers declare them, in execution order.

    There is no output range in the dialect: a tensor's step is what its consumers say
    (specification section 6). A missing range reads as 0.
    """
    found: list[DeclaredRange] = []
    for node in graph.nodes:
        if isinstance(node, SparseConvolution) and node.precision == INT8:
            found.append(
                DeclaredRange(node.inputs[0], node.name, 0, node.input_dynamic_range or 0.0)
            )
        elif isinstance(node, Add) and node.precision == INT8:
            amaxes = (node.input0_dynamic_range, node.input1_dynamic_range)
            found += [
                DeclaredRange(tensor, node.name, operand, amax or 0.0)
                for operand, (tensor, amax) in enumerate(zip(node.inputs, amaxes, strict=False))
            ]
    return found
