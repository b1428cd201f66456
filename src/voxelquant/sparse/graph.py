"""Graph of what a sparse network computes, as a trace records it."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from voxelquant.sparse.conv_geometry import Triple


@dataclass(frozen=True)
class SparseNode:
    """One operation.

    Attributes:
        path: module path in the traced model (`conv2.3.conv1`); for an operation that a forward
            computes without a module of its own, the path of the module whose forward it is, and
            a name that it would have as its member (`conv2.3.add`, the second time `add2`).
        kind: `conv`, `batchnorm`, `relu`, `add` or `to_dense`.
        module: the module that ran, or None.
        inputs: value ids consumed, in order.
        output: value id produced.
        in_spatial_shape: grid (z, y, x) of the first input.
        out_spatial_shape: grid (z, y, x) of the output (of the input for `to_dense`).
        output_shape: shape of the output features, or of the dense map.
    """

    path: str
    kind: str
    module: nn.Module | None
    inputs: tuple[int, ...]
    output: int
    in_spatial_shape: Triple
    out_spatial_shape: Triple
    output_shape: tuple[int, ...]


@dataclass(frozen=True)
class SparseGraph:
    """Nodes in execution order; value ids are 0 for the input, then one per node output.

    Attributes:
        nodes: the operations.
        input_value: value id of the input.
        outputs: value ids that no node consumes or that the model returns.
        input_shape: `(n, c)` of the input features.
        batch_size: number of samples in the input.
    """

    nodes: tuple[SparseNode, ...]
    input_value: int
    outputs: tuple[int, ...]
    input_shape: tuple[int, ...]
    batch_size: int

    def consumers(self, value: int) -> list[SparseNode]:
        """Nodes that read a value, in execution order."""
        return [node for node in self.nodes if value in node.inputs]

    def producer(self, value: int) -> SparseNode | None:
        """Node that made a value; None for the graph input."""
        return next((node for node in self.nodes if node.output == value), None)
