"""Rigid transforms between sensor, vehicle and world, in float64.

World coordinates of nuScenes reach kilometres: float32 would lose a tenth of a millimetre at every
step of a chain of poses. Quaternions are `w, x, y, z` as in nuScenes.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from voxelquant.errors import GeometryError


def rotation_matrix(quaternion_wxyz: Sequence[float] | Tensor) -> Tensor:
    """Rotation of a quaternion of any length but zero, [3, 3] float64.

    Raises:
        GeometryError: Not four finite numbers, or all zero.

    Example:
        >>> rotation_matrix([1, 0, 0, 0]).diagonal()
        tensor([1., 1., 1.], dtype=torch.float64)
    """
    quaternion = torch.as_tensor(quaternion_wxyz, dtype=torch.float64)
    length = quaternion.norm()
    if quaternion.shape != (4,) or not torch.isfinite(length) or length == 0:
        raise GeometryError(
            f"quaternion: got {quaternion.tolist()}, need four finite numbers w, x, y, z, "
            "not all zero"
        )
    w, x, y, z = (quaternion / length).unbind()
    return torch.stack(
        (
            1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y),
            2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x),
            2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y),
        )
    ).reshape(3, 3)  # fmt: skip


def pose_matrix(
    translation_m: Sequence[float] | Tensor, quaternion_wxyz: Sequence[float] | Tensor
) -> Tensor:
    """Pose as a matrix: maps points of the posed frame into the frame it is posed in.

    Args:
        translation_m: x, y, z of the posed frame's origin.
        quaternion_wxyz: Its orientation.

    Returns:
        [4, 4] float64.

    Raises:
        GeometryError: Not three and four finite numbers, or a zero quaternion.
    """
    translation = torch.as_tensor(translation_m, dtype=torch.float64)
    if translation.shape != (3,) or not torch.isfinite(translation).all():
        raise GeometryError(f"translation: got {translation.tolist()}, need finite x, y, z")
    pose = torch.eye(4, dtype=torch.float64, device=translation.device)
    pose[:3, :3] = rotation_matrix(quaternion_wxyz)
    pose[:3, 3] = translation
    return pose


def invert_pose(pose: Tensor) -> Tensor:
    """The opposite pose, by transposition: exact where a general inverse is not.

    Args:
        pose: [4, 4] rigid.

    Returns:
        [4, 4], same dtype.
    """
    inverse = torch.eye(4, dtype=pose.dtype, device=pose.device)
    inverse[:3, :3] = pose[:3, :3].T
    inverse[:3, 3] = -(pose[:3, :3].T @ pose[:3, 3])
    return inverse


def transform_points(points: Tensor, pose: Tensor) -> Tensor:
    """Points carried into another frame; columns after x, y, z stay as they are.

    Args:
        points: [p, 3 or more], x, y, z first.
        pose: [4, 4]; the arithmetic runs in its dtype.

    Returns:
        A new tensor with the shape and dtype of `points`.

    Raises:
        GeometryError: Points without three coordinates, or a pose that is not [4, 4].
    """
    if points.ndim != 2 or points.shape[1] < 3 or pose.shape != (4, 4):
        raise GeometryError(
            f"got points {tuple(points.shape)} and pose {tuple(pose.shape)}, "
            "need [p, 3 or more] and [4, 4]"
        )
    xyz = points[:, :3].to(pose.dtype) @ pose[:3, :3].T + pose[:3, 3]
    return torch.cat((xyz.to(points.dtype), points[:, 3:]), dim=1)


def quaternion_to_yaw(quaternion_wxyz: Sequence[float] | Tensor) -> float:
    """Direction in the ground plane of the rotated x axis: the θ of a box, in radians.

    Raises:
        GeometryError: Not four finite numbers, or all zero.

    Example:
        >>> round(quaternion_to_yaw([0.5**0.5, 0, 0, 0.5**0.5]), 6)
        1.570796
    """
    rotation = rotation_matrix(quaternion_wxyz)
    return float(torch.atan2(rotation[1, 0], rotation[0, 0]))


def yaw_to_quaternion(theta_rad: float) -> tuple[float, float, float, float]:
    """Quaternion `w, x, y, z` of a turn by θ about the vertical."""
    half = torch.tensor(theta_rad / 2, dtype=torch.float64)
    return float(half.cos()), 0.0, 0.0, float(half.sin())
