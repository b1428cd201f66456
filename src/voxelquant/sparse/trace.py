"""Record what a sparse network computes: a graph of convs, norms, sums and scatters.

The trace watches modules, not names: every sparse module with a `graph_kind` and every
BatchNorm1d or ReLU that acts on features becomes a node. Tensors are told apart by identity, so
two consumers of one tensor are seen as such, whatever the model's Python looks like.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from voxelquant.errors import GraphError
from voxelquant.sparse.conv_geometry import Triple
from voxelquant.sparse.modules import SparseModule
from voxelquant.sparse.tensor import SparseTensor

_FEATURE_MODULES: dict[type[nn.Module], str] = {nn.BatchNorm1d: "batchnorm", nn.ReLU: "relu"}


@dataclass(frozen=True)
class SparseNode:
    """One operation.

    Attributes:
        path: module path in the traced model (`conv2.3.conv1`).
        kind: `conv`, `batchnorm`, `relu`, `add` or `to_dense`.
        module: the module that ran.
        inputs: value ids consumed, in order.
        output: value id produced.
        in_spatial_shape: grid (z, y, x) of the first input.
        out_spatial_shape: grid (z, y, x) of the output (of the input for `to_dense`).
        output_shape: shape of the output features, or of the dense map.
    """

    path: str
    kind: str
    module: nn.Module
    inputs: tuple[int, ...]
    output: int
    in_spatial_shape: Triple
    out_spatial_shape: Triple
    output_shape: tuple[int, ...]


@dataclass(frozen=True)
class SparseGraph:
    """Nodes in execution order; value ids are 0 for the input, then one per node output."""

    nodes: tuple[SparseNode, ...]
    input_value: int
    outputs: tuple[int, ...]

    def consumers(self, value: int) -> list[SparseNode]:
        """Nodes that read a value, in execution order."""
        return [node for node in self.nodes if value in node.inputs]

    def producer(self, value: int) -> SparseNode | None:
        """Node that made a value; None for the graph input."""
        return next((node for node in self.nodes if node.output == value), None)


@dataclass
class _Recorder:
    nodes: list[SparseNode] = field(default_factory=list)
    value_of: dict[int, int] = field(default_factory=dict)  # id(features) → value
    shape_of: dict[int, Triple] = field(default_factory=dict)  # value → grid
    alive: list[Tensor] = field(default_factory=list)  # ids stay unique while tensors live

    def new_value(self, features: Tensor, grid: Triple) -> int:
        value = len(self.shape_of)
        self.value_of[id(features)] = value
        self.shape_of[value] = grid
        self.alive.append(features)
        return value

    def record(self, path: str, kind: str, module: nn.Module, args: Any, out: Any) -> None:
        operands = [a for a in args if isinstance(a, (SparseTensor, Tensor))]
        inputs = tuple(self._value(path, _features(a)) for a in operands)
        in_grid = self.shape_of[inputs[0]]
        out_grid = out.spatial_shape if isinstance(out, SparseTensor) else in_grid
        shape = tuple(_features(out).shape)
        output = self.new_value(_features(out), out_grid)
        node = SparseNode(path, kind, module, inputs, output, in_grid, out_grid, shape)
        self.nodes.append(node)

    def returned_values(self, result: Any) -> Iterator[int]:
        """Values among what the model returned."""
        if isinstance(result, Mapping):
            result = list(result.values())
        if isinstance(result, (list, tuple)):
            for item in result:
                yield from self.returned_values(item)
        elif isinstance(result, (SparseTensor, Tensor)):
            value = self.value_of.get(id(_features(result)))
            if value is not None:
                yield value

    def _value(self, path: str, features: Tensor) -> int:
        value = self.value_of.get(id(features))
        if value is None:
            raise GraphError(
                f"{path or 'model'}: consumes features that no traced module produced; compute "
                "them with modules (SparseAdd, nn.ReLU, nn.BatchNorm1d, SparseToDense)"
            )
        return value


def _features(x: SparseTensor | Tensor) -> Tensor:
    return x.features if isinstance(x, SparseTensor) else x


@contextmanager
def _hooks(model: nn.Module, recorder: _Recorder) -> Iterator[None]:
    handles = []
    for path, module in model.named_modules():
        kind = _kind_of(module)
        if kind is None:
            continue

        def hook(
            m: nn.Module, args: Any, named: Any, out: Any, path: str = path, kind: str = kind
        ) -> None:
            operands = [*args, *named.values()]
            first = operands[0]
            # A BatchNorm1d or ReLU of the dense part of a detector is none of this graph, and
            # neither is one on the dense map that left it.
            on_features = first if isinstance(first, Tensor) and first.ndim == 2 else None
            if isinstance(m, SparseModule) or id(on_features) in recorder.value_of:
                recorder.record(path, kind, m, operands, out)

        handles.append(module.register_forward_hook(hook, with_kwargs=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _kind_of(module: nn.Module) -> str | None:
    if isinstance(module, SparseModule):
        return module.graph_kind
    return _FEATURE_MODULES.get(type(module))


def trace_sparse_graph(model: nn.Module, x: SparseTensor, *more: Any) -> SparseGraph:
    """Run the model once and record its sparse part.

    Args:
        model: any module that takes a sparse tensor first.
        x: example input with many voxels; one voxel can vanish in a strided conv.
        more: further positional arguments of the model.

    Returns:
        The graph; its outputs are the values that no node consumes or that the model returns (in
        tuples, lists and dicts too).

    Raises:
        GraphError: features were computed outside of modules, or nothing was recorded.
    """
    recorder = _Recorder()
    input_value = recorder.new_value(x.features, x.spatial_shape)
    training_of = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad(), _hooks(model, recorder):
            returned = model(x, *more)
    finally:
        for module, training in training_of:  # one by one: some may be frozen in eval mode
            module.training = training
    if not recorder.nodes:
        raise GraphError("got a model without sparse modules, need at least one sparse conv")
    consumed = {value for node in recorder.nodes for value in node.inputs}
    handed_out = consumed.intersection(recorder.returned_values(returned))
    outputs = tuple(
        n.output for n in recorder.nodes if n.output not in consumed or n.output in handed_out
    )
    return SparseGraph(tuple(recorder.nodes), input_value, outputs)
