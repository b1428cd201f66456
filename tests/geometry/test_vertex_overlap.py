import math

import numpy as np
import pytest
import torch

from oracles import vertex_overlap as oracle
from voxelquant.errors import GeometryError
from voxelquant.geometry import (
    CORNER_MARGIN_M,
    rotated_iou_bev_pairs,
    vertex_iou_above,
    vertex_iou_bev_pairs,
)


def random_pairs(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Pairs of rectangles, float64; in half of them a corner of b lies at an edge of a."""
    rng = np.random.default_rng(seed)
    a = rng.uniform([-50, -50, 0.3, 0.3, -4], [50, 50, 6, 6, 4], (count, 5))
    b = rng.uniform([-50, -50, 0.3, 0.3, -4], [50, 50, 6, 6, 4], (count, 5))
    b[:, :2] = a[:, :2] + rng.uniform(-4, 4, (count, 2))
    for row in range(0, count, 2):
        # Move b along a's length so that its first corner stands out by -5 to 25 mm.
        x, y, length, _, theta = a[row]
        corner = oracle.corners(tuple(b[row]))[0]
        along = (corner[0] - x) * math.cos(theta) + (corner[1] - y) * math.sin(theta)
        shift = length / 2 + rng.uniform(-0.005, 0.025) - along
        b[row, :2] += shift * np.array([math.cos(theta), math.sin(theta)])
    return torch.from_numpy(a), torch.from_numpy(b)


def as_tuples(rectangles: torch.Tensor) -> list[oracle.Rectangle]:
    return [tuple(row) for row in rectangles.tolist()]


def test_equals_the_plain_procedure() -> None:
    a, b = random_pairs(2000, seed=1)
    expected = [oracle.iou(p, q) for p, q in zip(as_tuples(a), as_tuples(b), strict=True)]
    found = vertex_iou_bev_pairs(a, b)
    assert (found - torch.tensor(expected, dtype=torch.float64)).abs().max() < 1e-9
    differs = (found - rotated_iou_bev_pairs(a, b)).abs() > 1e-6
    assert 50 < int(differs.sum()) < 1900  # the margin is at work, and not everywhere


def test_float32_equals_the_plain_procedure_where_no_corner_is_at_a_decision() -> None:
    a, b = (boxes.float() for boxes in random_pairs(1000, seed=2))
    compared = 0
    for p, q, found in zip(
        as_tuples(a), as_tuples(b), vertex_iou_bev_pairs(a, b).tolist(), strict=True
    ):
        if oracle.distance_to_a_decision(p, q) < 1e-4:
            continue
        compared += 1
        # A vertex is off by some 8 eps of 70 m, the area by that times the perimeter (< 24 m).
        bound = 2 * 8 * 70 * 1.2e-7 * 24 / max(p[2] * p[3], q[2] * q[3])
        assert abs(found - oracle.iou(p, q)) < bound
    assert compared > 800


def test_exact_where_no_corner_lies_within_the_margin() -> None:
    a, b = random_pairs(2000, seed=3)
    clear = [
        not any(
            0 <= out < CORNER_MARGIN_M
            for out in [oracle.excess(c, q) for c in oracle.corners(p)]
            + [oracle.excess(c, p) for c in oracle.corners(q)]
        )
        for p, q in zip(as_tuples(a), as_tuples(b), strict=True)
    ]
    assert sum(clear) > 1000
    found, exact = (
        vertex_iou_bev_pairs(a[clear], b[clear]),
        rotated_iou_bev_pairs(a[clear], b[clear]),
    )
    torch.testing.assert_close(found, exact, rtol=0, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_gap_within_the_margin_counts_as_overlap(dtype: torch.dtype) -> None:
    # Unit squares 8 mm apart: two corners of each count, and the gap of 8 mm times 1 m is "shared".
    a = torch.tensor([[0, 0, 1, 1, 0]], dtype=dtype)
    b = torch.tensor([[1.008, 0, 1, 1, 0]], dtype=dtype)
    expected = 0.008 / (2 - 0.008)
    assert float(vertex_iou_bev_pairs(a, b)) == pytest.approx(expected, abs=1e-6)
    assert float(rotated_iou_bev_pairs(a, b)) == 0
    beyond = torch.tensor([[1.012, 0, 1, 1, 0]], dtype=dtype)
    assert float(vertex_iou_bev_pairs(a, beyond)) == 0


def test_a_corner_just_outside_enlarges_the_overlap() -> None:
    # b covers the right half of a 2 x 2 square and is 8 mm wider on either side. Vertices: the
    # crossings (0, ±1), b's left corners (0, ±1.008), which are 8 mm off, and a's (1, ±1): a
    # trapezium.
    a = torch.tensor([[0, 0, 2, 2, 0]], dtype=torch.float64)
    b = torch.tensor([[1, 0, 2, 2.016, 0]], dtype=torch.float64)
    shared = 1 * (2 + 2.016) / 2
    union = 4 + 2 * 2.016 - shared
    assert float(vertex_iou_bev_pairs(a, b)) == pytest.approx(shared / union, abs=1e-12)
    assert float(rotated_iou_bev_pairs(a, b)) == pytest.approx(2 / (4 + 2 * 2.016 - 2), abs=1e-12)


def test_identical_boxes_and_boxes_without_area() -> None:
    a, _ = random_pairs(500, seed=4)
    assert (vertex_iou_bev_pairs(a, a) - 1).abs().max() < 1e-9
    flat = torch.tensor([[0.0, 0.0, 0.0, 0.0, 0.3]])
    assert float(vertex_iou_bev_pairs(flat, flat)) == 0  # 0 over the least union, not 0 over 0


@pytest.mark.parametrize("threshold", [0.0, 0.05, 0.2, 0.7])
@pytest.mark.parametrize("seed", [5, 6])
def test_the_shortcut_decides_as_the_whole_procedure(threshold: float, seed: int) -> None:
    a, b = random_pairs(120, seed)
    a[:, :2] *= 0.1  # one crowd: most of the 120 x 120 pairs are close
    b[:, :2] *= 0.1
    b[:40] = a[:40] + 0.003 * b[40:80].cos()  # twins, a few millimetres apart
    a[::3, 2:4] *= 0.02  # sizes down to 6 mm, where the margin is everything
    above = vertex_iou_above(a, b, threshold)
    whole = vertex_iou_bev_pairs(a.repeat_interleave(120, 0), b.repeat(120, 1)).view(120, 120)
    unclear = (whole - threshold).abs() < 1e-9
    assert torch.equal(above[~unclear], (whole > threshold)[~unclear])
    assert above.any()
    assert not above.all()


def test_the_shortcut_sees_every_pair_that_the_margin_decides() -> None:
    a, b = random_pairs(2000, seed=8)
    whole, exact = vertex_iou_bev_pairs(a, b), rotated_iou_bev_pairs(a, b)
    moved = (whole > exact + 1e-6).nonzero().squeeze(1).tolist()
    assert len(moved) > 50
    for row in moved:
        pair = a[row : row + 1], b[row : row + 1]
        low, high = float(exact[row]), float(whole[row])
        assert vertex_iou_above(*pair, low + 0.01 * (high - low)).item()
        assert vertex_iou_above(*pair, low + 0.99 * (high - low)).item()
        assert not vertex_iou_above(*pair, low + 1.01 * (high - low)).item()


def test_boxes_of_the_size_of_the_margin_overlap_across_a_gap() -> None:
    # Squares of 10 mm with a gap of 9 mm between them; their circles are 5 mm apart.
    tiny = torch.tensor([[0, 0, 0.01, 0.01, 0]], dtype=torch.float64)
    beside = torch.tensor([[0.019, 0, 0.01, 0.01, 0]], dtype=torch.float64)
    assert float(vertex_iou_bev_pairs(tiny, beside)) == pytest.approx(90 / 110)
    assert vertex_iou_above(tiny, beside, 0.8).item()


def test_long_pair_lists_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = random_pairs(50, seed=7)
    whole = vertex_iou_bev_pairs(a, b)
    monkeypatch.setattr("voxelquant.geometry.vertex_overlap._MAX_PAIRS", 7)
    assert torch.equal(vertex_iou_bev_pairs(a, b), whole)


def test_no_boxes_and_other_shapes() -> None:
    none, two = torch.zeros(0, 5), torch.ones(2, 5)
    assert vertex_iou_bev_pairs(none, none).shape == (0,)
    assert vertex_iou_above(none, two, 0.2).shape == (0, 2)
    with pytest.raises(GeometryError, match="got 1 and 2"):
        vertex_iou_bev_pairs(torch.ones(1, 5), two)
    with pytest.raises(GeometryError, match=r"need \[n, 5\]"):
        vertex_iou_above(torch.ones(1, 9), two, 0.2)
