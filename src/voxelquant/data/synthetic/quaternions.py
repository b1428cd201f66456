"""Rotations as nuScenes tables store them."""

import torch
from torch import Tensor


def quaternion_wxyz(rotation: Tensor) -> list[float]:
    """Unit quaternion with w >= 0 of a rotation matrix, [3, 3] float64.

    Source: Shepperd 1978, "Quaternion from rotation matrix": divide by the largest component.
    """
    m = rotation.tolist()
    squares = [
        1 + m[0][0] + m[1][1] + m[2][2],
        1 + m[0][0] - m[1][1] - m[2][2],
        1 - m[0][0] + m[1][1] - m[2][2],
        1 - m[0][0] - m[1][1] + m[2][2],
    ]  # four times the squared components
    cross = torch.tensor(
        [
            [squares[0], m[2][1] - m[1][2], m[0][2] - m[2][0], m[1][0] - m[0][1]],
            [m[2][1] - m[1][2], squares[1], m[1][0] + m[0][1], m[0][2] + m[2][0]],
            [m[0][2] - m[2][0], m[1][0] + m[0][1], squares[2], m[2][1] + m[1][2]],
            [m[1][0] - m[0][1], m[0][2] + m[2][0], m[2][1] + m[1][2], squares[3]],
        ],
        dtype=torch.float64,
    )
    largest = squares.index(max(squares))
    quaternion = cross[largest] / cross[largest].norm()
    return (quaternion * (1.0 if quaternion[0] >= 0 else -1.0)).tolist()
