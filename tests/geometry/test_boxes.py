import math

import numpy as np
import pytest
import shapely
import torch

from voxelquant.errors import GeometryError
from voxelquant.geometry import (
    bev_rectangles,
    box_corners_3d,
    box_corners_bev,
    points_in_boxes,
    theta_to_yaw_det3d,
)


def boxes_looking_along(theta_rad: float, *, columns: int = 9) -> torch.Tensor:
    """One box at (10, 5, 1) of w 2, l 4, h 1.5."""
    yaw = float(theta_to_yaw_det3d(torch.tensor(theta_rad, dtype=torch.float64)))
    velocity = [7.0, 8.0] if columns == 9 else []
    return torch.tensor([[10.0, 5.0, 1.0, 2.0, 4.0, 1.5, *velocity, yaw]], dtype=torch.float64)


@pytest.mark.parametrize("columns", [7, 9])
def test_rectangle_has_the_length_first_and_the_ordinary_yaw(columns: int) -> None:
    rectangle = bev_rectangles(boxes_looking_along(0.3, columns=columns))
    torch.testing.assert_close(rectangle, torch.tensor([[10, 5, 4, 2, 0.3]], dtype=torch.float64))


def test_corners_start_at_the_front_left_and_turn_counter_clockwise() -> None:
    along_x = box_corners_bev(torch.tensor([[10.0, 5.0, 4.0, 2.0, 0.0]]))
    torch.testing.assert_close(
        along_x, torch.tensor([[[12.0, 6.0], [8.0, 6.0], [8.0, 4.0], [12.0, 4.0]]])
    )
    along_y = box_corners_bev(torch.tensor([[10.0, 5.0, 4.0, 2.0, math.pi / 2]]))
    torch.testing.assert_close(
        along_y, torch.tensor([[[9.0, 7.0], [9.0, 3.0], [11.0, 3.0], [11.0, 7.0]]])
    )


def test_3d_corners_are_bottom_then_top() -> None:
    box = boxes_looking_along(1.1)
    corners = box_corners_3d(box)
    assert corners.shape == (1, 8, 3)
    bev = box_corners_bev(bev_rectangles(box))
    torch.testing.assert_close(corners[:, :4, :2], bev)
    torch.testing.assert_close(corners[:, 4:, :2], bev)
    assert corners[0, :4, 2].tolist() == [0.25] * 4
    assert corners[0, 4:, 2].tolist() == [1.75] * 4


def test_points_in_boxes_agrees_with_shapely() -> None:
    rng = np.random.default_rng(0)
    boxes = torch.from_numpy(rng.uniform(-8, 8, (40, 9)))
    boxes[:, 3:6] = torch.from_numpy(rng.uniform(0.3, 6, (40, 3)))
    points = torch.from_numpy(rng.uniform(-10, 10, (3000, 5)))
    inside = points_in_boxes(points, boxes)
    assert inside.shape == (3000, 40)
    for box, corners, column in zip(
        boxes, box_corners_bev(bev_rectangles(boxes)), inside.T, strict=True
    ):
        in_bev = shapely.contains_xy(shapely.Polygon(corners.numpy()), points[:, :2].numpy())
        in_z = (points[:, 2] - box[2]).abs() <= box[5] / 2
        assert torch.equal(column, torch.from_numpy(in_bev) & in_z)


def test_faces_belong_to_the_box() -> None:
    box = torch.tensor([[0.0, 0.0, 0.0, 2.0, 4.0, 6.0, -math.pi / 2]])
    axis_points = torch.tensor([[2.0, 0, 0], [0, 1.0, 0], [0, 0, 3.0], [-2, -1, -3]])
    assert points_in_boxes(axis_points, box).all()
    assert not points_in_boxes(axis_points * (1 + 1e-6), box).any()


def test_points_in_boxes_in_many_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    points = torch.rand(101, 3, generator=torch.Generator().manual_seed(0)) * 4 - 2
    boxes = torch.tensor([[0.0, 0, 0, 1, 2, 1, 0.3], [1, 0, 0, 1, 2, 1, 0.7]])
    whole = points_in_boxes(points, boxes)
    monkeypatch.setattr("voxelquant.geometry.boxes._MAX_POINT_BOX_PAIRS", 7)
    assert torch.equal(points_in_boxes(points, boxes), whole)
    assert 0 < whole.sum() < whole.numel()


def test_nothing_in_nothing_out() -> None:
    no_boxes = torch.zeros(0, 9)
    assert box_corners_3d(no_boxes).shape == (0, 8, 3)
    assert points_in_boxes(torch.zeros(3, 3), no_boxes).shape == (3, 0)
    assert points_in_boxes(torch.zeros(0, 3), torch.zeros(2, 9)).shape == (0, 2)


def test_wrong_shapes_are_named() -> None:
    with pytest.raises(GeometryError, match=r"got shape \(2, 8\), need \[n, 9\]"):
        bev_rectangles(torch.zeros(2, 8))
    with pytest.raises(GeometryError, match=r"got shape \(3, 2\), need \[p, 3 or more\]"):
        points_in_boxes(torch.zeros(3, 2), torch.zeros(1, 9))
    with pytest.raises(GeometryError, match="float16"):
        box_corners_bev(torch.zeros(1, 5, dtype=torch.float16))
