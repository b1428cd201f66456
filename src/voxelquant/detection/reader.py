"""Clouds to the detector's input: voxel means, checked on the way.

A grid with limits is read as VoxelFeatureExtractorV3 does, one without as DynamicVoxelEncoder.
"""

import torch
from torch import Tensor

from voxelquant.detection.virtual_points import lift_points, merge_kinds
from voxelquant.errors import DatasetError
from voxelquant.sparse import (
    SparseTensor,
    VoxelGrid,
    VoxelGridSpec,
    voxelize_batch,
    voxelize_batch_dynamic,
)


def read_clouds(
    clouds: list[Tensor], grid: VoxelGrid, *, n_columns: int = 5, virtual: bool = False
) -> SparseTensor:
    """Mean features of the voxels of a batch of clouds.

    Args:
        clouds: one `[p, n_columns]` float32 tensor a sample: x_m, y_m, z_m, intensity, dt_s.
        grid: range, voxel size and limits, if any (`CenterPoint.voxel_grid`).
        n_columns: columns that the detector was trained with.
        virtual: clouds hold painted and virtual points too (`detection.virtual_points`).

    Raises:
        DatasetError: a cloud with other columns, with values that are not finite, or without a
            point inside the range.
    """
    for index, cloud in enumerate(clouds):
        if cloud.ndim != 2 or cloud.shape[1] != n_columns:
            raise DatasetError(
                f"frame {index}: got points of shape {tuple(cloud.shape)}, need "
                f"[points, {n_columns}]; give the columns that the detector was trained with"
            )
    x = _voxelize([cloud.float() for cloud in clouds], grid, virtual)  # drops what is not finite
    _require_usable(clouds, x, grid)
    return x


def _require_usable(clouds: list[Tensor], x: SparseTensor, grid: VoxelGrid) -> None:
    """Refuse values that are not finite, and a cloud of which no voxel came."""
    are_finite = torch.isfinite(torch.cat(clouds)).all()
    numbers = torch.arange(len(clouds), device=x.coords_bzyx.device)
    are_filled = (x.coords_bzyx[:, :1] == numbers).any(dim=0)
    # All answers in one transfer: a GPU is waited for once.
    finite, *filled = torch.cat((are_finite[None], are_filled)).tolist()
    if not finite:
        index = [bool(torch.isfinite(cloud).all()) for cloud in clouds].index(False)
        raise DatasetError(f"frame {index}: got NaN or infinite values; drop those points")
    if not all(filled):
        index = filled.index(False)
        raise DatasetError(
            f"frame {index}: none of its {len(clouds[index])} points lies inside the range "
            f"{list(grid.point_range)}; drop the frame or mend point_range"
        )


def _voxelize(clouds: list[Tensor], grid: VoxelGrid, virtual: bool) -> SparseTensor:
    if isinstance(grid, VoxelGridSpec):
        return voxelize_batch(clouds, grid)
    if not virtual:
        return voxelize_batch_dynamic(clouds, grid)
    x = voxelize_batch_dynamic([lift_points(cloud) for cloud in clouds], grid)
    return x.replace_features(merge_kinds(x.features))
