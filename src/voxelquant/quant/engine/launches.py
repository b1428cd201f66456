"""The launches of a program: each operation with its tile, its weights and its place in memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import triton
from torch import Tensor

from voxelquant.errors import GraphError
from voxelquant.quant.engine.program import (
    AddOp,
    ConvertOp,
    ConvOp,
    DenseOp,
    Program,
    ReluOp,
)
from voxelquant.quant.engine.tiles import MAX_SPLITS, ConvShape, default_tile, padded_channels
from voxelquant.quant.engine.tuning import Launcher, Tiles, fastest_tiles
from voxelquant.quant.int8_modules import CodeSparseConv3d
from voxelquant.sparse.backends.triton.densify import densify
from voxelquant.sparse.backends.triton.epilogue import (
    LARGEST_STEP,
    LEAST_STEP,
    format_name,
    with_reciprocal,
)
from voxelquant.sparse.backends.triton.planned_conv import (
    ConvTile,
    Fusion,
    SharedSums,
    launch_conv,
    pack_weight,
)
from voxelquant.sparse.backends.triton.pointwise import add_rows, convert_rows
from voxelquant.sparse.backends.triton.row_groups import RowGroups
from voxelquant.sparse.backends.triton.site_index import LevelGrid, SiteIndex

Launch = Callable[[], None]


class Launches:
    """Makes the launches of a plan; its weights are packed here.

    Args:
        program: the operations.
        index: sites of all levels.
        entries: kernel map of each number in `program.maps`.
        groups: the rows of each of them in groups.
        values: `[capacity, stride]` memory of each value.
        outputs: dense maps.
        tiles: tile of each convolution by its shape; the default tile where there is none.

    Attributes:
        weights_bytes: bytes of the weights packed so far.
        shared_sums: where programs that split a tile meet.
    """

    def __init__(
        self,
        program: Program,
        index: SiteIndex,
        *,
        entries: Sequence[Tensor],
        groups: Sequence[RowGroups],
        values: Sequence[Tensor],
        outputs: Sequence[Tensor],
        tiles: Tiles,
    ) -> None:
        self.program = program
        self.index = index
        self.entries = entries
        self.groups = groups
        self.values = values
        self.outputs = outputs
        self.tiles = tiles
        self.device = index.words.device
        self.weights_bytes = 0
        self.shared_sums = self._allocate_sums()

    def conv_shape(self, op: ConvOp) -> ConvShape:
        """What the tile of a convolution depends on."""
        kernel = self.program.maps[op.map].geometry.kernel_size
        weight = _weight(op)
        values = self.program.values
        return ConvShape(
            c_in=weight.shape[4],
            c_out=weight.shape[0],
            columns=kernel[1] * kernel[2],
            kz=kernel[0],
            format=format_name(values[op.x].dtype),
            result=format_name(values[op.out].dtype),
            residual=None if op.residual is None else format_name(values[op.residual].dtype),
            rows=triton.next_power_of_2(self._out_level(op).capacity),
        )

    def _out_level(self, op: ConvOp) -> LevelGrid:
        return self.index.levels[self.program.maps[op.map].out_level]

    def conv_launcher(
        self,
        op: ConvOp,
        tile: ConvTile,
        *,
        early: bool = False,
        overlap: bool = True,
        shared_sums: SharedSums | None = None,
    ) -> Launch:
        """A launch of a convolution with a tile, on the buffers of this plan."""
        conv = op.conv
        shape = self.conv_shape(op)
        made = self.program.maps[op.map]
        weight = _weight(op).to(self.device)
        if weight.dtype == torch.float8_e4m3fn:
            weight = weight.to(torch.float16)
        packed = pack_weight(weight, padded_channels(shape, tile))
        self.weights_bytes += packed.nbytes
        add = op.add
        result = format_name(self.program.values[op.out].dtype)
        own = "fp16" if conv.output_scale is None else format_name(conv.output_fmt.dtype)
        scales: tuple[Tensor | None, ...] = (conv.output_scale, None, None, None)
        fusion = Fusion(relu=conv.relu, own=own)
        if add is not None:
            assert op.residual is not None
            operands = (add.operand_a, add.operand_b)
            pair = (operands[op.own_operand], operands[1 - op.own_operand])
            steps = [o.scales[-1] if o.count else None for o in pair]
            scales = (conv.output_scale, *steps, add.output_scale)
            residual_format = format_name(self.program.values[op.residual].dtype)
            fusion = Fusion(conv.relu, own, residual_format, add.relu, result)
        on_device = [None if s is None else self._step(s) for s in scales]
        multiplier = None
        if isinstance(conv, CodeSparseConv3d):
            multiplier = conv.multiplier.to(self.device)
        bias = None if conv.bias is None else conv.bias.to(self.device)
        x, out = self.values[op.x], self.values[op.out]
        residual = None if op.residual is None else self.values[op.residual]
        count = self.index.counts[made.out_level : made.out_level + 1]
        sums = shared_sums or self.shared_sums
        entries, groups = self.entries[op.map], self.groups[op.map]

        def run() -> None:
            launch_conv(
                tile,
                fusion,
                x=x,
                packed=packed,
                entries=entries,
                count=count,
                out=out,
                kz=shape.kz,
                c_in=shape.c_in,
                inverse=made.inverse,
                groups=groups,
                multiplier=multiplier,
                bias=bias,
                scales=(on_device[0], on_device[1], on_device[2], on_device[3]),
                residual=residual,
                shared_sums=sums,
                early=early,
                overlap=overlap,
            )

        return run

    def tune(self) -> Tiles:
        """Best tiles of the convolutions that have none, measured on the frame that ran last."""
        counts = self.index.counts.tolist()
        untuned = {
            self.conv_shape(op): op
            for op in reversed(self.program.ops)  # the first of each shape
            if isinstance(op, ConvOp) and self.conv_shape(op) not in self.tiles
        }
        widest = ConvTile(16, 16, 16, "seen", 1, 1, splits=MAX_SPLITS)
        sums = self._make_sums([self._sums_of(op, widest) for op in untuned.values()])

        def launcher_of(op: ConvOp) -> Launcher:
            return lambda tile: self.conv_launcher(op, tile, early=True, shared_sums=sums)

        wanted = {
            shape: (launcher_of(op), counts[self.program.maps[op.map].out_level])
            for shape, op in untuned.items()
        }
        processors = torch.cuda.get_device_properties(self.device).multi_processor_count
        bulk = torch.cuda.get_device_capability(self.device)[0] >= 9  # from Hopper on
        return fastest_tiles(wanted, processors, bulk=bulk) if wanted else {}

    def _tile(self, op: ConvOp) -> ConvTile:
        shape = self.conv_shape(op)
        return self.tiles.get(shape) or default_tile(shape)

    def _allocate_sums(self) -> SharedSums:
        needed = [
            self._sums_of(op, self._tile(op)) for op in self.program.ops if isinstance(op, ConvOp)
        ]
        return self._make_sums(needed)

    def _sums_of(self, op: ConvOp, tile: ConvTile) -> tuple[int, int]:
        shape = self.conv_shape(op)
        return SharedSums.elements(tile, self._out_level(op).capacity, shape.c_out, shape.kz)

    def _make_sums(self, needed: Sequence[tuple[int, int]]) -> SharedSums:
        parts, arrivals = (max((n[i] for n in needed), default=0) for i in (0, 1))
        return SharedSums(
            torch.zeros(parts, dtype=torch.float32, device=self.device),
            torch.zeros(arrivals, dtype=torch.int32, device=self.device),
        )

    def conv(self, op: ConvOp, *, early: bool, overlap: bool) -> Launch:
        """A convolution with its own tile; `early` and `overlap` as in `launch_conv`."""
        return self.conv_launcher(op, self._tile(op), early=early, overlap=overlap)

    def pointwise(self, op: ConvertOp | AddOp | ReluOp) -> Launch:
        """A conversion, a sum or a ReLU of its own."""
        out = self.values[op.out]
        level = self.program.values[op.out].level
        count = self.index.counts[level : level + 1]
        if isinstance(op, AddOp):
            a, b = self.values[op.a], self.values[op.b]
            operands = (op.add.operand_a, op.add.operand_b)
            steps = [self._step(o.scales[-1]) if o.count else None for o in operands]
            result = op.add.output_scale
            scales = (steps[0], steps[1], None if result is None else self._step(result))
            relu = op.add.relu
            return lambda: add_rows(a, b, count, out, relu=relu, scales=scales)
        x = self.values[op.x]
        if isinstance(op, ReluOp):
            return lambda: convert_rows(x, count, out, relu=True)
        steps_in_turn = torch.stack([self._step(s) for s in op.scales])
        codes = format_name(op.codes)
        return lambda: convert_rows(x, count, out, scales=steps_in_turn, codes=codes)

    def _step(self, step: Tensor) -> Tensor:
        """Step of codes where kernels read it.

        Raises:
            GraphError: kernels cannot divide by it exactly.
        """
        if not LEAST_STEP <= step.item() <= LARGEST_STEP:
            raise GraphError(
                f"got a step of codes of {step.item():g}, the engine divides by {LEAST_STEP:g} to "
                f"{LARGEST_STEP:g}; calibrate again, this range is no range of features"
            )
        return with_reciprocal(step).to(self.device)

    def dense(self, op: DenseOp) -> Launch:
        """The dense map of a value."""
        x, out = self.values[op.x], self.outputs[op.output]
        level = self.program.values[op.x].level
        return lambda: densify(self.index, level, x, out)


def _weight(op: ConvOp) -> Tensor:
    """`[c_out, kz, ky, kx, c_in]` codes or float16."""
    conv = op.conv
    return conv.weight_q if isinstance(conv, CodeSparseConv3d) else conv.weight
