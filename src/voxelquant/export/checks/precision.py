"""Precisions and ranges: who computes in int8, and what its codes mean."""

from __future__ import annotations

import math
from collections.abc import Iterator

from voxelquant.export.defects import Defect, error, warning
from voxelquant.export.flow import GraphFlow
from voxelquant.export.ir import (
    FP16,
    INT8,
    Add,
    Graph,
    Relu,
    ScatterDense,
    SparseConvolution,
    declared_ranges,
)

_PROVEN_ACTIVATIONS = ("ReLU", "None", "")
_UNPROVEN_ACTIVATIONS = ("Sigmoid", "LeakyReLU")


def check_precision(graph: Graph, flow: GraphFlow) -> Iterator[Defect]:
    """Defects of precisions, activations and activation ranges."""
    yield from _check_words(graph)
    yield from _check_ranges(graph)
    yield from _check_consumers(graph, flow)
    yield from _check_unread(graph)
    for info in graph.outputs:
        facts = flow.tensors.get(info.name)
        producer = graph.producer(info.name)
        if isinstance(producer, Relu):
            producer = graph.producer(producer.inputs[0])
        if facts is not None and producer is not None and facts.precision == INT8:
            message = f"got graph output {info.name!r} in int8, need fp16"
            mend = "set output_precision to fp16 there"
            yield error(producer.name, "output-int8", message, mend)


def _check_words(graph: Graph) -> Iterator[Defect]:
    for node in graph.nodes:
        if not isinstance(node, (SparseConvolution, Add)):
            continue
        for key in ("precision", "output_precision"):
            word = getattr(node, key)
            if word not in (INT8, FP16):
                message = f"got {key} {word!r}: anything but `int8` runs in fp16"
                yield error(node.name, "precision-word", message, "write `int8` or `fp16`")
        if isinstance(node, Add) and (node.precision, node.output_precision) == (INT8, FP16):
            message = "got an int8 Add with fp16 output, which the open engine does not compute"
            mend = "compute the Add in fp16, or hand its output on in int8"
            yield warning(node.name, "add-int8-to-fp16", message, mend)
        if isinstance(node, SparseConvolution):
            yield from _check_activation(node)


def _check_activation(conv: SparseConvolution) -> Iterator[Defect]:
    if conv.activation in _UNPROVEN_ACTIVATIONS:
        message = f"got activation {conv.activation!r}, which no published file uses"
        yield warning(conv.name, "activation-unproven", message, "use ReLU")
    elif conv.activation not in _PROVEN_ACTIVATIONS:
        message = f"got activation {conv.activation!r}, need `ReLU` or `None`"
        yield error(conv.name, "activation-unknown", message, "use ReLU")


def _check_ranges(graph: Graph) -> Iterator[Defect]:
    seen: dict[str, tuple[str, float]] = {}
    for declared in declared_ranges(graph):
        if not (math.isfinite(declared.amax) and declared.amax > 0):
            message = f"got range {declared.amax} for tensor {declared.tensor!r} of an int8 node"
            mend = "calibrate before export"
            yield error(declared.consumer, "input-range", message, mend)
            continue
        consumer, amax = seen.setdefault(declared.tensor, (declared.consumer, declared.amax))
        if amax != declared.amax:
            message = (
                f"got range {declared.amax:.6g} for tensor {declared.tensor!r}, but {consumer} "
                f"declares {amax:.6g}: the open engine keeps the last, our runner applies them in "
                "turn, as the reference's training does"
            )
            mend = "give all consumers of a tensor one range"
            yield warning(declared.consumer, "range-conflict", message, mend)


def _check_unread(graph: Graph) -> Iterator[Defect]:
    declared = {found.tensor for found in declared_ranges(graph)}
    outputs = {info.name for info in graph.outputs}
    for node in graph.nodes:
        if not isinstance(node, (SparseConvolution, Add)) or node.output_precision != INT8:
            continue
        relus = [n for n in graph.consumers(node.output) if isinstance(n, Relu)]
        tensor = relus[0].output if isinstance(node, Add) and relus else node.output
        readers = [n for n in graph.consumers(tensor) if not isinstance(n, Relu)]
        # Readers of another precision, and graph outputs in int8, are named by their own rules.
        if tensor not in declared and tensor not in outputs and not readers:
            message = f"got int8 tensor {tensor!r}, whose range no consumer declares"
            mend = "there is no output range in the dialect: hand it on in fp16"
            yield error(node.name, "range-undeclared", message, mend)


def _check_consumers(graph: Graph, flow: GraphFlow) -> Iterator[Defect]:
    for node in graph.nodes:
        if isinstance(node, ScatterDense):
            facts = flow.input_facts(node)
            if facts is not None and facts.precision == INT8:
                message = f"got int8 input {node.inputs[0]!r}, need fp16"
                mend = "set output_precision of its producer to fp16"
                yield error(node.name, "scatter-int8", message, mend)
        elif isinstance(node, (SparseConvolution, Add)) and node.precision in (INT8, FP16):
            operands = node.inputs[:1] if isinstance(node, SparseConvolution) else node.inputs
            for tensor in dict.fromkeys(operands):
                yield from _check_operand(node, tensor, graph, flow)


def _check_operand(
    node: SparseConvolution | Add, tensor: str, graph: Graph, flow: GraphFlow
) -> Iterator[Defect]:
    facts = flow.tensors.get(tensor)
    if facts is None or facts.precision not in (INT8, FP16) or facts.precision == node.precision:
        return
    producer = graph.producer(tensor)
    maker = producer.name if producer else "the graph input"
    message = (
        f"got {facts.precision} input {tensor!r} from {maker} in a node that computes in "
        f"{node.precision}"
    )
    if isinstance(node, SparseConvolution) and node.precision == INT8:
        message += ", as no published file has: the open engine quantizes it on entry"
        mend = "compute this conv in fp16, or let its producer write int8"
        yield warning(node.name, "fp16-into-int8", message, mend)
    else:
        mend = "producer and consumers of a tensor need one precision"
        yield error(node.name, "precision-mismatch", message, mend)
