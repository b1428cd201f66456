"""The graph after folding: convolutions and sums with their norm and activation absorbed.

A traced graph has a node for each module call. Integer engines see fewer: a batch norm belongs to
the convolution before it, and a ReLU to the convolution or sum of which it is the only consumer.
What is left are the *tensors* that exist between kernels, and each of them has one range.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from voxelquant.errors import GraphError
from voxelquant.sparse import ConvGeometry, SparseGraph, SparseNode, convolution_of

GRAPH_INPUT = "@input"


@dataclass(frozen=True)
class FusedNode:
    """One kernel of the network, and at once the tensor that it makes.

    Attributes:
        name: unique name of the node and of its output tensor; the module path, with a suffix
            `#2` when a standalone ReLU module runs a second time.
        path: path of the module that computes, or that such a module would have (`SparseNode`).
        kind: `conv`, `add`, `relu` or `to_dense`.
        inputs: names of the tensors consumed, `@input` for the graph's own.
        batchnorm_path: batch norm folded into this convolution, or None.
        relu_path: ReLU fused into this node, or None.
        geometry: of a convolution, else None.
        inverse: whether the convolution is an inverse one.
    """

    name: str
    path: str
    kind: str
    inputs: tuple[str, ...]
    batchnorm_path: str | None = None
    relu_path: str | None = None
    geometry: ConvGeometry | None = None
    inverse: bool = False


@dataclass(frozen=True)
class FusedGraph:
    """Kernels and tensors of a network.

    Attributes:
        nodes: in execution order.
        outputs: names of the tensors that leave the sparse part.
        shared_relus: paths of fused ReLU modules that also run elsewhere, standalone or outside
            of the sparse part; an engine must leave them in (a second ReLU changes nothing).
    """

    nodes: tuple[FusedNode, ...]
    outputs: tuple[str, ...]
    shared_relus: tuple[str, ...] = ()

    def node(self, name: str) -> FusedNode:
        """Node of a name.

        Raises:
            KeyError: there is none.
        """
        for node in self.nodes:
            if node.name == name:
                return node
        raise KeyError(name)

    def consumers(self, tensor: str) -> list[FusedNode]:
        """Nodes that read a tensor, in execution order."""
        return [node for node in self.nodes if tensor in node.inputs]

    @property
    def convs(self) -> tuple[FusedNode, ...]:
        """Convolutions, in execution order."""
        return tuple(node for node in self.nodes if node.kind == "conv")

    @property
    def tensors(self) -> tuple[str, ...]:
        """The graph input and every node's output, in execution order."""
        return (GRAPH_INPUT, *(node.name for node in self.nodes))


def fuse_graph(graph: SparseGraph, calls: Mapping[str, int]) -> FusedGraph:
    """Absorb batch norms and ReLUs into the nodes before them.

    Args:
        graph: traced graph.
        calls: how often each ReLU and batch norm module ran in that forward, by path, wherever
            in the model it stands.

    Raises:
        GraphError: a batch norm that is not a convolution's only consumer, or a convolution, sum
            or batch norm that runs twice in one forward.
    """
    _check_runs_once(graph, calls)
    names = {graph.input_value: GRAPH_INPUT}  # value id → tensor name
    nodes: dict[str, FusedNode] = {}
    relu_calls: Counter[str] = Counter()
    for traced in graph.nodes:
        producer = nodes.get(names[traced.inputs[0]])
        if traced.kind == "batchnorm":
            conv = _require_foldable(graph, traced, producer)
            nodes[conv.name] = _replace(conv, batchnorm_path=traced.path)
            names[traced.output] = conv.name
        elif traced.kind == "relu" and producer is not None and _fusible(graph, traced, producer):
            nodes[producer.name] = _replace(producer, relu_path=traced.path)
            names[traced.output] = producer.name
        else:
            relu_calls[traced.path] += 1
            call = relu_calls[traced.path]
            name = traced.path if call == 1 else f"{traced.path}#{call}"
            names[traced.output] = name
            inputs = tuple(names[value] for value in traced.inputs)
            nodes[name] = _plain_node(name, traced, inputs)
    outputs = tuple(dict.fromkeys(names[value] for value in graph.outputs))
    fused = Counter(node.relu_path for node in nodes.values() if node.relu_path is not None)
    shared = tuple(path for path, uses in fused.items() if calls[path] > uses)
    return FusedGraph(tuple(nodes.values()), outputs, shared)


def _plain_node(name: str, traced: SparseNode, inputs: tuple[str, ...]) -> FusedNode:
    conv = None if traced.module is None else convolution_of(traced.module, traced.path)
    if conv is None:
        return FusedNode(name, traced.path, traced.kind, inputs)
    return FusedNode(
        name, traced.path, traced.kind, inputs, geometry=conv.geometry, inverse=conv.inverse
    )


def _replace(node: FusedNode, **changes: str) -> FusedNode:
    return FusedNode(**{**node.__dict__, **changes})


def _check_runs_once(graph: SparseGraph, calls: Mapping[str, int]) -> None:
    runs = Counter(node.path for node in graph.nodes if node.kind != "relu")
    for path, count_in_graph in runs.items():
        count = max(count_in_graph, calls.get(path, 0))
        if count > 1:
            raise GraphError(
                f"{path}: got a module that runs {count} times in one forward, need one module for "
                "each use: each has its own ranges"
            )


def _require_foldable(
    graph: SparseGraph, norm: SparseNode, producer: FusedNode | None
) -> FusedNode:
    only_consumer = _is_only_consumer(graph, norm)
    if (
        producer is None
        or producer.kind != "conv"
        or producer.batchnorm_path is not None
        or producer.relu_path is not None
        or not only_consumer
    ):
        raise GraphError(
            f"{norm.path}: got a batch norm after {producer.path if producer else 'the input'!r}, "
            "need one that directly follows a convolution and is its only consumer: it is folded "
            "into the weights"
        )
    return producer


def _fusible(graph: SparseGraph, relu: SparseNode, producer: FusedNode) -> bool:
    if producer.kind not in ("conv", "add") or producer.relu_path is not None:
        return False
    return _is_only_consumer(graph, relu)


def _is_only_consumer(graph: SparseGraph, node: SparseNode) -> bool:
    value = node.inputs[0]
    return graph.consumers(value) == [node] and value not in graph.outputs
