import itertools
import math
from dataclasses import dataclass, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from voxelquant.data.augment import Augmentation, FrameTransform, drop_boxes_outside
from voxelquant.data.frame import Frame
from voxelquant.geometry import box_corners_3d, points_in_boxes, wrap_to_pi

POSE = torch.eye(4, dtype=torch.float64)
FULL = Augmentation(rotation_range_rad=(-0.8, 0.8), scale_range=(0.9, 1.1), translation_std_m=0.5)


def make_frame(boxes: int = 12, points: int = 1000) -> Frame:
    """Boxes of every direction with points in and around them."""
    generator = torch.Generator().manual_seed(3)
    box = torch.rand(boxes, 9, generator=generator)
    box[:, :2] = box[:, :2] * 80 - 40
    box[:, 3:6] = box[:, 3:6] * 4 + 1
    box[:, 6:8] = box[:, 6:8] * 20 - 10
    box[:, 8] = box[:, 8] * 2 * math.pi - math.pi
    cloud = torch.rand(points, 5, generator=generator)
    cloud[:, :3] = (cloud[:, :3] * 2 - 1) * 4 + box[torch.arange(points) % boxes, :3]
    return Frame("t", cloud, box, torch.arange(boxes), torch.ones(boxes).long(), POSE, POSE, 0.0)


def parts(frame: Frame) -> tuple[torch.Tensor, torch.Tensor]:
    assert frame.boxes_det3d is not None
    return frame.points, frame.boxes_det3d


# One point and one box that looks along +x (θ = 0, yaw' = −π/2), moving along +x with 2 m/s.
POINT = (3.0, 1.0, 0.5, 77.0, 0.25)
BOX = (5.0, 2.0, 1.0, 2.0, 4.0, 1.5, 2.0, 0.5, -math.pi / 2)


@pytest.mark.parametrize(
    ("transform", "xyz", "box"),
    [
        # y -> -y: θ = 0 stays, yaw' = -yaw' + π is 3π/2, that is -π/2.
        (
            FrameTransform(mirror_y=True),
            (3, -1, 0.5),
            (5, -2, 1, 2, 4, 1.5, 2, -0.5, -math.pi / 2),
        ),
        # x -> -x: θ = π, yaw' = π/2.
        (
            FrameTransform(mirror_x=True),
            (-3, 1, 0.5),
            (-5, 2, 1, 2, 4, 1.5, -2, 0.5, math.pi / 2),
        ),
        # A quarter turn clockwise: +x becomes -y, yaw' grows by π/2.
        (
            FrameTransform(clockwise_rad=math.pi / 2),
            (1, -3, 0.5),
            (2, -5, 1, 2, 4, 1.5, 0.5, -2, 0),
        ),
        (FrameTransform(scale=2), (6, 2, 1), (10, 4, 2, 4, 8, 3, 4, 1, -math.pi / 2)),
        (
            FrameTransform(shift_m=(1, -2, 3)),
            (4, -1, 3.5),
            (6, 0, 4, 2, 4, 1.5, 2, 0.5, -math.pi / 2),
        ),
        # The order: mirror, rotate, scale, shift; no other order gives these numbers.
        (
            FrameTransform(True, False, math.pi / 2, 2.0, (1, 0, 0)),
            (-1, -6, 1),
            (-3, -10, 2, 4, 8, 3, -1, -4, 0),
        ),
    ],
)
def test_known_transformations(
    transform: FrameTransform, xyz: tuple[float, ...], box: tuple[float, ...]
) -> None:
    frame = make_frame(1, 1)
    points, boxes = parts(
        transform(replace(frame, points=torch.tensor([POINT]), boxes_det3d=torch.tensor([BOX])))
    )
    torch.testing.assert_close(points, torch.tensor([[*xyz, 77.0, 0.25]]), rtol=0, atol=1e-5)
    torch.testing.assert_close(boxes, torch.tensor([box]).float(), rtol=0, atol=1e-5)


@settings(max_examples=30)
@given(st.integers(0, 10_000))
def test_boxes_move_with_their_points(seed: int) -> None:
    """Points stay inside the same boxes, and box corners move as if they were points."""
    frame = make_frame()
    transform = FULL.draw(torch.Generator().manual_seed(seed))
    points, boxes = parts(transform(frame))
    before = points_in_boxes(*parts(frame))
    # Rounding may move a point that lies on a face.
    grown, shrunk = (frame.boxes_det3d.clone() for _ in range(2))
    grown[:, 3:6] += 1e-3
    shrunk[:, 3:6] -= 1e-3
    settled = points_in_boxes(frame.points, grown) == points_in_boxes(frame.points, shrunk)
    assert before.sum() > 50
    assert torch.equal(points_in_boxes(points, boxes)[settled], before[settled])

    corners = box_corners_3d(parts(frame)[1]).reshape(-1, 3)
    as_points = transform(replace(frame, points=torch.nn.functional.pad(corners, (0, 2)))).points
    expected = as_points[:, :3].reshape(-1, 8, 3)
    got = box_corners_3d(boxes)
    # A mirrored box lists the same corners in another order.
    distance = torch.cdist(expected, got)
    assert distance.min(dim=2).values.max() < 1e-3
    assert distance.min(dim=1).values.max() < 1e-3


@settings(max_examples=30)
@given(st.integers(0, 10_000))
def test_velocity_moves_as_the_difference_of_positions(seed: int) -> None:
    frame = make_frame()
    _, boxes = parts(frame)
    later = boxes.clone()
    later[:, :2] += boxes[:, 6:8]
    transform = FULL.draw(torch.Generator().manual_seed(seed))
    _, now = parts(transform(frame))
    _, then = parts(transform(replace(frame, boxes_det3d=later)))
    torch.testing.assert_close(now[:, 6:8], then[:, :2] - now[:, :2], rtol=0, atol=1e-4)


@settings(max_examples=30)
@given(st.integers(0, 10_000))
def test_heading_moves_with_the_box(seed: int) -> None:
    """A box that drives along its length axis still does so afterwards."""
    frame = make_frame()
    _, boxes = parts(frame)
    theta = -boxes[:, 8] - math.pi / 2
    boxes[:, 6], boxes[:, 7] = 5 * theta.cos(), 5 * theta.sin()
    _, moved = parts(FULL.draw(torch.Generator().manual_seed(seed))(frame))
    driven = torch.atan2(moved[:, 7], moved[:, 6])
    heading = -moved[:, 8] - math.pi / 2
    assert wrap_to_pi(driven - heading).abs().max() < 1e-5
    assert (moved[:, 8] >= -math.pi).all()
    assert (moved[:, 8] < math.pi).all()


def test_draws_cover_their_ranges() -> None:
    generator = torch.Generator().manual_seed(0)
    drawn = [FULL.draw(generator) for _ in range(4000)]
    for mirror_y, mirror_x in itertools.product((False, True), repeat=2):
        share = sum((d.mirror_y, d.mirror_x) == (mirror_y, mirror_x) for d in drawn) / len(drawn)
        assert abs(share - 0.25) < 0.03
    angles = torch.tensor([d.clockwise_rad for d in drawn])
    assert -0.8 <= angles.min() < -0.79
    assert 0.79 < angles.max() <= 0.8
    assert abs(angles.mean()) < 0.03
    scales = torch.tensor([d.scale for d in drawn])
    assert 0.9 <= scales.min() < 0.901
    assert 1.099 < scales.max() <= 1.1
    shifts = torch.tensor([d.shift_m for d in drawn])
    assert (shifts.std(dim=0) - 0.5).abs().max() < 0.03
    assert shifts.mean(dim=0).abs().max() < 0.03
    assert torch.corrcoef(shifts.T).triu(1).abs().max() < 0.06  # independent axes


def test_one_seed_one_result_and_the_input_stays() -> None:
    frame = make_frame()
    points, boxes = (part.clone() for part in parts(frame))
    first = FULL(frame, torch.Generator().manual_seed(5))
    again = FULL(frame, torch.Generator().manual_seed(5))
    other = FULL(frame, torch.Generator().manual_seed(6))
    assert torch.equal(parts(frame)[0], points)
    assert torch.equal(parts(frame)[1], boxes)
    assert torch.equal(first.points, again.points)
    assert not torch.equal(first.points, other.points)


def test_shuffling_keeps_every_point() -> None:
    frame = make_frame()
    frame.points[:, 4] = torch.arange(len(frame.points))
    shuffled = Augmentation(flip=False)(frame, torch.Generator().manual_seed(0)).points
    assert not torch.equal(shuffled, frame.points)
    assert torch.equal(shuffled[shuffled[:, 4].argsort()], frame.points)


@dataclass
class Settings:
    enabled: bool = True
    flip: bool = False
    rotation_range_rad: tuple[float, float] = (0.1, 0.2)
    scale_range: tuple[float, float] = (1.5, 1.6)
    translation_std_m: float = 0.3
    shuffle_points: bool = False


def test_settings_of_a_config() -> None:
    assert Augmentation.from_config(Settings()) == Augmentation(
        False, (0.1, 0.2), (1.5, 1.6), 0.3, False
    )
    frame = make_frame()
    unchanged = Augmentation.from_config(Settings(enabled=False))(frame, torch.Generator())
    assert torch.equal(unchanged.points, frame.points)
    torch.testing.assert_close(parts(unchanged)[1], parts(frame)[1], rtol=0, atol=1e-6)


def test_frame_without_annotations() -> None:
    frame = replace(make_frame(), boxes_det3d=None, labels=None, num_lidar_pts=None)
    assert FULL(frame, torch.Generator()).boxes_det3d is None
    assert drop_boxes_outside(frame, (-1, -1, -1, 1, 1, 1)) is frame


def test_boxes_outside_the_range() -> None:
    # Length 4 along x, width 2; the range ends at x = 10 and y = 10.
    box = torch.tensor([0, 0, 0, 2, 4, 1, 0, 0, -math.pi / 2])
    centers = torch.tensor(
        [
            [0, 0],  # inside
            [11.9, 0],  # two corners inside
            [12.0, 0],  # corners on the border: outside
            [0, 10.9],
            [0, 11.0],
            [11.9, 10.9],  # one corner inside
            [11.9, -11.1],
            [0, 500],
            [-12.0, 0],  # corners on the lower border: outside too
            [0, -11.0],
        ]
    )
    boxes = box.repeat(len(centers), 1)
    boxes[:, :2] = centers
    boxes[0, 2] = 100  # height plays no part
    count = torch.arange(len(boxes))
    frame = replace(make_frame(), boxes_det3d=boxes, labels=count, num_lidar_pts=count * 10)
    kept = drop_boxes_outside(frame, (-10, -10, -5, 10, 10, 3))
    assert kept.labels is not None
    assert kept.num_lidar_pts is not None
    assert kept.labels.tolist() == [0, 1, 3, 5]
    assert kept.num_lidar_pts.tolist() == [0, 10, 30, 50]
    assert torch.equal(parts(kept)[1], boxes[kept.labels])
    assert torch.equal(kept.points, frame.points)
