"""What flows along every tensor of a graph: precision, channels, sites, grid.

One pass in execution order, tolerant of defective files: a tensor of unknown origin has no facts,
and whoever judges it skips it.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field, replace

from voxelquant.export.attributes import Ints
from voxelquant.export.ir import (
    FP16,
    Add,
    Graph,
    Node,
    Relu,
    Reshape,
    ScatterDense,
    SparseConvolution,
    Transpose,
)

# Sites of an inverse conv whose coupled conv is missing: nothing can be compared with them.
UNKNOWN_SITES = "unknown"


@dataclass(frozen=True)
class TensorFacts:
    """Facts of one tensor.

    Attributes:
        precision: type of its elements, `int8` or `fp16`.
        channels: feature channels; None where unknown.
        sites: identity of the active sites, equal for tensors on the same sites; None if dense.
        grid: extents of the sparse grid in the file's axis order; empty where unknown.
        dense_shape: shape of a dense tensor; empty for a sparse one.
    """

    precision: str
    channels: int | None
    sites: Hashable
    grid: Ints = ()
    dense_shape: Ints = ()

    @property
    def is_dense(self) -> bool:
        """Whether the tensor came through a ScatterDense."""
        return self.sites is None


@dataclass(frozen=True)
class GraphFlow:
    """Facts by tensor name, and the downsampling conv that each inverse conv names."""

    tensors: dict[str, TensorFacts] = field(default_factory=dict)
    inverted: dict[str, SparseConvolution] = field(default_factory=dict)

    def input_facts(self, node: Node) -> TensorFacts | None:
        """Facts of a node's first input; None where unknown."""
        return self.tensors.get(node.inputs[0])


def conv_channels(conv: SparseConvolution, graph: Graph) -> tuple[int, int]:
    """Declared `(c_in, c_out)`, from the weight where the attributes are absent; 0 if unknown."""
    weight = graph.initializers.get(conv.inputs[1])
    c_out, c_in = (
        (weight.shape[0], weight.shape[-1]) if weight is not None and weight.ndim else (0, 0)
    )
    return conv.in_channels or c_in, conv.out_channels or c_out


def trace_flow(graph: Graph) -> GraphFlow:
    """Facts of every tensor that can be reached from the graph input."""
    flow = GraphFlow()
    for info in graph.inputs:
        first = next((conv for conv in graph.convs if conv.inputs[0] == info.name), None)
        grid = first.input_spatial_shape if first else ()
        channels = info.shape[-1] if info.shape else None
        flow.tensors[info.name] = TensorFacts(FP16, channels or None, ("input", info.name), grid)
    for node in graph.nodes:
        before = flow.input_facts(node)
        if before is not None:
            after = _after(node, before, graph, flow)
            if after is not None:
                flow.tensors[node.output] = after
    return flow


def _after(node: Node, before: TensorFacts, graph: Graph, flow: GraphFlow) -> TensorFacts | None:
    if isinstance(node, SparseConvolution):
        return _after_conv(node, before, graph, flow)
    if isinstance(node, Add):
        return replace(before, precision=node.output_precision)
    if isinstance(node, Relu):
        return before
    if isinstance(node, ScatterDense):
        return TensorFacts(FP16, before.channels, None, (), node.output_shape)
    if isinstance(node, Reshape):
        return replace(before, dense_shape=node.dims)
    if isinstance(node, Transpose) and sorted(node.dims) == list(range(len(before.dense_shape))):
        return replace(before, dense_shape=tuple(before.dense_shape[d] for d in node.dims))
    return None


def _after_conv(
    conv: SparseConvolution, before: TensorFacts, graph: Graph, flow: GraphFlow
) -> TensorFacts:
    sites: Hashable = (before.sites, conv.kernel_size, conv.stride, conv.padding, conv.dilation)
    if conv.subm:
        sites = before.sites
    elif conv.inverse:
        coupled = _find_coupled(conv, graph, flow)
        sites = UNKNOWN_SITES
        if coupled is not None:
            flow.inverted[conv.name] = coupled
            link = flow.input_facts(coupled)
            sites = link.sites if link else sites
    _, c_out = conv_channels(conv, graph)
    return TensorFacts(conv.output_precision, c_out or None, sites, conv.output_spatial_shape)


def _find_coupled(
    conv: SparseConvolution, graph: Graph, flow: GraphFlow
) -> SparseConvolution | None:
    earlier = graph.nodes[: graph.nodes.index(conv)]
    found = [
        node
        for node in earlier
        if isinstance(node, SparseConvolution)
        and not (node.subm or node.inverse)
        and node.rulebook == conv.rulebook != ""
    ]
    return found[-1] if found else None
