import math
from dataclasses import replace

import pytest
import torch

from voxelquant.detection.decode import decode_predictions, find_candidates
from voxelquant.detection.head_spec import DecodeSpec, HeadSpec, NmsSpec
from voxelquant.detection.targets import TaskTargets, assign_targets_batch
from voxelquant.geometry import wrap_to_pi

Maps = dict[str, torch.Tensor]


def silent_maps(spec: HeadSpec, batch_size: int = 1) -> list[Maps]:
    """A head that has seen nothing."""
    height, width = spec.bev_grid.shape_hw
    maps: list[Maps] = []
    for task in spec.tasks:
        channels = dict(spec.regression_heads)
        maps.append({n: torch.zeros(batch_size, c, height, width) for n, c in channels.items()})
        maps[-1]["hm"] = torch.full((batch_size, len(task.class_names), height, width), -10.0)
    return maps


def perfect_maps(targets: list[TaskTargets], spec: HeadSpec) -> list[Maps]:
    """What a head would have to say to give the boxes back."""
    maps = silent_maps(spec, batch_size=len(targets[0].hm))
    width = spec.bev_grid.shape_hw[1]
    columns = {"reg": [0, 1], "height": [2], "dim": [3, 4, 5], "vel": [6, 7], "rot": [8, 9]}
    for task_maps, task in zip(maps, targets, strict=True):
        for frame, slot in task.mask.nonzero().tolist():
            iy, ix = divmod(int(task.ind[frame, slot]), width)
            task_maps["hm"][frame, task.cat[frame, slot], iy, ix] = 5.0 + slot * 0.01
            for name, _ in spec.regression_heads:
                task_maps[name][frame, :, iy, ix] = task.anno_box[frame, slot, columns[name]]
    return maps


def oracle_candidates(maps: Maps, spec: HeadSpec, offset: int) -> list[list[float]]:
    """Frame, box, score and label of every kept cell, one cell after the other."""
    grid, limits = spec.bev_grid, spec.decode.post_center_limit_range
    rows: list[list[float]] = []
    batch_size, _, height, width = maps["hm"].shape
    for b in range(batch_size):
        for iy in range(height):
            for ix in range(width):
                scores = maps["hm"][b, :, iy, ix].sigmoid()
                score, cat = scores.max(0)
                if not score > spec.decode.score_threshold:
                    continue
                dx, dy = maps["reg"][b, :, iy, ix].tolist()
                x = (ix + dx) * grid.out_size_factor * grid.voxel_size[0] + grid.point_range[0]
                y = (iy + dy) * grid.out_size_factor * grid.voxel_size[1] + grid.point_range[1]
                z = maps["height"][b, 0, iy, ix].item()
                if not all(limits[k] <= c <= limits[k + 3] for k, c in enumerate((x, y, z))):
                    continue
                sides = [math.exp(v) for v in maps["dim"][b, :, iy, ix].tolist()]
                velocity = maps["vel"][b, :, iy, ix].tolist() if "vel" in maps else []
                sine, cosine = maps["rot"][b, :, iy, ix].tolist()
                yaw = math.atan2(sine, cosine)
                rows.append([b, x, y, z, *sides, *velocity, yaw, float(score), int(cat) + offset])
    return rows


@pytest.mark.parametrize("with_velocity", [True, False])
def test_candidates_agree_with_the_plain_loop(small_head: HeadSpec, with_velocity: bool) -> None:
    spec = replace(
        small_head,
        with_velocity=with_velocity,
        loss=replace(small_head.loss, code_weights=(1.0,) * (10 if with_velocity else 8)),
        decode=replace(
            small_head.decode, score_threshold=0.6, post_center_limit_range=(-5, -2, -1, 6, 8, 1.5)
        ),
    )
    generator = torch.Generator().manual_seed(0)
    for task, maps in enumerate(silent_maps(spec, batch_size=2)):
        for name in maps:
            maps[name] = torch.randn(maps[name].shape, generator=generator)
        offset = spec.label_offsets[task]
        found, cells = find_candidates(maps, spec, label_offset=offset)
        parts = (cells[:, :1], found.boxes_det3d, found.scores[:, None], found.labels[:, None])
        rows = torch.cat(parts, dim=1)
        expected = torch.tensor(oracle_candidates(maps, spec, offset))
        assert len(expected) > 50
        torch.testing.assert_close(rows, expected, rtol=1e-5, atol=1e-5)


def scattered_boxes(seed: int, spec: HeadSpec) -> tuple[torch.Tensor, torch.Tensor]:
    """Boxes of all classes on a loose grid, so that none suppresses another."""
    generator = torch.Generator().manual_seed(seed)
    low_x, low_y = spec.bev_grid.origin_xy_m
    n_side = 10
    steps = torch.arange(n_side) * 10.0 + 6
    xy = torch.cartesian_prod(steps, steps) + torch.tensor([low_x, low_y])
    n = len(xy)
    rest = torch.rand(n, 7, generator=generator)
    z, sizes, velocity = rest[:, :1] * 4 - 2, rest[:, 1:4] * 4 + 0.3, rest[:, 4:6] * 20 - 10
    yaw = wrap_to_pi(rest[:, 6:] * 20)
    xy = xy + torch.rand(n, 2, generator=generator) * 2
    labels = torch.randint(len(spec.class_names), (n,), generator=generator)
    return torch.cat((xy, z, sizes, velocity, yaw), dim=1), labels


@pytest.mark.parametrize("head", ["nuscenes_head", "waymo_head"])
def test_targets_decode_to_the_boxes(head: str, request: pytest.FixtureRequest) -> None:
    spec: HeadSpec = request.getfixturevalue(head)
    frames = [scattered_boxes(seed, spec) for seed in range(2)]
    targets = assign_targets_batch([f[0] for f in frames], [f[1] for f in frames], spec)
    detections = decode_predictions(perfect_maps(targets, spec), spec)
    for (boxes, labels), found in zip(frames, detections, strict=True):
        assert len(found) == len(boxes)
        # Match by position: x and y tell the boxes apart.
        nearest = torch.cdist(boxes[:, :2], found.boxes_det3d[:, :2]).argmin(dim=1)
        assert sorted(nearest.tolist()) == list(range(len(boxes)))
        assert torch.equal(found.labels[nearest], labels)
        decoded = found.boxes_det3d[nearest]
        expected = boxes if spec.with_velocity else boxes[:, [0, 1, 2, 3, 4, 5, 8]]
        torch.testing.assert_close(decoded[:, :-1], expected[:, :-1], rtol=1e-5, atol=2e-5)
        turn = wrap_to_pi(decoded[:, -1] - expected[:, -1])
        assert turn.abs().max() < 1e-5


def test_labels_are_global_and_tasks_stay_in_order(nuscenes_head: HeadSpec) -> None:
    maps = silent_maps(nuscenes_head)
    for task, task_maps in enumerate(maps):
        n_classes = task_maps["hm"].shape[1]
        for cat in range(n_classes):
            task_maps["hm"][0, cat, 10 + 20 * cat, 10] = 1.0 + task  # later tasks score higher
            task_maps["hm"][0, cat, 10 + 20 * cat, 60] = 0.5
    (found,) = decode_predictions(maps, nuscenes_head)
    assert found.labels.dtype == torch.int64
    expected = [0, 0, 1, 2, 1, 2, 3, 4, 3, 4, 5, 5, 6, 7, 6, 7, 8, 9, 8, 9]
    assert found.labels.tolist() == expected
    assert found.scores[0] < found.scores[-4]  # not sorted across tasks


def test_the_score_must_exceed_the_threshold(small_head: HeadSpec) -> None:
    maps = silent_maps(small_head)
    maps[0]["hm"][0, 0, 5, 5] = 0.0  # a score of exactly 1/2
    for threshold, n_found in ((0.5, 0), (0.4999, 1)):
        spec = replace(small_head, decode=replace(small_head.decode, score_threshold=threshold))
        assert len(decode_predictions(maps, spec)[0]) == n_found


def test_scores_are_not_clamped_as_the_loss_clamps_them(small_head: HeadSpec) -> None:
    maps = silent_maps(small_head)
    logits = torch.tensor([10.0, 12.0])  # both above 1 - 1e-4
    maps[0]["hm"][0, 0, 5, 5], maps[0]["hm"][0, 0, 5, 15] = logits
    (found,) = decode_predictions(maps, small_head)
    assert torch.equal(found.scores, logits.flip(0).sigmoid())
    assert found.scores[0] > found.scores[1] > 1 - 1e-4


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_the_centre_range_includes_its_borders(small_head: HeadSpec, axis: int) -> None:
    maps = silent_maps(small_head)
    maps[0]["hm"][0, 0, 5, 5] = 3.0
    maps[0]["height"][0, 0, 5, 5] = 0.75
    box = decode_predictions(maps, small_head)[0].boxes_det3d[0]
    value = float(box[axis])
    beyond = float(torch.nextafter(box[axis], torch.tensor(100.0)))
    wide = [-50.0, -50, -50, 50, 50, 50]
    for border, changed, n_found in (
        (axis, value, 1), (axis, beyond, 0), (axis + 3, value, 1),
        (axis + 3, float(torch.nextafter(box[axis], torch.tensor(-100.0))), 0),
    ):  # fmt: skip
        limits = list(wide)
        limits[border] = changed
        decode = replace(small_head.decode, post_center_limit_range=tuple(limits))
        assert len(decode_predictions(maps, replace(small_head, decode=decode))[0]) == n_found


def test_sine_comes_first(small_head: HeadSpec) -> None:
    maps = silent_maps(small_head)
    maps[0]["hm"][0, 0, 5, 5] = 3.0
    maps[0]["rot"][0, :, 5, 5] = torch.tensor([1.0, 0.0])
    (found,) = decode_predictions(maps, small_head)
    assert float(found.boxes_det3d[0, 8]) == pytest.approx(math.pi / 2)


def test_rows_are_y_and_columns_are_x(small_head: HeadSpec) -> None:
    maps = silent_maps(small_head)
    maps[0]["hm"][0, 0, 4, 20] = 3.0
    (found,) = decode_predictions(maps, small_head)
    expected = torch.tensor([20 * 0.6 - 6, 4 * 0.6 - 3])
    torch.testing.assert_close(found.boxes_det3d[0, :2], expected)


def test_no_peak_picking_but_classes_of_a_task_suppress_each_other(small_head: HeadSpec) -> None:
    maps = silent_maps(small_head)
    maps[1]["hm"][0, 0, 5, 5] = 3.0
    maps[1]["hm"][0, 1, 5, 6] = 2.0  # the other class, one cell (0.6 m) beside
    maps[1]["dim"][0, :, 5] = math.log(2.0)
    truck, both = NmsSpec(1000, 83, 0.2), NmsSpec(1000, 83, 0.99)
    for nms, labels in ((truck, [1]), (both, [1, 2])):
        spec = replace(small_head, decode=replace(small_head.decode, nms=nms))
        assert decode_predictions(maps, spec)[0].labels.tolist() == labels


def test_at_most_498_boxes(nuscenes_head: HeadSpec) -> None:
    maps = silent_maps(nuscenes_head)
    for task_maps in maps:
        task_maps["hm"][:, 0, ::8, ::8] = 3.0  # 529 far apart per task
    (found,) = decode_predictions(maps, nuscenes_head)
    assert len(found) == 498


def test_circular_suppression(small_head: HeadSpec) -> None:
    decode = DecodeSpec(
        small_head.decode.post_center_limit_range, 0.1, NmsSpec(), True, (4, 12, 10, 1, 0.85, 0.175)
    )
    spec = replace(small_head, decode=decode)
    maps = silent_maps(spec)
    for task_maps in maps:
        task_maps["hm"][0, 0, 5, 5] = 3.0
        task_maps["hm"][0, 0, 5, 7] = 2.0  # 1.2 m beside: 1.44 m²
    (found,) = decode_predictions(maps, spec)
    assert found.labels.tolist() == [0, 1, 3, 5, 5, 6, 6, 8, 8]


def test_nothing_seen_is_no_boxes(nuscenes_head: HeadSpec, waymo_head: HeadSpec) -> None:
    for spec, columns in ((nuscenes_head, 9), (waymo_head, 7)):
        detections = decode_predictions(silent_maps(spec, batch_size=2), spec)
        assert [found.boxes_det3d.shape for found in detections] == [(0, columns)] * 2


def test_half_precision_maps_give_float32_boxes(small_head: HeadSpec) -> None:
    maps = silent_maps(small_head)
    maps[0]["hm"][0, 0, 5, 5] = 3.0
    (found,) = decode_predictions([{k: v.half() for k, v in m.items()} for m in maps], small_head)
    (as_float,) = decode_predictions(maps, small_head)
    assert torch.equal(found.boxes_det3d, as_float.boxes_det3d)
