"""Keeps the book of a trace: which tensor object holds which value, and what made it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from voxelquant.errors import GraphError
from voxelquant.sparse.conv_geometry import Triple
from voxelquant.sparse.graph import SparseGraph, SparseNode
from voxelquant.sparse.recognize import features_of, is_sparse_tensor


@dataclass
class Recorder:
    """Nodes and values so far.

    Attributes:
        nodes: the operations.
        input_shape: of the graph's input; None until it is known.
        batch_size: of the graph's input.
    """

    nodes: list[SparseNode] = field(default_factory=list)
    input_shape: tuple[int, ...] | None = None
    batch_size: int = 0
    _value_of: dict[int, int] = field(default_factory=dict)  # id(features) → value
    _grid_of: dict[int, Triple] = field(default_factory=dict)  # value → grid
    _origin_of: dict[int, str] = field(default_factory=dict)  # id(features) → who computed them
    _alive: list[Tensor] = field(default_factory=list)  # ids stay unique while tensors live
    _read_outside: set[int] = field(default_factory=set)  # values that other code computes with

    def begin(self, x: Any) -> None:
        """Take a sparse tensor as the graph's input."""
        self.input_shape, self.batch_size = tuple(x.features.shape), x.batch_size
        self._new_value(x.features, _grid(x))

    def record(
        self, path: str, kind: str, module: nn.Module | None, operands: Sequence[Any], out: Any
    ) -> None:
        """Add an operation; the operands are those among its arguments that hold features.

        Raises:
            GraphError: an operand is no value of the graph.
        """
        operands = [x for x in operands if isinstance(x, Tensor) or is_sparse_tensor(x)]
        if kind == "conv" and len(operands) != 1:
            raise GraphError(f"{path}: got a convolution with a fused sum, need the sum outside")
        if kind == "conv" and self.input_shape is None and is_sparse_tensor(operands[0]):
            self.begin(operands[0])  # the first convolution reads the graph's input
        inputs = tuple(self._require_value(path, features_of(x)) for x in operands)
        in_grid = self._grid_of[inputs[0]]
        out_grid = _grid(out) if is_sparse_tensor(out) else in_grid
        features = features_of(out)
        output = self._new_value(features, out_grid)
        shape = tuple(features.shape)
        self.nodes.append(SparseNode(path, kind, module, inputs, output, in_grid, out_grid, shape))

    def knows(self, features: Any) -> bool:
        """Whether a tensor object holds a value of the graph."""
        return id(features) in self._value_of

    def alias(self, features: Tensor, source: Tensor) -> None:
        """A tensor object holds the value of another one from now on."""
        self._keep(features)
        self._value_of[id(features)] = self._value_of[id(source)]

    def note_reading(self, operands: Iterable[Tensor]) -> None:
        """Values among the operands are read by no operation of the graph: they leave it."""
        self._read_outside.update(self._value_of[id(x)] for x in operands if self.knows(x))

    def note_origin(self, features: Tensor, origin: str) -> None:
        """Remember who computed features that are no value, for the error if they are read."""
        if not self.knows(features) and id(features) not in self._origin_of:
            self._keep(features)
            self._origin_of[id(features)] = origin

    def note_descent(self, features: Tensor, operands: Iterable[Tensor], origin: str) -> None:
        """As `note_origin`, if an operand is a value of the graph, or was computed from one."""
        for operand in operands:
            earlier = self._origin_of.get(id(operand))
            if earlier is not None or self.knows(operand):
                self.note_origin(features, earlier or origin)
                return

    def fold_height(self, dense: Tensor, folded: Tensor) -> None:
        """A dense map was viewed anew; as `[b, c * z, y, x]`, its scatter makes that."""
        value = self._value_of[id(dense)]
        for index, node in enumerate(self.nodes):
            b, c, z, y, x = (*node.output_shape, 0, 0, 0)[:5]
            if node.output == value and node.kind == "to_dense" and len(node.output_shape) == 5:
                if tuple(folded.shape) != (b, c * z, y, x):
                    return
                shape = tuple(folded.shape)
                self.nodes[index] = dataclasses.replace(node, output_shape=shape)
                self.alias(folded, dense)

    def finish(self, returned: Any) -> SparseGraph:
        """The graph, given what the model returned.

        Raises:
            GraphError: nothing was recorded.
        """
        if not self.nodes or self.input_shape is None:
            raise GraphError("got a model without sparse modules, need at least one sparse conv")
        consumed = {value for node in self.nodes for value in node.inputs}
        handed_out = consumed & {*self._returned_values(returned), *self._read_outside}
        outputs = tuple(
            n.output for n in self.nodes if n.output not in consumed or n.output in handed_out
        )
        return SparseGraph(tuple(self.nodes), 0, outputs, self.input_shape, self.batch_size)

    def _returned_values(self, result: Any) -> Iterator[int]:
        if isinstance(result, Mapping):
            result = list(result.values())
        if isinstance(result, (list, tuple)):
            for item in result:
                yield from self._returned_values(item)
        elif isinstance(result, Tensor) or is_sparse_tensor(result):
            value = self._value_of.get(id(features_of(result)))
            if value is not None:
                yield value

    def _new_value(self, features: Tensor, grid: Triple) -> int:
        value = len(self._grid_of)
        self._keep(features)
        self._value_of[id(features)] = value
        self._grid_of[value] = grid
        return value

    def _require_value(self, path: str, features: Tensor) -> int:
        value = self._value_of.get(id(features))
        if value is None:
            origin = self._origin_of.get(id(features))
            made = "" if origin is None else f" ({origin} made them)"
            raise GraphError(
                f"{path or 'model'}: consumes features that no traced module produced{made}; the "
                "graph has convolutions, sums of two, nn.ReLU, nn.BatchNorm1d and the dense map; "
                "compute features with these"
            )
        return value

    def _keep(self, features: Tensor) -> None:
        self._alive.append(features)


def _grid(x: Any) -> Triple:
    z, y, x_size = x.spatial_shape
    return (int(z), int(y), int(x_size))
