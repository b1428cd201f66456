import math
from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from oracles import vertex_overlap
from voxelquant.detection.head_spec import NmsSpec
from voxelquant.detection.nms import circle_nms, rotated_nms

# Axis-aligned in x: yaw' = -pi/2 is theta = 0.
ALONG_X = -math.pi / 2


def box(x: float, y: float, w: float, l: float, yaw: float = ALONG_X) -> list[float]:  # noqa: E741
    return [x, y, 0.0, w, l, 1.5, 0.0, 0.0, yaw]


def scene(n_boxes: int, seed: int, *, extent_m: float = 12) -> tuple[torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(seed)
    low = [-extent_m, -extent_m, -2, 0.5, 0.5, 1, -5, -5, -4]
    high = [extent_m, extent_m, 2, 3, 6, 3, 5, 5, 4]
    boxes = rng.uniform(low, high, (n_boxes, 9)).astype(np.float32)
    return torch.from_numpy(boxes), torch.from_numpy(rng.random(n_boxes, dtype=np.float32))


def oracle_overlaps(boxes: torch.Tensor) -> np.ndarray:
    """All overlaps by the plain procedure; the yaw is converted by hand. NaN: nobody is right.

    That is where a corner lies so close to where it begins to count that float32 cannot tell.
    """
    overlaps = np.zeros((len(boxes), len(boxes)))
    rectangles = [
        (x, y, length, width, -yaw - math.pi / 2)
        for x, y, _, width, length, *_, yaw in boxes.tolist()
    ]
    for (i, a), (j, b) in combinations(enumerate(rectangles), 2):
        if math.dist(a[:2], b[:2]) <= math.hypot(*a[2:4]) / 2 + math.hypot(*b[2:4]) / 2 + 0.1:
            unclear = margin_matters(a, b)
            overlaps[i, j] = overlaps[j, i] = math.nan if unclear else vertex_overlap.iou(a, b)
    return overlaps


def margin_matters(a: vertex_overlap.Rectangle, b: vertex_overlap.Rectangle) -> bool:
    """Whether a corner is within float32's reach of the margin's end."""
    outs = [vertex_overlap.excess(corner, b) for corner in vertex_overlap.corners(a)]
    outs += [vertex_overlap.excess(corner, a) for corner in vertex_overlap.corners(b)]
    return min(abs(out - vertex_overlap.MARGIN_M) for out in outs) < 1e-5


def oracle_rotated_nms(overlaps: np.ndarray, scores: torch.Tensor, spec: NmsSpec) -> list[int]:
    kept: list[int] = []
    for row in sorted(range(len(scores)), key=lambda r: -float(scores[r]))[: spec.pre_max_size]:
        if all(overlaps[row, k] <= spec.iou_threshold for k in kept):
            kept.append(row)
    return kept[: spec.post_max_size]


@settings(max_examples=30)
@given(st.integers(0, 2**32 - 1), st.sampled_from([0, 1, 2, 63, 65, 150]))
def test_rotated_nms_agrees_with_the_plain_loop(seed: int, n_boxes: int) -> None:
    boxes, scores = scene(n_boxes, seed)
    overlaps = oracle_overlaps(boxes)
    for spec in (NmsSpec(1000, 83, 0.2), NmsSpec(40, 10, 0.05), NmsSpec(1000, 83, 0.7)):
        # Where float32 cannot tell on which side of the threshold a pair lies, nobody is right.
        assume(not (np.abs(overlaps - spec.iou_threshold) < 1e-5).any())
        assume(not np.isnan(overlaps).any())
        found = rotated_nms(boxes, scores, spec)
        assert found.tolist() == oracle_rotated_nms(overlaps, scores, spec)


def test_length_lies_along_theta() -> None:
    # Two long boxes side by side along x: they overlap only if w and l are swapped.
    boxes = torch.tensor([box(0, 0, 2, 10), box(0, 3, 2, 10)])
    scores = torch.tensor([0.9, 0.8])
    assert rotated_nms(boxes, scores, NmsSpec()).tolist() == [0, 1]
    end_to_end = torch.tensor([box(0, 0, 2, 10), box(3, 0, 2, 10)])
    assert rotated_nms(end_to_end, scores, NmsSpec()).tolist() == [0]
    turned = torch.tensor([box(0, 0, 2, 10, yaw=0.0), box(3, 0, 2, 10, yaw=0.0)])  # along -y
    assert rotated_nms(turned, scores, NmsSpec()).tolist() == [0, 1]


def test_an_overlap_at_the_threshold_survives() -> None:
    # A 2 x 2 square in a 4 x 4 square, all binary fractions: IoU is exactly 1/4.
    boxes = torch.tensor([box(0, 0, 4, 4), box(0, 0, 2, 2)])
    scores = torch.tensor([0.9, 0.8])
    assert rotated_nms(boxes, scores, NmsSpec(iou_threshold=0.25)).tolist() == [0, 1]
    assert rotated_nms(boxes, scores, NmsSpec(iou_threshold=0.2499)).tolist() == [0]


def test_a_corner_within_the_margin_decides() -> None:
    # Half of a 2 x 2 box under one that is 8 mm wider on either side: the exact overlap is
    # 2 / 6.032 = 0.33156, the original's 2.008 / 6.024 = 0.33333.
    boxes = torch.tensor([box(0, 0, 2, 2), box(1, 0, 2.016, 2)])
    scores = torch.tensor([0.9, 0.8])
    assert rotated_nms(boxes, scores, NmsSpec(iou_threshold=0.3325)).tolist() == [0]
    assert rotated_nms(boxes, scores, NmsSpec(iou_threshold=0.3335)).tolist() == [0, 1]


def test_a_suppressed_box_suppresses_nothing() -> None:
    chain = torch.tensor([box(0, 0, 2, 4), box(2, 0, 2, 4), box(4, 0, 2, 4)])  # IoU 1/3, 1/3, 0
    scores = torch.tensor([0.9, 0.8, 0.7])
    assert rotated_nms(chain, scores, NmsSpec(iou_threshold=0.2)).tolist() == [0, 2]


def test_boxes_far_down_the_list_are_still_suppressed() -> None:
    # 300 clusters of two: the second box of each comes 300 ranks after the first.
    boxes = torch.tensor([box(20.0 * (k % 300), 0, 2, 4) for k in range(600)])
    kept = rotated_nms(boxes, torch.linspace(0.9, 0.1, 600), NmsSpec(600, 500, 0.2))
    assert kept.tolist() == list(range(300))


def test_limits_before_and_after() -> None:
    apart = torch.tensor([box(10.0 * k, 0, 2, 4) for k in range(6)])
    scores = torch.tensor([0.1, 0.2, 0.3, 0.4, 0.5, 0.6])
    assert rotated_nms(apart, scores, NmsSpec(4, 83, 0.2)).tolist() == [5, 4, 3, 2]
    assert rotated_nms(apart, scores, NmsSpec(1000, 2, 0.2)).tolist() == [5, 4]
    # The limit before counts boxes that are suppressed later.
    stacked = torch.tensor([box(0, 0, 2, 4)] * 5 + [box(20, 0, 2, 4)])
    falling = torch.tensor([0.9, 0.8, 0.7, 0.6, 0.5, 0.4])
    assert rotated_nms(stacked, falling, NmsSpec(5, 83, 0.2)).tolist() == [0]


def test_height_is_ignored_and_boxes_without_velocity_are_taken() -> None:
    boxes = torch.tensor([box(0, 0, 2, 4), box(0, 0, 2, 4)])
    boxes[1, 2] = 50
    assert rotated_nms(boxes, torch.tensor([0.5, 0.6]), NmsSpec()).tolist() == [1]
    assert rotated_nms(
        boxes[:, [0, 1, 2, 3, 4, 5, 8]], torch.tensor([0.5, 0.6]), NmsSpec()
    ).tolist() == [1]


def test_equal_scores_keep_their_order() -> None:
    boxes = torch.tensor([box(10.0 * (k // 2), 0, 2, 4) for k in range(100)])
    kept = rotated_nms(boxes, torch.full((100,), 0.5), NmsSpec())
    assert kept.tolist() == list(range(0, 100, 2))


@given(st.integers(0, 2**32 - 1), st.sampled_from([0, 1, 100]))
def test_circle_nms_agrees_with_the_plain_loop(seed: int, n_boxes: int) -> None:
    boxes, scores = scene(n_boxes, seed)
    kept: list[int] = []
    for row in sorted(range(n_boxes), key=lambda r: -float(scores[r])):
        if all(float((boxes[row, :2] - boxes[k, :2]).square().sum()) > 4 for k in kept):
            kept.append(row)
    found = circle_nms(boxes[:, :2], scores, min_radius_m2=4, post_max_size=30)
    assert found.tolist() == kept[:30]


def test_circle_radius_is_squared_and_inclusive() -> None:
    centres = torch.tensor([[0.0, 0.0], [2.0, 0.0], [0.0, 2.5]])
    scores = torch.tensor([0.9, 0.8, 0.7])
    kept = circle_nms(centres, scores, min_radius_m2=4, post_max_size=83)
    assert kept.tolist() == [0, 2]  # at a distance of exactly 2 m: gone; at 2.5 m: kept
    kept = circle_nms(centres, scores, min_radius_m2=3.999, post_max_size=83)
    assert kept.tolist() == [0, 1, 2]


@pytest.mark.parametrize("n_boxes", [1500, 3000])
def test_circle_nms_has_no_limit_before(n_boxes: int) -> None:
    centres = torch.zeros(n_boxes, 2)
    centres[-1] = 100
    scores = torch.linspace(0.9, 0.2, n_boxes)
    kept = circle_nms(centres, scores, min_radius_m2=1, post_max_size=83)
    assert kept.tolist() == [0, n_boxes - 1]


def test_boxes_in_a_graph_are_taken() -> None:
    boxes, scores = scene(20, 0)
    expected = rotated_nms(boxes, scores, NmsSpec()).tolist()
    circles = circle_nms(boxes[:, :2], scores, min_radius_m2=1, post_max_size=83).tolist()
    boxes.requires_grad_()
    scores.requires_grad_()
    assert rotated_nms(boxes, scores, NmsSpec()).tolist() == expected
    found = circle_nms(boxes[:, :2], scores, min_radius_m2=1, post_max_size=83)
    assert found.tolist() == circles
