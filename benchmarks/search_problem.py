"""What `kernel_map_search.py` asks of every way to find sites and neighbours.

The levels and maps are those of SpMiddleResNetFHD. A way is a class with launches by stage, none of
which asks the host for anything, and with `cells` and `table`, which say what it found in one
language, for the gate: the cells of each level's rows and the input row of every tap.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import Protocol

import torch
from torch import Tensor

from voxelquant.quant.engine.network_plan import _default_capacities
from voxelquant.quant.engine.program import Level, Program
from voxelquant.recipes.bench_frames import BenchFrame
from voxelquant.sparse import SparseConvBase
from voxelquant.sparse.backends.triton.column_map import MapSpec
from voxelquant.sparse.backends.triton.site_index import LevelGrid
from voxelquant.sparse.conv_geometry import ConvGeometry

FEATURE_WIDTH = 8  # rows of 16 bytes, as the planned engine keeps them


@dataclass(frozen=True)
class SearchProblem:
    """A frame on the device, and what is wanted of it.

    Attributes:
        levels: grids, parents first.
        specs: kernel maps, in the order of the network.
        batch_size: samples.
        features: `[capacity, c]` float16.
        coords_bzyx: `[capacity, 4]` int32.
        count: `[1]` int32 number of rows that hold a voxel.
    """

    levels: tuple[LevelGrid, ...]
    specs: tuple[MapSpec, ...]
    batch_size: int
    features: Tensor
    coords_bzyx: Tensor
    count: Tensor

    @property
    def capacities(self) -> list[int]:
        """Most sites of each level."""
        return [level.capacity for level in self.levels]

    def cells(self, coords_bzyx: Tensor) -> Tensor:
        """`[n]` int64 cells of the input's level, as `SiteIndex` numbers them."""
        level = self.levels[0]
        _, size_y, size_x = level.spatial_shape
        b, z, y, x = coords_bzyx.long().unbind(1)
        return (((b * size_y + y) * size_x + x) << level.z_bits) + z


class Search(Protocol):
    """A way to find sites and neighbours.

    Attributes:
        stages: launches by name, in order.
        ordered_features: `[capacity, 8]` float16 in the order of the input's rows, or None where
            rows are numbered as they come.
    """

    stages: dict[str, Callable[[], None]]
    ordered_features: Tensor | None

    @property
    def bytes(self) -> int:
        """Memory held from frame to frame."""
        ...

    def cells(self, level: int) -> Tensor:
        """`[n]` int64 cell of each row of a level."""
        ...

    def table(self, number: int) -> Tensor:
        """`[taps, n]` int64 input row of each tap of a map, -1 where there is none."""
        ...


def make_problem(convs: list[SparseConvBase], frame: BenchFrame, max_voxels: int) -> SearchProblem:
    """The levels and maps of convolutions in a row, for a frame on its device.

    Args:
        convs: in the order of execution.
        frame: what is searched.
        max_voxels: bound of its voxels, over all samples.
    """
    levels = [Level(frame.spatial_shape)]
    specs: dict[tuple, MapSpec] = {}
    for conv in convs:
        here = len(levels) - 1
        if not conv.geometry.subm:
            shape = conv.geometry.output_shape(levels[here].spatial_shape)
            levels.append(Level(shape, here, conv.geometry))
        spec = MapSpec(here, len(levels) - 1, conv.geometry)
        specs[here, spec.out_level, conv.geometry] = spec
    cells = [frame.batch_size * prod(level.spatial_shape) for level in levels]
    capacities = _default_capacities(Program(levels=levels), max_voxels)
    capacities = [min(pair) for pair in zip(capacities, cells, strict=True)]
    grids = tuple(
        LevelGrid(level.spatial_shape, capacity, level.parent, level.geometry)
        for level, capacity in zip(levels, capacities, strict=True)
    )
    n, device = len(frame), frame.features.device
    width = frame.features.shape[1]
    features = torch.zeros((capacities[0], width), dtype=torch.float16, device=device)
    coords = torch.zeros((capacities[0], 4), dtype=torch.int32, device=device)
    features[:n], coords[:n] = frame.features, frame.coords_bzyx
    count = torch.tensor([n], dtype=torch.int32, device=device)
    return SearchProblem(grids, tuple(specs.values()), frame.batch_size, features, coords, count)


def decode_columns(entries: Tensor, geometry: ConvGeometry) -> Tensor:
    """`[taps, n]` int64 rows from column entries `[columns, n]`, as `ColumnMaps` writes them."""
    kz = geometry.kernel_size[0]
    bits, row = entries & ((1 << kz) - 1), (entries >> kz).long()
    taps = []
    for tap in range(kz):
        there = (bits >> tap) & 1
        taps.append(torch.where(there == 1, row, -1))
        row = row + there
    return torch.stack(taps).flatten(0, 1)
