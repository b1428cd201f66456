import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from voxelquant.detection.head_spec import BevGrid, HeadSpec
from voxelquant.detection.targets import (
    TaskTargets,
    assign_targets,
    assign_targets_batch,
    gaussian_radius,
)
from voxelquant.errors import GeometryError

CAR = [1.0, 2.0, -0.5, 1.95, 4.6, 1.7, 3.0, -4.0, 0.3]


def oracle_radius(height: float, width: float, overlap: float) -> float:
    """Written out from the specification."""
    s, a, o = height + width, height * width, overlap
    r1 = (s + math.sqrt(s * s - 4 * a * (1 - o) / (1 + o))) / 2
    r2 = (2 * s + math.sqrt(4 * s * s - 16 * (1 - o) * a)) / 2
    r3 = (-2 * o * s + math.sqrt(4 * o * o * s * s + 16 * o * (1 - o) * a)) / 2
    return min(r1, r2, r3)


def oracle_gaussian(radius: int) -> np.ndarray:
    """The window with the cut at machine epsilon that the specification names."""
    sigma = (2 * radius + 1) / 6
    window = np.zeros((2 * radius + 1, 2 * radius + 1))
    for dy in range(-radius, radius + 1):
        for dx in range(-radius, radius + 1):
            window[dy + radius, dx + radius] = math.exp(-(dx * dx + dy * dy) / (2 * sigma * sigma))
    window[window < np.finfo(np.float64).eps * window.max()] = 0
    return window


def oracle_task(boxes: np.ndarray, labels: list[int], task: int, spec: HeadSpec) -> TaskTargets:
    """One box and one cell after the other."""
    height, width = spec.bev_grid.shape_hw
    n_classes, offset = len(spec.tasks[task].class_names), spec.label_offsets[task]
    max_objs = spec.assigner.max_objs
    hm = np.zeros((n_classes, height, width), np.float32)
    anno = np.zeros((max_objs, 10), np.float32)
    ind, cat = np.zeros(max_objs, np.int64), np.zeros(max_objs, np.int64)
    mask = np.zeros(max_objs, np.uint8)
    mine = [
        (k, row)
        for k in range(n_classes)
        for row in range(len(labels))
        if labels[row] == offset + k
    ]
    voxel = np.float32(spec.bev_grid.voxel_size[0])
    for slot, (k, row) in enumerate(mine[:max_objs]):
        x, y, z, w, l, h, vx, vy, yaw = boxes[row]  # noqa: E741
        w_f, l_f = (side / voxel / np.float32(8) for side in (w, l))
        if w_f <= 0 or l_f <= 0:
            continue
        radius = max(spec.assigner.min_radius, int(oracle_radius(float(l_f), float(w_f), 0.1)))
        cx = (x - np.float32(spec.bev_grid.point_range[0])) / voxel / np.float32(8)
        cy = (y - np.float32(spec.bev_grid.point_range[1])) / voxel / np.float32(8)
        ix, iy = int(cx), int(cy)
        if not (0 <= ix < width and 0 <= iy < height):
            continue
        window = oracle_gaussian(radius)
        for dy in range(-radius, radius + 1):
            for dx in range(-radius, radius + 1):
                if 0 <= iy + dy < height and 0 <= ix + dx < width:
                    value = np.float32(window[dy + radius, dx + radius])
                    hm[k, iy + dy, ix + dx] = max(hm[k, iy + dy, ix + dx], value)
        logs = [math.log(side) for side in (w, l, h)]
        anno[slot] = [cx - ix, cy - iy, z, *logs, vx, vy, math.sin(yaw), math.cos(yaw)]
        ind[slot], cat[slot], mask[slot] = iy * width + ix, k, 1
    return TaskTargets(*(torch.from_numpy(array) for array in (hm, anno, ind, mask, cat)))


def assert_same_targets(found: TaskTargets, expected: TaskTargets) -> None:
    assert torch.equal(found.ind, expected.ind)
    assert torch.equal(found.mask, expected.mask)
    assert torch.equal(found.cat, expected.cat)
    eps = torch.finfo(torch.float32).eps
    torch.testing.assert_close(found.hm, expected.hm, rtol=eps, atol=0)
    # sin, cos and ln in float32 against float64: two ulps of values below 10.
    torch.testing.assert_close(found.anno_box, expected.anno_box, rtol=4 * eps, atol=4 * eps)


@given(st.integers(0, 2**32 - 1), st.integers(0, 60), st.sampled_from([500, 12]))
def test_targets_agree_with_the_plain_loop(
    with_assigner: Callable[..., HeadSpec], seed: int, n_boxes: int, max_objs: int
) -> None:
    spec = with_assigner(max_objs=max_objs)
    rng = np.random.default_rng(seed)
    low = [-8, -5, -2, 0.2, 0.2, 0.3, -9, -9, -4]
    high = [10, 11, 2, 4.0, 13.0, 4.0, 9, 9, 4]
    boxes = rng.uniform(low, high, (n_boxes, 9)).astype(np.float32)
    boxes[rng.random(n_boxes) < 0.1, 3] = 0  # degenerate: leaves its slot empty
    labels = rng.integers(-1, 11, n_boxes)  # -1 and 10 belong to no task
    targets = assign_targets(torch.from_numpy(boxes), torch.from_numpy(labels), spec)
    assert len(targets) == 6
    for task, found in enumerate(targets):
        assert_same_targets(found, oracle_task(boxes, labels.tolist(), task, spec))


def test_dtypes_and_shapes(small_head: HeadSpec) -> None:
    targets = assign_targets(torch.tensor([CAR]), torch.tensor([3]), small_head)
    bus = targets[2]
    assert (bus.hm.shape, bus.hm.dtype) == ((2, 20, 24), torch.float32)
    assert (bus.anno_box.shape, bus.anno_box.dtype) == ((500, 10), torch.float32)
    assert (bus.ind.shape, bus.ind.dtype) == ((500,), torch.int64)
    assert (bus.mask.shape, bus.mask.dtype) == ((500,), torch.uint8)
    assert (bus.cat.shape, bus.cat.dtype) == ((500,), torch.int64)
    assert [int(task.mask.sum()) for task in targets] == [0, 0, 1, 0, 0, 0]


def test_a_batch_equals_its_frames(small_head: HeadSpec) -> None:
    generator = torch.Generator().manual_seed(0)
    boxes = [torch.rand(n, 9, generator=generator) * 8 for n in (7, 0, 30)]
    labels = [torch.randint(0, 10, (len(b),), generator=generator) for b in boxes]
    batch = assign_targets_batch(boxes, labels, small_head)
    for frame in range(3):
        single = assign_targets(boxes[frame], labels[frame], small_head)
        for together, alone in zip(batch, single, strict=True):
            for name in ("hm", "anno_box", "ind", "mask", "cat"):
                assert torch.equal(getattr(together, name)[frame], getattr(alone, name))


@pytest.mark.parametrize(
    ("width_m", "length_m", "radius"),
    # A car; a truck of nuScenes' mean size (2.9, truncated) and a larger one; the quoted 12 m box.
    [(1.95, 4.6, 2), (2.51, 6.93, 2), (2.8, 8.5, 3), (6.4, 12.3, 6)],
)
def test_typical_radii(width_m: float, length_m: float, radius: int) -> None:
    sides = [torch.tensor(side / 0.6, dtype=torch.float64) for side in (length_m, width_m)]
    assert int(gaussian_radius(*sides, 0.1)) == radius


@given(st.floats(0.01, 200), st.floats(0.01, 200), st.floats(0.01, 0.99))
def test_the_radius_is_the_smallest_of_three_historical_roots(
    length: float, width: float, overlap: float
) -> None:
    sides = [torch.tensor(side, dtype=torch.float64) for side in (length, width)]
    expected = oracle_radius(length, width, overlap)
    assert float(gaussian_radius(*sides, overlap)) == pytest.approx(expected, rel=1e-9, abs=1e-9)


def test_small_boxes_get_the_least_radius(small_head: HeadSpec) -> None:
    cone = [*CAR[:3], 0.4, 0.4, 1.0, *CAR[6:]]
    hm = assign_targets(torch.tensor([cone]), torch.tensor([9]), small_head)[5].hm[1]
    iy, ix = divmod(int(hm.argmax()), 24)
    assert hm[iy, ix] == 1
    assert hm[iy, ix + 2] == pytest.approx(math.exp(-4 / (2 * (5 / 6) ** 2)))
    assert hm[iy, ix + 3] == 0
    assert int((hm > 0).sum()) == 25


@pytest.mark.parametrize("radius", [0, 1, 2, 6, 40, 200])
def test_the_cut_at_epsilon_never_acts(radius: int) -> None:
    window = oracle_gaussian(radius)
    assert window.min() > math.exp(-9) > np.finfo(np.float32).eps


def test_indices_are_truncated_not_floored(small_head: HeadSpec) -> None:
    # The map starts at x = -6, y = -3 with cells of 0.6 m.
    just_below = [-6.5, -3.5, *CAR[2:]]
    targets = assign_targets(torch.tensor([just_below]), torch.tensor([0]), small_head)[0]
    assert targets.mask[0] == 1
    assert targets.ind[0] == 0
    expected = torch.tensor([-0.5 / 0.6, -0.5 / 0.6])
    torch.testing.assert_close(targets.anno_box[0, :2], expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize("centre", [(-6.61, 0), (0, -3.61), (8.41, 0), (0, 9.01), (math.nan, 0)])
def test_boxes_out_of_the_map_leave_an_empty_slot(
    small_head: HeadSpec, centre: tuple[float, float]
) -> None:
    boxes = torch.tensor([[*centre, *CAR[2:]], CAR])
    targets = assign_targets(boxes, torch.tensor([0, 0]), small_head)[0]
    assert targets.mask[:3].tolist() == [0, 1, 0]
    assert not targets.anno_box[0].any()
    alone = assign_targets(boxes[1:], torch.tensor([0]), small_head)[0]
    assert torch.equal(targets.hm, alone.hm)


def test_the_upper_edge_of_the_map_is_outside(small_head: HeadSpec) -> None:
    grid = BevGrid((0, 0, -5, 16, 12, 3), (0.125, 0.125, 0.2), 8)  # cells of exactly 1 m
    spec = replace(small_head, bev_grid=grid)
    boxes = torch.tensor([[16.0, 1, *CAR[2:]], [1, 12.0, *CAR[2:]], [15.99, 11.99, *CAR[2:]]])
    targets = assign_targets(boxes, torch.tensor([0, 0, 0]), spec)[0]
    assert targets.mask[:3].tolist() == [0, 0, 1]
    assert targets.ind[2] == 12 * 16 - 1


@pytest.mark.parametrize("column", [3, 4, 5])
def test_boxes_without_volume_leave_an_empty_slot(small_head: HeadSpec, column: int) -> None:
    boxes = torch.tensor([CAR, CAR])
    boxes[0, column] = 0
    targets = assign_targets(boxes, torch.tensor([0, 0]), small_head)[0]
    assert targets.mask[:3].tolist() == [0, 1, 0]
    assert torch.isfinite(targets.anno_box).all()


def test_boxes_are_ordered_class_by_class(small_head: HeadSpec) -> None:
    boxes = torch.tensor([CAR] * 4)
    boxes[:, 2] = torch.arange(4.0)  # z tells them apart
    targets = assign_targets(boxes, torch.tensor([7, 6, 7, 6]), small_head)[4]
    assert targets.anno_box[:4, 2].tolist() == [1, 3, 0, 2]
    assert targets.cat[:4].tolist() == [0, 0, 1, 1]


def test_two_boxes_in_one_cell_keep_two_slots(small_head: HeadSpec) -> None:
    second = [CAR[0] + 0.01, *CAR[1:3], 6.4, 12.3, *CAR[5:]]
    both = assign_targets(torch.tensor([CAR, second]), torch.tensor([0, 0]), small_head)[0]
    assert both.mask[:2].tolist() == [1, 1]
    assert both.ind[0] == both.ind[1]
    singles = [
        assign_targets(torch.tensor([b]), torch.tensor([0]), small_head)[0].hm
        for b in (CAR, second)
    ]
    assert torch.equal(both.hm, torch.maximum(*singles))


def test_regression_targets_of_one_box(small_head: HeadSpec) -> None:
    targets = assign_targets(torch.tensor([CAR]), torch.tensor([0]), small_head)[0]
    cx, cy = (1.0 + 6) / 0.6, (2.0 + 3) / 0.6
    expected = [cx - 11, cy - 8, -0.5, math.log(1.95), math.log(4.6), math.log(1.7), 3, -4]
    expected += [math.sin(0.3), math.cos(0.3)]  # sine first, of det3d's yaw
    torch.testing.assert_close(targets.anno_box[0], torch.tensor(expected), rtol=1e-5, atol=1e-6)
    assert targets.ind[0] == 8 * 24 + 11


def test_more_boxes_than_slots(with_assigner: Callable[..., HeadSpec]) -> None:
    spec = with_assigner(max_objs=5)
    boxes = torch.tensor([CAR] * 8)
    boxes[:, 2] = torch.arange(8.0)
    targets = assign_targets(boxes, torch.zeros(8, dtype=torch.int64), spec)[0]
    assert targets.anno_box[:, 2].tolist() == [0, 1, 2, 3, 4]


def test_unusable_boxes_are_named(small_head: HeadSpec) -> None:
    with pytest.raises(GeometryError, match=r"got boxes \(2, 7\)"):
        assign_targets(torch.zeros(2, 7), torch.zeros(2, dtype=torch.int64), small_head)
    with pytest.raises(GeometryError, match=r"labels \(3,\)"):
        assign_targets(torch.zeros(2, 9), torch.zeros(3, dtype=torch.int64), small_head)
    with pytest.raises(GeometryError, match="0 frames"):
        assign_targets_batch([], [], small_head)


def test_boxes_stay_where_they_are_and_targets_come_where_they_are_wanted(
    small_head: HeadSpec,
) -> None:
    """A device that computes nothing: what boxes decide, sizes included, is known without it."""
    boxes = torch.tensor([[0.0, 0, 0, 2, 4, 1.5, 1, 0, 0.3]]).repeat(3, 1)
    labels = torch.zeros(3, dtype=torch.int64)
    here = assign_targets_batch([boxes] * 2, [labels] * 2, small_head)
    there = assign_targets_batch([boxes] * 2, [labels] * 2, small_head, device=torch.device("meta"))
    for own, wanted in zip(there, here, strict=True):
        for name in ("hm", "anno_box", "ind", "mask", "cat"):
            found, expected = getattr(own, name), getattr(wanted, name)
            assert found.device.type == "meta"
            assert (found.shape, found.dtype) == (expected.shape, expected.dtype)
