"""The way out of the sparse world: Relu folding, ScatterDense, Reshape, Transpose."""

from __future__ import annotations

import math
from collections.abc import Iterator

from voxelquant.export.defects import Defect, error, warning
from voxelquant.export.flow import GraphFlow
from voxelquant.export.ir import (
    Add,
    Graph,
    Relu,
    Reshape,
    ScatterDense,
    SparseConvolution,
    Transpose,
)

FORMATS = ("zyx", "xyz")
_LAYOUTS = (None, "NCHW", "NCHW32", "NHWzC")


def check_dense(graph: Graph, flow: GraphFlow) -> Iterator[Defect]:
    """Defects of rectifiers and of the dense tail."""
    for node in graph.nodes:
        if isinstance(node, Relu):
            yield from _check_relu(node, graph)
        elif isinstance(node, ScatterDense):
            yield from _check_scatter(node, flow)
        elif isinstance(node, Reshape):
            yield from _check_reshape(node, flow)
        elif isinstance(node, Transpose):
            yield from _check_transpose(node, flow)
    yield from _check_one_format(graph)


def _check_relu(relu: Relu, graph: Graph) -> Iterator[Defect]:
    producer = graph.producer(relu.inputs[0])
    if isinstance(producer, SparseConvolution):
        message = f"got a Relu after {producer.name}, which the engine does not fold"
        mend = "write activation `ReLU` in the conv, and leave the node out"
        yield error(relu.name, "relu-after-conv", message, mend)
    elif isinstance(producer, Add):
        others = len(graph.consumers(relu.inputs[0])) > 1
        if others or relu.inputs[0] in {info.name for info in graph.outputs}:
            message = f"got a Relu on {producer.name}, whose sum is read elsewhere as well"
            mend = "folding replaces the sum: let everyone read the output of the Relu"
            yield error(relu.name, "relu-shared-sum", message, mend)
    else:
        message = "got a Relu that follows no Add, as no published file has"
        yield warning(relu.name, "relu-standalone", message, "fuse it into a conv")


def _check_scatter(node: ScatterDense, flow: GraphFlow) -> Iterator[Defect]:
    if node.format not in FORMATS:
        message = f"got format {node.format!r}, need `zyx` or `xyz`"
        yield error(node.name, "scatter-format", message, "name the order of the coordinates")
    elif len(node.input_spatial_shape) == 3:
        first, *_, last = node.input_spatial_shape
        z, x = (first, last) if node.format == "zyx" else (last, first)
        if z > x:
            message = f"got format {node.format!r} for a grid {list(node.input_spatial_shape)}"
            mend = "height is the longer side: compare the order of grid and format"
            yield warning(node.name, "scatter-format-order", message, mend)
    if node.output_layout not in _LAYOUTS:
        message = f"got output_layout {node.output_layout!r}: it reads as NCHW"
        yield error(node.name, "scatter-layout", message, "write NCHW, NCHW32 or NHWzC")
    if node.output_shape and node.output_shape[0] != 1:
        message = f"got batch {node.output_shape[0]}, the engine runs batch 1"
        yield error(node.name, "scatter-batch", message, "export with one frame")
    facts = flow.input_facts(node)
    if facts is None or facts.is_dense or len(node.output_shape) != 5:
        return
    if facts.grid and facts.grid != node.input_spatial_shape:
        message = f"got grid {list(node.input_spatial_shape)}, its input has {list(facts.grid)}"
        yield error(node.name, "scatter-shape", message, "trace the model on one frame")
    elif node.output_shape[1:] != (facts.channels, *node.input_spatial_shape):
        message = (
            f"got output_shape {list(node.output_shape)}, need N, {facts.channels} channels and "
            f"grid {list(node.input_spatial_shape)}"
        )
        yield error(node.name, "scatter-shape", message, "write [N, C, s0, s1, s2]")


def _check_one_format(graph: Graph) -> Iterator[Defect]:
    scatters = [node for node in graph.nodes if isinstance(node, ScatterDense)]
    for node in scatters[1:]:
        if node.format in FORMATS and node.format != scatters[0].format:
            message = f"got format {node.format!r}, {scatters[0].name} has {scatters[0].format!r}"
            mend = "a network has one order of coordinates"
            yield error(node.name, "scatter-format-mixed", message, mend)


def _check_reshape(node: Reshape, flow: GraphFlow) -> Iterator[Defect]:
    facts = flow.input_facts(node)
    if facts is None or not facts.is_dense:
        return
    if min(node.dims, default=0) < 1 or math.prod(node.dims) != math.prod(facts.dense_shape):
        message = f"got dims {list(node.dims)} for a tensor of {list(facts.dense_shape)}"
        yield error(node.name, "reshape-dims", message, "the number of elements must stay")


def _check_transpose(node: Transpose, flow: GraphFlow) -> Iterator[Defect]:
    facts = flow.input_facts(node)
    if facts is None or not facts.is_dense:
        return
    if sorted(node.dims) != list(range(len(facts.dense_shape))):
        message = f"got dims {list(node.dims)} for {len(facts.dense_shape)} axes"
        yield error(node.name, "transpose-dims", message, "write a permutation of the axes")
