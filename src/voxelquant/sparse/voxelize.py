"""Voxelization: points into voxels, with the reference's order and truncation rules."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from voxelquant.errors import GeometryError
from voxelquant.sparse.conv_geometry import Triple
from voxelquant.sparse.tensor import SparseTensor


@dataclass(frozen=True)
class VoxelGridSpec:
    """Where voxels lie and how many points and voxels are kept.

    Attributes:
        point_range: xmin, ymin, zmin, xmax, ymax, zmax in metres.
        voxel_size: x, y, z in metres.
        max_points_per_voxel: points of a voxel beyond this are dropped, in point order.
        max_voxels: voxels beyond this are dropped, in order of first occurrence.
    """

    point_range: tuple[float, float, float, float, float, float]
    voxel_size: tuple[float, float, float]
    max_points_per_voxel: int
    max_voxels: int

    @property
    def grid_xyz(self) -> Triple:
        """Number of cells along x, y, z, rounded in float32 as the reference does."""
        low, high = torch.tensor(self.point_range).view(2, 3)
        x, y, z = torch.round((high - low) / torch.tensor(self.voxel_size)).int().tolist()
        return (x, y, z)

    @property
    def sparse_shape(self) -> Triple:
        """Grid (z, y, x) of the sparse tensor: one more cell in z than there are voxels."""
        x, y, z = self.grid_xyz
        return (z + 1, y, x)


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
    if points.ndim != 2 or points.shape[1] < 3 or points.dtype != torch.float32:
        raise GeometryError(
            f"got points {tuple(points.shape)} of {points.dtype}, need float32 [p, at least 3]"
        )
    low = points.new_tensor(spec.point_range[:3])
    size = points.new_tensor(spec.voxel_size)
    grid = torch.tensor(spec.grid_xyz, device=points.device)
    cells = torch.floor((points[:, :3] - low) / size)
    # Comparing floats drops NaN and overflowing coordinates too, which a cast would wrap.
    inside = ((cells >= 0) & (cells < grid)).all(1)
    points = points[inside]
    x, y, z = cells[inside].long().unbind(1)
    return _group_points(points, (z * grid[1] + y) * grid[0] + x, spec)


def _group_points(points: Tensor, keys: Tensor, spec: VoxelGridSpec) -> Voxels:
    sorted_keys, order = torch.sort(keys, stable=True)
    unique_keys, voxel_of, counts = torch.unique_consecutive(
        sorted_keys, return_inverse=True, return_counts=True
    )
    starts = torch.cumsum(counts, 0) - counts
    slot = torch.arange(len(order), device=order.device) - starts[voxel_of]
    # Stable sort: the first point of each run is the voxel's first point in the cloud.
    by_occurrence = torch.argsort(order[starts])[: spec.max_voxels]
    rank = torch.full_like(unique_keys, -1)
    rank[by_occurrence] = torch.arange(len(by_occurrence), device=keys.device)
    kept = (slot < spec.max_points_per_voxel) & (rank[voxel_of] >= 0)
    buffer = points.new_zeros((len(by_occurrence), spec.max_points_per_voxel, points.shape[1]))
    buffer[rank[voxel_of[kept]], slot[kept]] = points[order[kept]]
    key = unique_keys[by_occurrence]
    grid_x, grid_y, _ = spec.grid_xyz
    x = key % grid_x
    y = torch.div(key, grid_x, rounding_mode="floor") % grid_y
    z = torch.div(key, grid_x * grid_y, rounding_mode="floor")
    num_points = counts[by_occurrence].clamp(max=spec.max_points_per_voxel)
    return Voxels(buffer, torch.stack([z, y, x], 1).int(), num_points.int())


def voxelize_batch(clouds: list[Tensor], spec: VoxelGridSpec) -> SparseTensor:
    """Sparse tensor of voxel means for a batch of clouds.

    Args:
        clouds: one `[p, c]` float32 tensor a sample, all on one device; a cloud may be empty.
        spec: grid and limits.

    Returns:
        Features `[n, c]` float32 on grid `spec.sparse_shape`.
    """
    features, coords = [], []
    for index, cloud in enumerate(clouds):
        voxels = voxelize(cloud, spec)
        features.append(voxels.mean_features())
        batch = torch.full_like(voxels.coords_zyx[:, :1], index)
        coords.append(torch.cat([batch, voxels.coords_zyx], 1))
    return SparseTensor.from_coords(
        torch.cat(features), torch.cat(coords), spec.sparse_shape, len(clouds)
    )
