"""Voxelization without limits: every point of every voxel counts.

The dynamic reader of the original code bases: points are kept up to *and on* the upper edge of the
range, cells are `(p - min) / size` truncated, voxels come sorted by (z, y, x).

A point on the upper edge, or within a rounding of it, thus falls into a cell that the grid does not
have. Along z the sparse tensor has one cell more than the grid and takes it. Along x and y it has
not: the original hands such a voxel to a convolution whose linear index puts it at the other end of
the next row. Here those points are dropped, as if the range ended just before its edge.
"""

import torch
from torch import Tensor

from voxelquant.sparse.tensor import ActiveSites, SparseTensor
from voxelquant.sparse.voxelize import VoxelGrid, VoxelRuns, require_clouds


def voxelize_batch_dynamic(clouds: list[Tensor], grid: VoxelGrid) -> SparseTensor:
    """Sparse tensor of the means of all points of each voxel.

    Deterministic on every device: sums run in the order of the cloud.

    Args:
        clouds: one `[p, c]` float32 tensor a sample, all on one device, x, y, z in metres first; a
            cloud may be empty.
        grid: range and voxel size; a `VoxelGridSpec`'s limits are not read.

    Returns:
        Features `[n, c]` float32 on grid `grid.sparse_shape`, sorted by (sample, z, y, x).

    Raises:
        GeometryError: a cloud is not a float32 matrix with at least three columns.
    """
    require_clouds(clouds)
    lengths = torch.tensor([len(cloud) for cloud in clouds])
    samples = torch.arange(len(clouds)).repeat_interleave(lengths).to(clouds[0].device)
    points = torch.cat(clouds)
    kept, cells_xyz = _cells_inside(points, grid)
    points, b = points[kept], samples[kept]
    x, y, z = cells_xyz.unbind(1)
    size_z, size_y, size_x = grid.sparse_shape
    runs = VoxelRuns.of(((b * size_z + z) * size_y + y) * size_x + x)
    first = runs.order[runs.starts]
    coords_bzyx = torch.stack([b[first], z[first], y[first], x[first]], 1).int()
    means = _means(points[runs.order], runs.lengths)
    # Voxels are distinct and inside the grid by construction: no check, no wait for a GPU.
    return SparseTensor(means, ActiveSites(coords_bzyx, grid.sparse_shape, len(clouds)))


def _cells_inside(points: Tensor, grid: VoxelGrid) -> tuple[Tensor, Tensor]:
    """Points that have a cell, `[k]`, and that cell `[k, 3]` int64 (x, y, z)."""
    low, high = torch.tensor(grid.point_range, device=points.device).view(2, 3)
    xyz = points[:, :3]
    inside = ((xyz >= low) & (xyz <= high)).all(1)  # False for NaN
    kept = torch.nonzero(inside).squeeze(1)
    size = torch.tensor(grid.voxel_size, device=points.device)
    cells = ((xyz[kept] - low) / size).long()
    limit = torch.tensor(grid.sparse_shape[::-1], device=points.device)
    held = torch.nonzero((cells < limit).all(1)).squeeze(1)
    return kept[held], cells[held]


def _means(sorted_points: Tensor, lengths: Tensor) -> Tensor:
    """`[m, c]` mean of each run of rows; no atomic additions, hence the same on every run."""
    if len(lengths) == 0:
        return sorted_points.new_zeros((0, sorted_points.shape[1]))
    sums = torch.segment_reduce(sorted_points, "sum", lengths=lengths, axis=0)
    return sums / lengths.to(sums.dtype).unsqueeze(1)
