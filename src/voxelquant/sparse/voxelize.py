"""Voxelization: points into voxels, with the reference's order and truncation rules."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from voxelquant.errors import GeometryError
from voxelquant.numerics import constant_on
from voxelquant.sparse.conv_geometry import Triple
from voxelquant.sparse.tensor import ActiveSites, SparseTensor


@dataclass(frozen=True)
class VoxelGrid:
    """Where voxels lie.

    Attributes:
        point_range: xmin, ymin, zmin, xmax, ymax, zmax in metres.
        voxel_size: x, y, z in metres.
    """

    point_range: tuple[float, float, float, float, float, float]
    voxel_size: tuple[float, float, float]

    @property
    def grid_xyz(self) -> Triple:
        """Number of cells along x, y, z, rounded in float32 as the reference does."""
        return _count_cells(self.point_range, self.voxel_size)

    @property
    def sparse_shape(self) -> Triple:
        """Grid (z, y, x) of the sparse tensor: one more cell in z than there are voxels."""
        x, y, z = self.grid_xyz
        return (z + 1, y, x)


@lru_cache(maxsize=256)
def _count_cells(point_range: tuple[float, ...], voxel_size: tuple[float, ...]) -> Triple:
    low, high = torch.tensor(point_range).view(2, 3)
    x, y, z = torch.round((high - low) / torch.tensor(voxel_size)).int().tolist()
    return (x, y, z)


@dataclass(frozen=True)
class VoxelGridSpec(VoxelGrid):
    """Where voxels lie and how many points and voxels are kept.

    Attributes:
        max_points_per_voxel: points of a voxel beyond this are dropped, in point order.
        max_voxels: voxels beyond this are dropped, in order of first occurrence.
    """

    max_points_per_voxel: int
    max_voxels: int


@dataclass(frozen=True)
class Voxels:
    """Voxels of one cloud.

    Attributes:
        points: `[m, max_points, c]` the kept points, zero-padded.
        coords_zyx: `[m, 3]` int32.
        num_points: `[m]` int32.
    """

    points: Tensor
    coords_zyx: Tensor
    num_points: Tensor

    def mean_features(self) -> Tensor:
        """`[m, c]` sum over the slots divided by the number of points (VoxelFeatureExtractorV3)."""
        return self.points.sum(1) / self.num_points.to(self.points.dtype).unsqueeze(1)


def voxelize(points: Tensor, spec: VoxelGridSpec) -> Voxels:
    """Group points into voxels exactly as the sequential reference does.

    Cell `floor((p - min) / size)` in float32 with a true division; voxels in order of first
    occurrence; the first `max_points_per_voxel` points of each are kept.

    Args:
        points: `[p, c]` float32, x, y, z in metres first.
        spec: grid and limits.

    Raises:
        GeometryError: `points` is not a float32 matrix with at least three columns.
    """
    return _voxelize_clouds([points], spec)[0]


def voxelize_batch(clouds: list[Tensor], spec: VoxelGridSpec) -> SparseTensor:
    """Sparse tensor of voxel means for a batch of clouds.

    Args:
        clouds: one `[p, c]` float32 tensor a sample, all on one device; a cloud may be empty.
        spec: grid and limits.

    Returns:
        Features `[n, c]` float32 on grid `spec.sparse_shape`.

    Raises:
        GeometryError: a cloud is not a float32 matrix with at least three columns.
    """
    voxels, samples = _voxelize_clouds(clouds, spec)
    coords_bzyx = torch.cat([samples.unsqueeze(1), voxels.coords_zyx], 1)
    # Voxels are distinct and inside the grid by construction: no check, no wait for a GPU.
    sites = ActiveSites(coords_bzyx, spec.sparse_shape, len(clouds))
    return SparseTensor(voxels.mean_features(), sites)


def require_clouds(clouds: list[Tensor]) -> None:
    """Refuse a cloud that is not a float32 matrix with at least three columns.

    Raises:
        GeometryError: names what was given.
    """
    for points in clouds:
        if points.ndim != 2 or points.shape[1] < 3 or points.dtype != torch.float32:
            raise GeometryError(
                f"got points {tuple(points.shape)} of {points.dtype}, need float32 [p, at least 3]"
            )


def _voxelize_clouds(clouds: list[Tensor], spec: VoxelGridSpec) -> tuple[Voxels, Tensor]:
    """Voxels of all clouds and their samples `[m]` int32; a GPU waits a fixed number of times."""
    require_clouds(clouds)
    points = torch.cat(clouds)
    device = points.device
    lengths = torch.tensor([len(cloud) for cloud in clouds]).to(device, non_blocking=True)
    samples = torch.arange(len(clouds), device=device)
    samples = samples.repeat_interleave(lengths, output_size=len(points))
    low = constant_on(device, spec.point_range[:3])
    size = constant_on(device, spec.voxel_size)
    cells_x, cells_y, cells_z = spec.grid_xyz
    grid = constant_on(device, (cells_x, cells_y, cells_z), torch.int64)
    cells = torch.floor((points[:, :3] - low) / size)
    # Comparing floats drops NaN and overflowing coordinates too, which a cast would wrap.
    inside = torch.nonzero(((cells >= 0) & (cells < grid)).all(1)).squeeze(1)
    b, (x, y, z) = samples[inside], cells[inside].long().unbind(1)
    keys = ((b * cells_z + z) * cells_y + y) * cells_x + x
    runs = VoxelRuns.of(keys)
    chosen = _choose_voxels(runs, b, spec.max_voxels)
    first = runs.order[runs.starts[chosen]]
    coords_zyx = torch.stack([z[first], y[first], x[first]], 1).int()
    buffer, counts = _fill_voxels(points[inside], runs, chosen, spec.max_points_per_voxel)
    return Voxels(buffer, coords_zyx, counts), b[first].int()


@dataclass(frozen=True)
class VoxelRuns:
    """Points sorted by voxel, in the order of the cloud within one.

    Attributes:
        order: `[p]` point at each sorted place.
        voxel_of: `[p]` run of each sorted place.
        starts: `[v]` sorted place at which each run begins.
    """

    order: Tensor
    voxel_of: Tensor
    starts: Tensor

    @classmethod
    def of(cls, keys: Tensor) -> VoxelRuns:
        """Runs of equal keys `[p]` int64."""
        sorted_keys, order = torch.sort(keys, stable=True)
        is_first = torch.ones_like(keys, dtype=torch.bool)
        torch.ne(sorted_keys[1:], sorted_keys[:-1], out=is_first[1:])
        voxel_of = torch.cumsum(is_first, 0) - 1
        return cls(order, voxel_of, torch.nonzero(is_first).squeeze(1))

    @property
    def lengths(self) -> Tensor:
        """`[v]` points of each run."""
        ends = torch.cat([self.starts[1:], self.starts.new_full((1,), len(self.order))])
        # No points: no run, and the end that was appended stands alone.
        return ends[: len(self.starts)] - self.starts


def _choose_voxels(runs: VoxelRuns, samples: Tensor, max_voxels: int) -> Tensor:
    """Runs that are kept, in order of first occurrence, at most `max_voxels` of each sample."""
    first_points, by_occurrence = torch.sort(runs.order[runs.starts])
    sample_of = samples[first_points].contiguous()  # ascending: clouds are concatenated
    rank = torch.arange(len(sample_of), device=samples.device)
    rank = rank - torch.searchsorted(sample_of, sample_of)
    return by_occurrence[rank < max_voxels]


def _fill_voxels(
    points: Tensor, runs: VoxelRuns, chosen: Tensor, max_points: int
) -> tuple[Tensor, Tensor]:
    """`[m, max_points, c]` points of the chosen voxels, zero-padded, and `[m]` int32 counts."""
    device = points.device
    rank = torch.full_like(runs.starts, -1)
    rank[chosen] = torch.arange(len(chosen), device=device)
    slot = torch.arange(len(runs.order), device=device) - runs.starts[runs.voxel_of]
    row = rank[runs.voxel_of]
    kept = torch.nonzero((slot < max_points) & (row >= 0)).squeeze(1)
    buffer = points.new_zeros((len(chosen), max_points, points.shape[1]))
    buffer[row[kept], slot[kept]] = points[runs.order[kept]]
    return buffer, runs.lengths[chosen].clamp(max=max_points).int()
