"""A network planned once for a device and a bound of voxels, then replayed frame by frame."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

from voxelquant.errors import GeometryError
from voxelquant.quant.engine.launches import Launches
from voxelquant.quant.engine.memory import place_values
from voxelquant.quant.engine.program import (
    ConvertOp,
    ConvOp,
    DenseOp,
    Op,
    Program,
    read_program,
)
from voxelquant.quant.engine.tiles import ConvShape
from voxelquant.quant.engine.tuning import (
    Tiles,
    cache_file,
    load_tiles,
    store_tiles,
)
from voxelquant.sparse import Triple
from voxelquant.sparse.backends.triton.column_map import ColumnMaps, MapSpec
from voxelquant.sparse.backends.triton.densify import order_features
from voxelquant.sparse.backends.triton.planned_conv import ConvTile
from voxelquant.sparse.backends.triton.site_index import LevelGrid, SiteIndex

StageKind = Literal["copy", "maps", "conv", "pointwise", "densify"]
# Sites of a level for each voxel that the input may have, by the strided convolutions before it. A
# real frame of 80 k voxels has 0.87, 0.37, 0.13 and 0.10; isolated voxels multiply, but a frame of
# many has few isolated ones.
_SITES_BY_DEPTH = (1.0, 1.25, 0.75, 0.4)
_MOST_PLACES = 1 << 31  # kernels count the places of gathered rows in 32 bits


@dataclass(frozen=True)
class Stage:
    """One launch, or a few that belong together.

    Attributes:
        name: module path, or what it does.
        kind: what its time is counted as.
        run: launches it on the current stream; it reads what the stages before it left.
        beside: whether it runs on the second of two lines, beside the stages of the first.
        waits: whether it needs what the stages before it did on the other line.
    """

    name: str
    kind: StageKind
    run: Callable[[], None]
    beside: bool = False
    waits: bool = False


class NetworkPlan:
    """The planned engine of one network.

    Args:
        program: its operations.
        batch_size: samples of a frame.
        max_voxels: most voxels of a frame, over all samples.
        device: a GPU, or a CPU under Triton's interpreter.
        tiles: tile of each convolution by its shape; the default tile where there is none.
        capacities: most sites of every level; by default in proportion to `max_voxels`.
    """

    def __init__(
        self,
        program: Program,
        *,
        batch_size: int,
        max_voxels: int,
        device: torch.device,
        tiles: dict[ConvShape, ConvTile] | None = None,
        capacities: Sequence[int] | None = None,
    ) -> None:
        self.program = program
        self.batch_size = batch_size
        self.max_voxels = max_voxels
        sizes = capacities or _default_capacities(program, max_voxels)
        largest = max(sizes[value.level] * max(value.channels, 8) for value in program.values)
        if largest >= _MOST_PLACES:
            raise GeometryError(
                f"got a plan of {largest:,} features in one tensor, need fewer than "
                f"{_MOST_PLACES:,}; plan for fewer voxels"
            )
        levels = tuple(
            LevelGrid(level.spatial_shape, size, level.parent, level.geometry)
            for level, size in zip(program.levels, sizes, strict=True)
        )
        self.index = SiteIndex(levels, batch_size, device)
        self.device = self.index.words.device  # which says which GPU
        # What the input's own level needs comes first; the rest is built beside its convolutions.
        near = [number for number, m in enumerate(program.maps) if m.in_level == m.out_level == 0]
        far = [number for number in range(len(program.maps)) if number not in near]
        self._near = len(near)
        self._map_order = near + far
        self.maps = ColumnMaps(
            self.index,
            [
                MapSpec(m.in_level, m.out_level, m.geometry, m.inverse)
                for m in (program.maps[number] for number in self._map_order)
            ],
        )
        self._values = self._allocate()
        self.outputs = tuple(
            torch.zeros((batch_size, *shape), dtype=torch.float16, device=device)
            for shape in program.dense_shapes
        )
        places = [self._map_order.index(number) for number in range(len(program.maps))]
        self.launches = Launches(
            program,
            self.index,
            entries=[self.maps.entries[place] for place in places],
            groups=[self.maps.groups[place] for place in places],
            values=self._values,
            outputs=self.outputs,
            tiles=tiles or {},
        )
        self.stages = tuple(self._stages())
        self._graph: torch.cuda.CUDAGraph | None = None

    def __call__(self, features: Tensor, coords_bzyx: Tensor, *, check: bool = True) -> Tensor:
        """Run one frame.

        Args:
            features: `[n, c]` voxel features, n <= max_voxels. float16 ones on the device are read
                where they are: they must not change before the frame has been run.
            coords_bzyx: `[n, 4]` unique coordinates inside the grid, in any order; int32 ones are
                read where they are, too.
            check: wait for the device and raise what the frame did wrong. Without it a frame that
                did not fit leaves NaN.

        Returns:
            `[b, c * z, y, x]` float16, overwritten by the next frame; the first of `outputs`.

        Raises:
            GeometryError: shapes do not fit, coordinates lie outside of the grid or repeat, or a
                level has more sites than were planned for.
        """
        n = len(features)
        if n > self.max_voxels:
            raise GeometryError(
                f"got a frame of {n} voxels, the plan holds {self.max_voxels}; plan for more"
            )
        expected = (n, self.program.values[0].channels), (n, 4)
        if (features.shape, coords_bzyx.shape) != expected:
            raise GeometryError(
                f"got features {tuple(features.shape)} and coordinates {tuple(coords_bzyx.shape)}, "
                f"need {expected[0]} and {expected[1]} (batch, z, y, x)"
            )
        features = self._as_read(features, torch.float16)
        coords_bzyx = self._as_read(coords_bzyx, torch.int32)
        self.index.frame.hand_over(features, coords_bzyx)
        self.replay()
        if check:
            self.check()
        return self.outputs[0]

    def replay(self) -> None:
        """Run the frame of the last call again, without a look at the result."""
        self.index.frame.begin()
        if self._graph is None:
            for stage in self.stages:
                stage.run()
            self.index.frame.report()
        else:
            self._graph.replay()

    def check(self) -> None:
        """Wait for the last frame.

        Raises:
            GeometryError: it did not fit; `__call__` says how.
        """
        if self.index.frame.wait():
            return
        reason = self.index.explain()
        if reason is not None:
            raise GeometryError(reason)

    def capture(self) -> None:
        """Turn the launches into one CUDA graph; kernels are compiled first."""
        stream = torch.cuda.Stream(self.device)
        stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(stream):
            for stage in self.stages:
                stage.run()
        torch.cuda.current_stream(self.device).wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        second = torch.cuda.Stream(self.device)
        with torch.cuda.graph(graph):
            first = torch.cuda.current_stream(self.device)
            for stage in self.stages:
                line, other = (second, first) if stage.beside else (first, second)
                if stage.waits:
                    line.wait_stream(other)
                with torch.cuda.stream(line):
                    stage.run()
            # The marks are cleared last of all that asks for sites: the flags stand by then.
            with torch.cuda.stream(second):
                self.index.frame.report()
            first.wait_stream(second)
        self._graph = graph

    @property
    def memory_bytes(self) -> dict[str, int]:
        """Memory held, by what it is for; nothing is allocated while frames run."""
        sums = self.launches.shared_sums
        return {
            "index": self.index.bytes,
            "maps": self.maps.bytes,
            "features": self._arena_bytes,
            "partial sums": sums.parts.nbytes + sums.arrivals.nbytes,
            "weights": self.launches.weights_bytes,
            "outputs": sum(t.nbytes for t in self.outputs),
        }

    def _as_read(self, tensor: Tensor, dtype: torch.dtype) -> Tensor:
        """A tensor as kernels read it; itself, if it is like that."""
        if tensor.dtype == dtype and tensor.device == self.device and tensor.is_contiguous():
            return tensor  # to find that out by `to` costs microseconds of a frame's time
        return tensor.to(self.device, dtype).contiguous()

    def _allocate(self) -> list[Tensor]:
        """A view `[capacity, stride]` of the arena for every value."""
        widths = [value.channels for value in self.program.values]
        widths[0] = -(-widths[0] // 8) * 8  # rows of 16 bytes
        for op in self.program.ops:
            if isinstance(op, ConvertOp):  # element by element, padding included
                widths[op.out] = widths[op.x]
        shapes = [
            (self.index.levels[value.level].capacity, width)
            for value, width in zip(self.program.values, widths, strict=True)
        ]
        sizes = [
            rows * width * value.dtype.itemsize
            for (rows, width), value in zip(shapes, self.program.values, strict=True)
        ]
        offsets, self._arena_bytes = place_values(self.program, sizes)
        arena = torch.zeros(self._arena_bytes, dtype=torch.uint8, device=self.device)
        return [
            arena[offset : offset + size].view(value.dtype).view(shape)
            for offset, size, value, shape in zip(
                offsets, sizes, self.program.values, shapes, strict=True
            )
        ]

    def _stages(self) -> list[Stage]:
        """What a frame takes, in order.

        The input's own level is ranked, ordered and mapped on the way to the first convolution;
        what the deeper levels need is made beside that and the convolutions before theirs.
        """
        index, far = self.index, slice(self._near, len(self._map_order))
        channels, ordered = self.program.values[0].channels, self._values[0]
        stages = [Stage("marks", "maps", index.mark)]
        for number, each in enumerate(index.far_passes):
            launch = partial(index.launch_pass, each)
            stages.append(Stage(f"far sites {number}", "maps", launch, True, waits=number == 0))
        for number, each in enumerate(index.near_passes):
            launch = partial(index.launch_pass, each)
            stages.append(Stage(f"near sites {number}", "maps", launch))
        stages.append(Stage("order", "copy", partial(order_features, index, channels, ordered)))
        if far.start < far.stop:
            # They read the ranks and sites of the input's level, too.
            launch = partial(self.maps.launch, far, overlap=False)
            stages.append(Stage("far maps", "maps", launch, beside=True, waits=True))
        if self._near > 0:
            launch = partial(self.maps.launch, slice(0, self._near))
            stages.append(Stage("near maps", "maps", launch))
        last_look = len(stages)  # the stages from here on do not read the marks
        joined = False
        fresh = True  # whether the map of the next convolution may be one launch old
        for name, op in zip(self.program.names, self.program.ops, strict=True):
            joins = not joined and self._needs_far(op)
            joined |= joins
            if joins and not isinstance(op, ConvOp):
                # Launches that overlap have one predecessor; this one has none of that kind.
                stages.append(Stage("join", "maps", self._meet, waits=True))
                last_look = len(stages)
                joins = False
            if isinstance(op, ConvOp):
                run = self.launches.conv(op, early=not fresh and not joins, overlap=not joins)
                stages.append(Stage(name, "conv", run, waits=joins))
                fresh = False
            elif isinstance(op, DenseOp):
                stages.append(Stage(name, "densify", self.launches.dense(op)))
            else:
                stages.append(Stage(name, "pointwise", self.launches.pointwise(op)))
            if joins or (isinstance(op, DenseOp) and self._level_of(op) in index.marked):
                last_look = len(stages)
        stages.insert(last_look, Stage("clear", "maps", index.clear, beside=True, waits=True))
        return stages

    def _meet(self) -> None:
        """A launch that changes nothing."""
        self.index.counts.add_(0)

    def _needs_far(self, op: Op) -> bool:
        """Whether an operation needs a map or a list that is built beside the first ones."""
        if isinstance(op, ConvOp):
            return self._map_order.index(op.map) >= self._near
        return self._level_of(op) > 0

    def _level_of(self, op: Op) -> int:
        """Level that an operation writes, or makes dense."""
        return self.program.values[op.x if isinstance(op, DenseOp) else op.out].level


def plan_network(
    engine: nn.Module,
    *,
    spatial_shape: Triple,
    in_channels: int,
    max_voxels: int,
    batch_size: int = 1,
    device: torch.device | str = "cuda",
    capacities: Sequence[int] | None = None,
    tune_on: tuple[Tensor, Tensor] | None = None,
) -> NetworkPlan:
    """Plan a lowered network for a device.

    Args:
        engine: result of `lower` of a module that maps a `SparseTensor` to its dense map.
        spatial_shape: grid (z, y, x) of its input.
        in_channels: features of a voxel.
        max_voxels: most voxels of a frame, over all samples.
        batch_size: samples of a frame.
        device: a GPU; a CPU works under Triton's interpreter alone.
        capacities: most sites of every level; by default in proportion to `max_voxels`.
        tune_on: features and coordinates of a typical frame, as `NetworkPlan` takes them: what is
            not in the cache of this chip is measured on it, once. Without it tiles of the cache are
            taken where there are some, and reasoned ones elsewhere.

    Raises:
        GraphError: the network holds what is not lowered, or returns more than dense maps.
        GeometryError: a kernel that column maps cannot express, a frame that does not fit, or a
            chip that cannot run the kernels.
    """
    where = torch.device(device)
    program = read_program(engine, spatial_shape, in_channels)

    def make(tiles: Tiles) -> NetworkPlan:
        return NetworkPlan(
            program,
            batch_size=batch_size,
            max_voxels=max_voxels,
            device=where,
            tiles=tiles,
            capacities=capacities,
        )

    if where.type != "cuda":
        return make({})
    _require_chip(program, where)
    path = cache_file(where)
    tiles = load_tiles(path)
    plan = make(tiles)
    if tune_on is not None:
        plan(*tune_on)
        measured = plan.launches.tune()
        if measured:
            store_tiles(path, measured)
            plan = make({**tiles, **measured})
    plan.capture()
    return plan


def _require_chip(program: Program, device: torch.device) -> None:
    wanted = (8, 9) if any(v.dtype == torch.float8_e4m3fn for v in program.values) else (8, 0)
    found = torch.cuda.get_device_capability(device)
    if found < wanted:
        codes = "fp8 codes" if wanted == (8, 9) else "the engine"
        raise GeometryError(
            f"got {torch.cuda.get_device_name(device)} (compute capability {found[0]}.{found[1]}), "
            f"need {wanted[0]}.{wanted[1]} for {codes}; run this network layer by layer"
        )


def _default_capacities(program: Program, max_voxels: int) -> list[int]:
    depths: list[int] = []
    for level in program.levels:
        depths.append(0 if level.parent is None else depths[level.parent] + 1)
    last = len(_SITES_BY_DEPTH) - 1
    # A small frame may multiply more than a large one.
    return [
        max(int(max_voxels * _SITES_BY_DEPTH[min(depth, last)]), max_voxels if depth == 0 else 4096)
        for depth in depths
    ]
