"""Clouds to the detector's input: voxel means (VoxelFeatureExtractorV3), checked on the way."""

import torch
from torch import Tensor

from voxelquant.errors import DatasetError
from voxelquant.sparse import SparseTensor, VoxelGridSpec, voxelize_batch


def read_clouds(clouds: list[Tensor], grid: VoxelGridSpec, *, n_features: int = 5) -> SparseTensor:
    """Mean features of the voxels of a batch of clouds.

    Args:
        clouds: one `[p, n_features]` float32 tensor a sample: x_m, y_m, z_m, intensity, dt_s.
        grid: range, voxel size and limits (`CenterPoint.voxel_grid`).
        n_features: columns that the detector was trained with.

    Raises:
        DatasetError: a cloud with other columns, with values that are not finite, or without a
            point inside the range.
    """
    for index, cloud in enumerate(clouds):
        if cloud.ndim != 2 or cloud.shape[1] != n_features:
            raise DatasetError(
                f"frame {index}: got points of shape {tuple(cloud.shape)}, need "
                f"[points, {n_features}]; give as many columns as backbone.in_channels"
            )
        if not bool(torch.isfinite(cloud).all()):
            raise DatasetError(f"frame {index}: got NaN or infinite values; drop those points")
    x = voxelize_batch([cloud.float() for cloud in clouds], grid)
    filled = torch.bincount(x.coords_bzyx[:, 0].long(), minlength=len(clouds))
    for index in torch.nonzero(filled == 0).flatten().tolist():
        raise DatasetError(
            f"frame {index}: none of its {len(clouds[index])} points lies inside the range "
            f"{list(grid.point_range)}; drop the frame or mend point_range"
        )
    return x
