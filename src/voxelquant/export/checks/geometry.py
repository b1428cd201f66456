"""Geometry of convolutions: parameters, channels, grids, bounds."""

from __future__ import annotations

from collections.abc import Iterator

from voxelquant.errors import GeometryError
from voxelquant.export.attributes import Ints
from voxelquant.export.defects import Defect, error, warning
from voxelquant.export.flow import UNKNOWN_SITES, GraphFlow, TensorFacts, conv_channels
from voxelquant.export.ir import (
    Add,
    Graph,
    Node,
    Relu,
    Reshape,
    SparseConvolution,
    Transpose,
)
from voxelquant.sparse import ConvGeometry, Triple

# c_in → c_out of the published CenterPoint and BEVFusion files; the engine's table is closed.
KNOWN_CHANNEL_PAIRS = frozenset(
    {(4, 16), (5, 16), (16, 16), (16, 32), (32, 32), (32, 64), (64, 64), (64, 128), (128, 128)}
)


def check_geometry(graph: Graph, flow: GraphFlow) -> Iterator[Defect]:
    """Defects of geometry, channels, grids and output bounds."""
    for node in graph.nodes:
        yield from _check_kind(node, flow)
        if isinstance(node, SparseConvolution):
            yield from _check_parameters(node)
            yield from _check_channels(node, graph, flow)
            yield from _check_grids(node, flow)
            yield from _check_bound(node)
        elif isinstance(node, Add):
            yield from _check_operands(node, flow)


def _check_kind(node: Node, flow: GraphFlow) -> Iterator[Defect]:
    facts = flow.input_facts(node)
    if facts is None or isinstance(node, Relu):
        return
    wants_dense = isinstance(node, (Reshape, Transpose))
    if facts.is_dense != wants_dense:
        got, need = ("dense", "sparse") if facts.is_dense else ("sparse", "dense")
        message = f"got the {got} tensor {node.inputs[0]!r}, need a {need} one"
        yield error(node.name, "tensor-kind", message, "one ScatterDense stands between the two")


def conv_geometry(conv: SparseConvolution) -> ConvGeometry:
    """Geometry of a conv node in the file's axis order.

    Raises:
        GeometryError: parameters that no convolution can have.
    """

    def triple(values: Ints) -> Triple:
        if len(values) != 3:
            raise GeometryError(f"got {list(values)}, need three values")
        return (values[0], values[1], values[2])

    return ConvGeometry(
        triple(conv.kernel_size),
        triple(conv.stride),
        # The engine centres a submanifold kernel whatever its padding; 0 makes equal maps equal.
        (0, 0, 0) if conv.subm else triple(conv.padding),
        triple(conv.dilation),
        subm=conv.subm,
    )


def _check_parameters(conv: SparseConvolution) -> Iterator[Defect]:
    try:
        conv_geometry(conv)
    except GeometryError as reason:
        yield error(conv.name, "conv-parameters", str(reason), "export the layer again")
    if conv.subm and conv.inverse:
        message = "got a conv that is both submanifold and inverse"
        yield error(conv.name, "conv-parameters", message, "it can be one of them")
    if conv.transposed or conv.groups != 1 or any(conv.output_padding) or conv.ndim != 3:
        message = (
            f"got transposed {int(conv.transposed)}, groups {conv.groups}, output_padding "
            f"{list(conv.output_padding)}, ndim {conv.ndim}: the parser reads none of them"
        )
        mend = "only ordinary 3D convs can be expressed; lift a 2D one to z extent 1"
        yield error(conv.name, "conv-inexpressible", message, mend)


def _check_channels(conv: SparseConvolution, graph: Graph, flow: GraphFlow) -> Iterator[Defect]:
    c_in, c_out = conv_channels(conv, graph)
    facts = flow.input_facts(conv)
    if facts is not None and facts.channels is not None and c_in and facts.channels != c_in:
        message = f"got {facts.channels} channels in {conv.inputs[0]!r}, the conv takes {c_in}"
        yield error(conv.name, "channel-chain", message, "connect it to another tensor")
    if c_in and c_out and (c_in, c_out) not in KNOWN_CHANNEL_PAIRS:
        message = f"got channels {c_in} x {c_out}, which no published file uses"
        mend = "the engine may answer `Can not find any matched kernel`: try it, or pad channels"
        yield warning(conv.name, "channel-pair", message, mend)


def _check_grids(conv: SparseConvolution, flow: GraphFlow) -> Iterator[Defect]:
    facts = flow.input_facts(conv)
    if facts is None or not conv.input_spatial_shape:
        return
    if facts.grid and facts.grid != conv.input_spatial_shape:
        message = (
            f"got input_spatial_shape {list(conv.input_spatial_shape)}, its input has "
            f"{list(facts.grid)}"
        )
        yield error(conv.name, "spatial-shape", message, "trace the model on one frame")
    wanted = _expected_output(conv, flow)
    if wanted and conv.output_spatial_shape and conv.output_spatial_shape != wanted:
        message = (
            f"got output_spatial_shape {list(conv.output_spatial_shape)}, the geometry gives "
            f"{list(wanted)}"
        )
        mend = "kernel_size, stride, padding and dilation are in axis order: compare them"
        yield error(conv.name, "spatial-shape", message, mend)


def _expected_output(conv: SparseConvolution, flow: GraphFlow) -> Ints:
    if conv.inverse:
        coupled = flow.inverted.get(conv.name)
        return coupled.input_spatial_shape if coupled else ()
    try:
        a, b, c = conv.input_spatial_shape
        return conv_geometry(conv).output_shape((a, b, c))
    except GeometryError:
        return ()


def _check_bound(conv: SparseConvolution) -> Iterator[Defect]:
    observed = conv.output_shape[0] if conv.output_shape else 0
    if conv.output_bound < max(observed, 1):
        message = f"got output_bound {conv.output_bound}, the trace has {observed} voxels"
        mend = "the engine drops voxels above it: raise output_bound"
        yield error(conv.name, "output-bound", message, mend)


def _check_operands(add: Add, flow: GraphFlow) -> Iterator[Defect]:
    operands = [flow.tensors.get(name) for name in add.inputs]
    known: list[TensorFacts] = [facts for facts in operands if facts is not None]
    if len(known) < 2:
        return
    a, b = known
    if a.channels != b.channels:
        message = f"got a sum of {a.channels} and {b.channels} channels"
        yield error(add.name, "add-operands", message, "both operands need equal channels")
    if a.sites != b.sites and UNKNOWN_SITES not in (a.sites, b.sites):
        message = f"got a sum of {add.inputs[0]!r} and {add.inputs[1]!r} on different sites"
        yield error(add.name, "add-operands", message, "both operands need the same voxels")
