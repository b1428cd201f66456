"""From a lowered network to the list of kernels that it needs.

The model's own forward is run once, on a handful of voxels, and watched; what it did becomes
operations on numbered values. Residual sums are fused into the convolution before them, and the
grids and kernel maps that the operations share are found.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from voxelquant.errors import GraphError
from voxelquant.quant.int8_modules import (
    CodeSparseAdd,
    CodeSparseConv3d,
    Fp16SparseConv3d,
    LoweredModule,
    SparseAddBase,
)
from voxelquant.quant.operand import Operand
from voxelquant.sparse import (
    ConvGeometry,
    SparseGraph,
    SparseNode,
    SparseTensor,
    Triple,
    trace_sparse_graph,
)

LoweredConv = CodeSparseConv3d | Fp16SparseConv3d


@dataclass(frozen=True)
class Level:
    """A grid of sites; `parent` and `geometry` as in `LevelGrid`."""

    spatial_shape: Triple
    parent: int | None = None
    geometry: ConvGeometry | None = None


@dataclass(frozen=True)
class Map:
    """A kernel map that convolutions share; as `MapSpec`."""

    in_level: int
    out_level: int
    geometry: ConvGeometry
    inverse: bool = False


@dataclass(frozen=True)
class Value:
    """A tensor between kernels.

    Attributes:
        level: grid on whose sites it lives.
        channels: its width.
        dtype: int8 or float8_e4m3fn codes, or float16 values.
    """

    level: int
    channels: int
    dtype: torch.dtype


@dataclass(frozen=True)
class ConvOp:
    """A convolution, with the sum that follows it if there is one.

    Attributes:
        conv: the lowered module.
        x: value read.
        out: value written.
        map: number of the kernel map.
        add: the sum's module, or None.
        residual: its other operand.
        own_operand: which operand of the sum the convolution's result is.
    """

    conv: LoweredConv
    x: int
    out: int
    map: int
    add: SparseAddBase | None = None
    residual: int | None = None
    own_operand: int = 0


@dataclass(frozen=True)
class ConvertOp:
    """A tensor taken through steps to what a layer computes with: codes, or their values."""

    x: int
    out: int
    scales: tuple[Tensor, ...]
    codes: torch.dtype


@dataclass(frozen=True)
class AddOp:
    """A sum that no convolution carries."""

    add: SparseAddBase
    a: int
    b: int
    out: int


@dataclass(frozen=True)
class ReluOp:
    """A ReLU on an fp16 tensor."""

    x: int
    out: int


@dataclass(frozen=True)
class DenseOp:
    """The dense map of a value: the `output`-th result of the network."""

    x: int
    output: int


Op = ConvOp | ConvertOp | AddOp | ReluOp | DenseOp


@dataclass
class Program:
    """What a plan executes.

    Attributes:
        levels: grids, parents first; the input's is the first.
        maps: kernel maps.
        values: tensors; the first is the input, rounded to fp16.
        ops: kernels in order.
        dense_shapes: shape of every result, without the batch: `(c * z, y, x)` or `(c, z, y, x)`.
        names: module path of each operation.
    """

    levels: list[Level] = field(default_factory=list)
    maps: list[Map] = field(default_factory=list)
    values: list[Value] = field(default_factory=list)
    ops: list[Op] = field(default_factory=list)
    dense_shapes: list[tuple[int, ...]] = field(default_factory=list)
    names: list[str] = field(default_factory=list)


def read_program(engine: nn.Module, spatial_shape: Triple, in_channels: int) -> Program:
    """Operations of a lowered network.

    Args:
        engine: result of `lower`: a module that maps a `SparseTensor` to its dense map.
        spatial_shape: grid (z, y, x) of the input.
        in_channels: features of a voxel.

    Raises:
        GraphError: the network holds what is not lowered, or returns more than dense maps.
    """
    device = next((t.device for t in (*engine.parameters(), *engine.buffers())), None)
    frame = _handful_of_voxels(spatial_shape, in_channels, device or torch.device("cpu"))
    graph = trace_sparse_graph(engine, frame)
    reader = _Reader(graph, spatial_shape, in_channels)
    for node in graph.nodes:
        reader.read(node)
    return reader.finish()


def _handful_of_voxels(shape: Triple, channels: int, device: torch.device) -> SparseTensor:
    """A solid block in the middle of the grid, which no strided convolution empties."""
    ranges = []
    for size in shape:
        begin = max(size // 2 - 16, 0)
        ranges.append(torch.arange(begin, min(begin + 32, size), dtype=torch.int32))
    cells = torch.cartesian_prod(*ranges)
    coords = torch.cat([torch.zeros_like(cells[:, :1]), cells], 1).to(device)
    features = torch.zeros((len(coords), channels), device=device)
    return SparseTensor.from_coords(features, coords, shape, 1)


class _Reader:
    def __init__(self, graph: SparseGraph, spatial_shape: Triple, in_channels: int) -> None:
        self.graph = graph
        self.program = Program(levels=[Level(spatial_shape)])
        self.program.values.append(Value(0, in_channels, torch.float16))
        self.value_of = {graph.input_value: 0}  # traced value id → number
        self.coupled: dict[str, tuple[int, int, ConvGeometry]] = {}
        self.made_at: dict[int, int] = {0: -1}  # number → operation
        self.fused: set[int] = set()  # traced outputs of sums that a convolution carries

    def read(self, node: SparseNode) -> None:
        """Append the operations of a node."""
        module = node.module
        if isinstance(module, (CodeSparseConv3d, Fp16SparseConv3d)):
            self._read_conv(node, module)
        elif isinstance(module, SparseAddBase):
            if node.output not in self.fused:
                self._read_add(node, module)
        elif node.kind == "relu":
            x = self.value_of[node.inputs[0]]
            value = self.program.values[x]
            if value.dtype != torch.float16:
                raise GraphError(f"{node.path}: got a ReLU on codes, need it fused or on fp16")
            self._append(node.path, ReluOp(x, self._new_value(node, value)))
        elif node.kind == "to_dense":
            x = self.value_of[node.inputs[0]]
            self._append(node.path, DenseOp(x, len(self.program.dense_shapes)))
            self.program.dense_shapes.append(tuple(node.output_shape[1:]))
        else:
            raise GraphError(
                f"{node.path}: got a {type(module).__name__} ({node.kind}), need lowered layers; "
                "plan the result of lower()"
            )

    def finish(self) -> Program:
        """The program, once every node is read."""
        dense = {node.output for node in self.graph.nodes if node.kind == "to_dense"}
        other = [v for v in self.graph.outputs if v not in dense]
        if other or not dense:
            raise GraphError(
                "got a network that returns sparse tensors, need one whose results are dense maps "
                "(SparseToDense at its end)"
            )
        return self.program

    def _read_conv(self, node: SparseNode, conv: LoweredConv) -> None:
        codes = conv.weight_q.dtype if isinstance(conv, CodeSparseConv3d) else None
        x = self._operand(node.path, node.inputs[0], conv.operand, codes)
        level = self.program.values[x].level
        number = self._map_of(node, conv, level)
        weight = conv.weight_q if isinstance(conv, CodeSparseConv3d) else conv.weight
        made = self.program.maps[number]
        value = Value(made.out_level, weight.shape[0], _stored(conv))
        carried = self._carried_sum(node, conv)
        if carried is None:
            self._append(node.path, ConvOp(conv, x, self._new_value(node, value), number))
            return
        total, add, own = carried
        residual = self.value_of[total.inputs[1 - own]]
        value = Value(made.out_level, weight.shape[0], _stored(add))
        out = self._new_value(total, value)
        self.fused.add(total.output)
        self._append(node.path, ConvOp(conv, x, out, number, add, residual, own))

    def _carried_sum(
        self, node: SparseNode, conv: LoweredConv
    ) -> tuple[SparseNode, SparseAddBase, int] | None:
        """The sum that a convolution can end with: its only reader, the other operand at hand."""
        readers = self.graph.consumers(node.output)
        if len(readers) != 1 or node.output in self.graph.outputs:
            return None
        total = readers[0]
        add = total.module
        if not isinstance(add, SparseAddBase) or total.inputs[0] == total.inputs[1]:
            return None
        own = total.inputs.index(node.output)
        other = total.inputs[1 - own]
        if other not in self.value_of:
            return None
        operands = (add.operand_a, add.operand_b)
        stored = (_stored(conv), self.program.values[self.value_of[other]].dtype)
        pairs = zip((operands[own], operands[1 - own]), stored, strict=True)
        direct = all(
            operand.count == (0 if dtype == torch.float16 else 1) for operand, dtype in pairs
        )
        return (total, add, own) if direct else None

    def _read_add(self, node: SparseNode, add: SparseAddBase) -> None:
        codes = add.operand_a.fmt.dtype if isinstance(add, CodeSparseAdd) else None
        a = self._operand(node.path, node.inputs[0], add.operand_a, codes)
        b = self._operand(node.path, node.inputs[1], add.operand_b, codes)
        value = self.program.values[a]
        out = self._new_value(node, Value(value.level, value.channels, _stored(add)))
        self._append(node.path, AddOp(add, a, b, out))

    def _operand(self, path: str, traced: int, operand: Operand, codes: torch.dtype | None) -> int:
        """Value that a layer computes with, converted first where it is stored otherwise."""
        x = self.value_of[traced]
        value = self.program.values[x]
        wanted = codes or torch.float16
        if value.dtype == wanted and operand.count == (0 if codes is None else 1):
            return x
        out = self._number(Value(value.level, value.channels, wanted))
        between = codes or operand.fmt.dtype
        self._append(f"{path}/input", ConvertOp(x, out, operand.scales, between))
        return out

    def _map_of(self, node: SparseNode, conv: LoweredConv, level: int) -> int:
        site = conv.site
        key = site.indice_key or ""
        if site.inverse:
            fine, coarse, geometry = self.coupled[key]
            assert coarse == level, "the model's own forward has checked that they meet"
            return self._map(Map(coarse, fine, geometry, inverse=True))
        if site.geometry.subm:
            return self._map(Map(level, level, site.geometry))
        child = Level(node.out_spatial_shape, level, site.geometry)
        if child not in self.program.levels:
            self.program.levels.append(child)
        number = self.program.levels.index(child)
        if key:
            self.coupled[key] = (level, number, site.geometry)
        return self._map(Map(level, number, site.geometry))

    def _map(self, wanted: Map) -> int:
        if wanted not in self.program.maps:
            self.program.maps.append(wanted)
        return self.program.maps.index(wanted)

    def _new_value(self, node: SparseNode, value: Value) -> int:
        number = self._number(value)
        self.value_of[node.output] = number
        return number

    def _number(self, value: Value) -> int:
        self.program.values.append(value)
        return len(self.program.values) - 1

    def _append(self, path: str, op: Op) -> None:
        self.program.ops.append(op)
        self.program.names.append(path)


def _stored(layer: LoweredModule) -> torch.dtype:
    return torch.float16 if layer.output_step is None else layer.output_fmt.dtype


def values_read(op: Op) -> Sequence[int]:
    """Numbers of the values that an operation reads."""
    if isinstance(op, AddOp):
        return (op.a, op.b)
    if isinstance(op, ConvOp) and op.residual is not None:
        return (op.x, op.residual)
    return (op.x,)
