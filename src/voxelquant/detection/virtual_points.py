"""Clouds of LiDAR, painted and virtual points: what the reader of the MVP detectors makes of them.

A point has 16 columns:

    0–13   x, y, z and 11 more: of a LiDAR point the intensity and ten without a meaning; of a
           painted or virtual one what the image says (classes and score)
    14     kind: 1 LiDAR, 0 painted (LiDAR that a camera sees), −1 virtual (made of an image)
    15     age in seconds

A voxel has 21 features: 5 of the mean of its LiDAR points (x, y, z, intensity, age); 14 + 1 + 1 of
the mean of its others (columns 0–13, age, the fraction of them that are painted). A part without
points is zero.
"""

import torch
from torch import Tensor

from voxelquant.errors import DatasetError

N_POINT_COLUMNS = 16
N_FEATURES = 21
_N_LIDAR = 5  # of the features
_KIND, _AGE = 14, 15


def lift_points(points: Tensor) -> Tensor:
    """Points with columns of their own for each kind, so that a mean over all tells them apart.

    Args:
        points: `[p, 16]`.

    Returns:
        `[p, 3 + 22]`: x, y, z, then the features of a voxel that holds this point alone, then 1
        for a LiDAR point and 0 for another.

    Raises:
        DatasetError: a kind other than 1, 0 and −1.
    """
    kind = points[:, _KIND : _KIND + 1]
    odd = ((kind != 1) & (kind != 0) & (kind != -1)).squeeze(1)
    if bool(odd.any()):
        raise DatasetError(
            f"got a point of kind {float(kind[odd][0]):g} (column {_KIND}), need 1 (LiDAR), "
            "0 (painted) or -1 (virtual)"
        )
    is_lidar = (kind == 1).to(points.dtype)
    age = points[:, _AGE:]
    lidar = torch.cat((points[:, :4], age), 1) * is_lidar
    painted = (kind == 0).to(points.dtype)
    other = torch.cat((points[:, :_KIND], age, painted), 1) * (1 - is_lidar)
    return torch.cat((points[:, :3], lidar, other, is_lidar), 1)


def merge_kinds(means: Tensor) -> Tensor:
    """Features of voxels from the means of lifted points.

    A mean over all points of a voxel is that over one kind times the kind's share, which is
    divided out where both kinds occur.

    Args:
        means: `[m, 3 + 22]`.

    Returns:
        `[m, 21]`.
    """
    features, share = means[:, 3:-1], means[:, -1:]
    mixed = (share > 0) & (share < 1)
    lidar = features[:, :_N_LIDAR] / torch.where(mixed, share, 1)
    other = features[:, _N_LIDAR:] / torch.where(mixed, 1 - share, 1)
    return torch.cat((lidar, other), 1)
