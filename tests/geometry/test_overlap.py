import math

import pytest
import shapely
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from voxelquant.errors import GeometryError
from voxelquant.geometry import (
    near_pairs,
    rectangles_overlap,
    rotated_iou_bev,
    rotated_iou_bev_pairs,
)

Rectangle = tuple[float, float, float, float, float]

COORDINATES = st.floats(-60, 60, width=32)
SIZES = st.floats(0.0625, 20, width=32)
ANGLES = st.one_of(
    st.floats(-7, 7, width=32), st.sampled_from([k * math.pi / 4 for k in range(-4, 5)])
)
OFFSETS = st.one_of(st.floats(-12, 12, width=32), st.sampled_from([0.0, 1e-6, 1.0, 2.0]))


@st.composite
def rectangle_pairs(draw: st.DrawFn) -> tuple[Rectangle, Rectangle]:
    """Two rectangles that are close to each other, often parallel or of one size."""
    x, y, length, width, theta = (draw(s) for s in (COORDINATES, COORDINATES, SIZES, SIZES, ANGLES))
    size = draw(st.one_of(st.just((length, width)), st.tuples(SIZES, SIZES)))
    turned = theta + draw(st.one_of(st.sampled_from([0.0, math.pi / 2, math.pi, 1e-6]), ANGLES))
    return (x, y, length, width, theta), (x + draw(OFFSETS), y + draw(OFFSETS), *size, turned)


def shapely_rectangle(rectangle: Rectangle) -> shapely.Polygon:
    x, y, length, width, theta = rectangle
    box = shapely.box(-length / 2, -width / 2, length / 2, width / 2)
    turned = shapely.affinity.rotate(box, theta, origin=(0, 0), use_radians=True)
    return shapely.affinity.translate(turned, x, y)


def shapely_iou(a: Rectangle, b: Rectangle) -> float:
    first, second = shapely_rectangle(a), shapely_rectangle(b)
    overlap = first.intersection(second).area
    return overlap / (first.area + second.area - overlap)


def iou_error_bound(a: Rectangle, b: Rectangle, eps: float) -> float:
    """How much rounding may change an IoU.

    Every corner of b in a's frame is off by a few eps of the largest length involved; the overlap
    changes by at most that times the perimeter, and the IoU by twice this over the union. The
    angles (up to 14 rad) are rounded as well, which moves a corner by eps * angle * half diagonal.
    """
    reach = math.hypot(a[0] - b[0], a[1] - b[1]) + math.hypot(a[2], a[3]) + math.hypot(b[2], b[3])
    corner_m = 16 * eps * reach
    perimeter_m = 2 * (a[2] + a[3] + b[2] + b[3])
    return 2 * corner_m * perimeter_m / max(a[2] * a[3], b[2] * b[3])


@settings(max_examples=400)
@given(rectangle_pairs(), st.sampled_from([torch.float32, torch.float64]))
def test_iou_agrees_with_shapely(pair: tuple[Rectangle, Rectangle], dtype: torch.dtype) -> None:
    rounded = torch.tensor(pair, dtype=dtype)
    a, b = (tuple(row) for row in rounded.tolist())  # the oracle gets the rounded rectangles
    iou = rotated_iou_bev_pairs(rounded[:1], rounded[1:])
    # Shapely itself rounds: 2e-16 of the coordinates over the smallest area.
    bound = iou_error_bound(a, b, torch.finfo(dtype).eps) + 1e-9
    assert abs(float(iou) - shapely_iou(a, b)) <= bound
    assert 0 <= float(iou) <= 1


@settings(max_examples=200)
@given(rectangle_pairs())
def test_iou_is_symmetric_and_blind_to_a_half_turn(pair: tuple[Rectangle, Rectangle]) -> None:
    a, b = torch.tensor(pair, dtype=torch.float64).split(1)
    iou = rotated_iou_bev_pairs(a, b)
    tolerance = 1e-10
    turned = b + torch.tensor([0, 0, 0, 0, math.pi], dtype=torch.float64)
    quarter_turn = torch.tensor([0, 0, 0, 0, math.pi / 2], dtype=torch.float64)
    swapped = b[:, [0, 1, 3, 2, 4]] + quarter_turn
    for same in (
        rotated_iou_bev_pairs(b, a),
        rotated_iou_bev_pairs(a, turned),
        rotated_iou_bev_pairs(a, swapped),
    ):
        torch.testing.assert_close(same, iou, rtol=0, atol=tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_identical_boxes_overlap_wholly(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(1)
    boxes = torch.rand(2000, 5, generator=generator, dtype=dtype) * 10 + 0.05
    iou = rotated_iou_bev_pairs(boxes, boxes)
    bound = 8 * torch.finfo(dtype).eps
    assert (iou >= 1 - bound * 200).all()  # sides from 0.05 to 10 m: aspect ratios up to 200
    assert (iou <= 1).all()


@pytest.mark.parametrize("theta", [0.0, 0.3, math.pi / 2, -2.5])
def test_touching_boxes_do_not_overlap(theta: float) -> None:
    cos, sin = math.cos(theta), math.sin(theta)
    a = torch.tensor([[3.0, -2.0, 4.0, 2.0, theta]], dtype=torch.float64)
    beside = (4 * cos, 4 * sin)
    at_the_corner = (4 * cos - 2 * sin, 4 * sin + 2 * cos)
    for offset in (beside, at_the_corner):
        b = a + torch.tensor([[*offset, 0, 0, 0]], dtype=torch.float64)
        assert float(rotated_iou_bev(a, b)) < 1e-14


def test_known_overlaps() -> None:
    a = torch.tensor([[0.0, 0.0, 4.0, 2.0, 0.0]])
    inner = torch.tensor([[0.5, 0.2, 1.0, 1.0, 0.7]])
    crossing = torch.tensor([[0.0, 0.0, 4.0, 2.0, math.pi / 2]])
    octagon = torch.tensor([[0.0, 0.0, 2.0, 2.0, math.pi / 4]])
    square = torch.tensor([[0.0, 0.0, 2.0, 2.0, 0.0]])
    assert float(rotated_iou_bev(a, inner)) == pytest.approx(1 / 8, abs=1e-6)
    assert float(rotated_iou_bev(a, crossing)) == pytest.approx(4 / 12, abs=1e-6)
    area = 8 * (math.sqrt(2) - 1)  # regular octagon, inradius 1
    assert float(rotated_iou_bev(square, octagon)) == pytest.approx(area / (8 - area), abs=1e-6)


@pytest.mark.parametrize("size", [(0.0, 0.0), (0.0, 3.0), (-1.0, 2.0)])
def test_a_box_without_area_overlaps_nothing(size: tuple[float, float]) -> None:
    flat = torch.tensor([[0.0, 0.0, *size, 0.4]])
    full = torch.tensor([[0.0, 0.0, 4.0, 2.0, 0.0]])
    for a, b in ((flat, full), (full, flat), (flat, flat)):
        assert float(rotated_iou_bev_pairs(a, b)) == 0
        assert float(rotated_iou_bev(a, b)) == 0


def test_all_pairs_equal_the_pair_list() -> None:
    generator = torch.Generator().manual_seed(2)
    a = torch.rand(37, 5, generator=generator) * torch.tensor([20, 20, 5, 5, 7])
    b = torch.rand(23, 5, generator=generator) * torch.tensor([20, 20, 5, 5, 7])
    matrix = rotated_iou_bev(a, b)
    pairs = rotated_iou_bev_pairs(a.repeat_interleave(23, 0), b.repeat(37, 1)).view(37, 23)
    torch.testing.assert_close(matrix, pairs, rtol=0, atol=1e-6)
    rows, cols = near_pairs(a, b)
    assert 0 < len(rows) < 37 * 23  # the prefilter does filter ...
    far = torch.ones(37, 23, dtype=torch.bool)
    far[rows, cols] = False
    assert (pairs[far] <= 1e-6).all()  # ... and loses nothing


def test_long_pair_lists_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    boxes = torch.rand(50, 5, generator=torch.Generator().manual_seed(3)) * 5
    whole = rotated_iou_bev_pairs(boxes, boxes.flip(0))
    monkeypatch.setattr("voxelquant.geometry.overlap._MAX_PAIRS", 7)
    assert torch.equal(rotated_iou_bev_pairs(boxes, boxes.flip(0)), whole)


def test_no_boxes() -> None:
    none, two = torch.zeros(0, 5), torch.ones(2, 5)
    assert rotated_iou_bev(none, two).shape == (0, 2)
    assert rotated_iou_bev(two, none).shape == (2, 0)
    assert rotated_iou_bev_pairs(none, none).shape == (0,)


def test_what_cannot_be_compared_is_named() -> None:
    with pytest.raises(GeometryError, match=r"got shape \(1, 9\), need \[n, 5\]"):
        rotated_iou_bev(torch.ones(1, 9), torch.ones(1, 5))
    with pytest.raises(GeometryError, match="float64"):
        rotated_iou_bev(torch.ones(1, 5), torch.ones(1, 5).double())
    with pytest.raises(GeometryError, match="got 1 and 2"):
        rotated_iou_bev_pairs(torch.ones(1, 5), torch.ones(2, 5))


@settings(max_examples=400)
@given(rectangle_pairs(), st.sampled_from([torch.float32, torch.float64]))
def test_overlap_agrees_with_shapely(pair: tuple[Rectangle, Rectangle], dtype: torch.dtype) -> None:
    rounded = torch.tensor(pair, dtype=dtype)
    a, b = (tuple(row) for row in rounded.tolist())
    first, second = shapely_rectangle(a), shapely_rectangle(b)
    # As in `iou_error_bound`: within this distance of touching, rounding may decide either way.
    reach = math.hypot(a[0] - b[0], a[1] - b[1]) + math.hypot(a[2], a[3]) + math.hypot(b[2], b[3])
    margin_m = 16 * torch.finfo(dtype).eps * reach
    found = rectangles_overlap(rounded[:1], rounded[1:])
    assert found.shape == (1, 1)
    assert torch.equal(found, rectangles_overlap(rounded[1:], rounded[:1]))
    if first.distance(second) > margin_m:
        assert not found
    elif first.buffer(-margin_m).intersects(second.buffer(-margin_m)):
        assert found


def test_overlap_of_crossing_containing_touching_and_empty_rectangles() -> None:
    cross = torch.tensor([[0.0, 0.0, 10.0, 1.0, 0.0], [0.0, 0.0, 10.0, 1.0, math.pi / 2]])
    assert rectangles_overlap(cross[:1], cross[1:]).all()  # no corner lies in the other
    inner = torch.tensor([[0.1, 0.2, 0.5, 0.5, 0.7]])
    assert rectangles_overlap(inner, torch.tensor([[0.0, 0.0, 4.0, 4.0, 0.2]])).all()
    side = torch.tensor([[0.0, 0.0, 2.0, 2.0, 0.0], [2.0, 0.0, 2.0, 2.0, 0.0]])
    assert torch.equal(rectangles_overlap(side, side), torch.eye(2, dtype=torch.bool))
    # Circles around them meet, and so do their upright bounds; only a slanted side tells.
    slanted = torch.tensor([[0.0, 0.0, 4.0, 0.2, math.pi / 4]])
    assert not rectangles_overlap(slanted, torch.tensor([[1.2, -0.2, 1.0, 1.0, 0.0]])).any()
    assert rectangles_overlap(side, side[:0]).shape == (2, 0)
    with pytest.raises(GeometryError, match="one dtype"):
        rectangles_overlap(side, side.double())
