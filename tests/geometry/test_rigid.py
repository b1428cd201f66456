import math

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from voxelquant.errors import GeometryError
from voxelquant.geometry import (
    invert_pose,
    pose_matrix,
    quaternion_to_yaw,
    rotation_matrix,
    transform_points,
    yaw_to_quaternion,
)

QUATERNIONS = st.tuples(*[st.floats(-1, 1)] * 4)
TRANSLATIONS = st.tuples(*[st.floats(-3000, 3000)] * 3)


def rotate_by_hamilton_product(
    quaternion: tuple[float, ...], vector: tuple[float, ...]
) -> list[float]:
    """q v q* written out: the independent oracle."""

    def product(p: list[float], q: list[float]) -> list[float]:
        return [
            p[0] * q[0] - p[1] * q[1] - p[2] * q[2] - p[3] * q[3],
            p[0] * q[1] + p[1] * q[0] + p[2] * q[3] - p[3] * q[2],
            p[0] * q[2] - p[1] * q[3] + p[2] * q[0] + p[3] * q[1],
            p[0] * q[3] + p[1] * q[2] - p[2] * q[1] + p[3] * q[0],
        ]

    length = math.sqrt(sum(c * c for c in quaternion))
    unit = [c / length for c in quaternion]
    conjugate = [unit[0], -unit[1], -unit[2], -unit[3]]
    return product(product(unit, [0.0, *vector]), conjugate)[1:]


@given(QUATERNIONS, TRANSLATIONS, TRANSLATIONS)
def test_pose_rotates_as_the_hamilton_product_then_translates(
    quaternion: tuple[float, ...], translation: tuple[float, ...], point: tuple[float, ...]
) -> None:
    assume(sum(c * c for c in quaternion) > 1e-6)
    pose = pose_matrix(translation, quaternion)
    moved = transform_points(torch.tensor([point], dtype=torch.float64), pose)
    rotated = rotate_by_hamilton_product(quaternion, point)
    moved_by = [r + t for r, t in zip(rotated, translation, strict=True)]
    expected = torch.tensor([moved_by], dtype=torch.float64)
    torch.testing.assert_close(moved, expected, rtol=0, atol=1e-9)


@given(QUATERNIONS, TRANSLATIONS)
def test_inverse_pose_undoes(quaternion: tuple[float, ...], translation: tuple[float, ...]) -> None:
    assume(sum(c * c for c in quaternion) > 1e-6)
    pose = pose_matrix(translation, quaternion)
    identity = torch.eye(4, dtype=torch.float64)
    torch.testing.assert_close(invert_pose(pose) @ pose, identity, rtol=0, atol=1e-11)
    torch.testing.assert_close(pose @ invert_pose(pose), identity, rtol=0, atol=1e-11)


@given(st.floats(-3.1, 3.1))
def test_yaw_of_a_turn_about_the_vertical(theta_rad: float) -> None:
    assert quaternion_to_yaw(yaw_to_quaternion(theta_rad)) == pytest.approx(theta_rad, abs=1e-12)


def test_yaw_is_the_direction_of_the_rotated_x_axis() -> None:
    quaternion = (0.7, 0.1, -0.2, 0.6)
    x_axis = rotate_by_hamilton_product(quaternion, (1.0, 0.0, 0.0))
    assert quaternion_to_yaw(quaternion) == pytest.approx(math.atan2(x_axis[1], x_axis[0]))


def test_points_keep_dtype_and_further_columns_while_arithmetic_is_float64() -> None:
    pose = pose_matrix([1e6, 0, 0], [1, 0, 0, 0])
    points = torch.tensor([[0.125, 1.0, 2.0, 99.0, 0.05]])
    there_and_back = transform_points(transform_points(points.double(), pose), invert_pose(pose))
    assert torch.equal(there_and_back.float(), points)
    moved = transform_points(points, pose_matrix([1, 2, 3], [0, 0, 0, 1]))
    assert moved.dtype == torch.float32
    assert moved.tolist() == [[0.875, 1.0, 5.0, 99.0, points[0, 4].item()]]
    assert points[0, 0] == 0.125  # the input is left alone


def test_unusable_poses_are_named() -> None:
    with pytest.raises(GeometryError, match="quaternion"):
        rotation_matrix([0, 0, 0, 0])
    with pytest.raises(GeometryError, match="quaternion"):
        rotation_matrix([1, 0, 0])
    with pytest.raises(GeometryError, match="translation"):
        pose_matrix([0, math.nan, 0], [1, 0, 0, 0])
    with pytest.raises(GeometryError, match=r"\(4, 2\)"):
        transform_points(torch.zeros(4, 2), pose_matrix([0, 0, 0], [1, 0, 0, 0]))
