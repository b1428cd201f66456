"""Run the sparse part of a network node by node, and again from any node on.

Questions about single layers ("what if only this one were quantized?") change one node and what
depends on it. Everything else is run once, kept, and read again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from voxelquant.errors import GraphError
from voxelquant.quant.feature_sums import QuantFeatureAdd
from voxelquant.quant.topology import GRAPH_INPUT, FusedGraph, FusedNode
from voxelquant.sparse import SparseModule, SparseTensor, apply_module

Value = SparseTensor | Tensor  # a scatter makes a dense map, every other node a sparse tensor
Values = Mapping[str, Value]  # by tensor name


@dataclass(frozen=True)
class ReplayableGraph:
    """The nodes of a traced network with the modules that compute them.

    Attributes:
        graph: kernels and tensors.
        modules: node name → module that maps the node's operands to its output.
        relus: node name → the ReLU fused into it, where there is one.
    """

    graph: FusedGraph
    modules: Mapping[str, nn.Module]
    relus: Mapping[str, nn.Module]
    _dependents: dict[str, tuple[FusedNode, ...]] = field(default_factory=dict)

    @classmethod
    def of(cls, model: nn.Module, graph: FusedGraph) -> ReplayableGraph:
        """The graph over the modules that stand in a model, whose batch norms are folded.

        Raises:
            GraphError: a node is computed by spconv, or in the code of a forward.
        """
        modules = dict(model.named_modules())
        relus = {n.name: n.relu_path for n in graph.nodes if n.relu_path is not None}
        for name, path in [*((n.name, n.path) for n in graph.nodes), *relus.items()]:
            module = modules.get(path)
            standing = isinstance(module, (SparseModule, nn.ReLU))
            if not standing or isinstance(module, QuantFeatureAdd):
                raise GraphError(
                    f"{name}: got a layer that is spconv's, or computed in the code of a forward, "
                    "need modules of voxelquant.sparse to run single layers again"
                )
        return cls(
            graph,
            {node.name: modules[node.path] for node in graph.nodes},
            {name: modules[path] for name, path in relus.items()},
        )

    def run(self, x: SparseTensor) -> dict[str, Value]:
        """Every tensor of one forward, the input included.

        All of them are kept: the largest frame of CenterPoint takes about half a gigabyte.
        """
        values: dict[str, Value] = {GRAPH_INPUT: x}
        for node in self.graph.nodes:
            values[node.name] = self._compute(node, self.modules[node.name], values)
        return values

    def rerun(self, values: Values, name: str, module: nn.Module) -> dict[str, Value]:
        """The tensors that change when another module computes one node.

        Args:
            values: result of `run` on a frame; it stays as it is. Its tensors share their sites,
                hence the kernel maps.
            name: node to exchange.
            module: what computes it instead.

        Returns:
            New tensors of that node and of all that depend on it, by name; together with `values`
            they are what a whole forward with this module would have made, bit for bit.
        """
        changed: dict[str, Value] = {}
        for node in self.dependents(name):
            used = module if node.name == name else self.modules[node.name]
            operands = {tensor: changed.get(tensor, values[tensor]) for tensor in node.inputs}
            changed[node.name] = self._compute(node, used, operands)
        return changed

    def dependents(self, name: str) -> tuple[FusedNode, ...]:
        """A node and all that its output reaches, in execution order."""
        if name not in self._dependents:
            reached = {name}
            found = [self.graph.node(name)]
            for node in self.graph.nodes:
                if reached & set(node.inputs):
                    reached.add(node.name)
                    found.append(node)
            self._dependents[name] = tuple(found)
        return self._dependents[name]

    def _compute(self, node: FusedNode, module: nn.Module, values: Values) -> Value:
        operands = [values[tensor] for tensor in node.inputs]
        if node.kind == "relu":
            (x,) = operands
            assert isinstance(x, SparseTensor)
            return apply_module(module, _guarded(x, module))
        made: Value = module(*operands)
        relu = self.relus.get(node.name)
        if relu is None:
            return made
        assert isinstance(made, SparseTensor)
        return apply_module(relu, made)  # nobody else reads `made`: it may work in place


def _guarded(x: SparseTensor, module: nn.Module) -> SparseTensor:
    """A copy for a module that works in place: what it reads is kept for others."""
    return x.replace_features(torch.clone(x.features)) if getattr(module, "inplace", False) else x
