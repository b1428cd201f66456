import math
from dataclasses import replace

import pytest
import torch

from operation_counter import OperationCounter
from voxelquant.detection.head_spec import HeadSpec
from voxelquant.detection.losses import centerpoint_loss, fast_focal_loss
from voxelquant.detection.targets import TaskTargets, assign_targets_batch

Maps = dict[str, torch.Tensor]


def random_maps(spec: HeadSpec, batch_size: int, generator: torch.Generator) -> list[Maps]:
    height, width = spec.bev_grid.shape_hw
    channels = dict(spec.regression_heads)
    return [
        {
            name: torch.randn(batch_size, c, height, width, generator=generator)
            for name, c in {**channels, "hm": len(task.class_names)}.items()
        }
        for task in spec.tasks
    ]


def random_targets(
    spec: HeadSpec, boxes_per_frame: list[int], generator: torch.Generator
) -> list[TaskTargets]:
    boxes = [torch.rand(n, 9, generator=generator) * 6 + 0.1 for n in boxes_per_frame]
    n_classes = len(spec.class_names)
    labels = [torch.randint(n_classes, (n,), generator=generator) for n in boxes_per_frame]
    return assign_targets_batch(boxes, labels, spec)


def oracle_focal_loss(logits: torch.Tensor, targets: TaskTargets) -> float:
    """Cell by cell, box by box, in float64."""
    batch_size, _, _, width = logits.shape
    negative = positive = 0.0
    probabilities = logits.double().sigmoid().clamp(1e-4, 1 - 1e-4)
    goals = targets.hm.double().flatten().tolist()
    for p, g in zip(probabilities.flatten().tolist(), goals, strict=True):
        negative += math.log(1 - p) * p**2 * (1 - g) ** 4
    count = 0
    for b in range(batch_size):
        for slot in range(targets.mask.shape[1]):
            if targets.mask[b, slot]:
                iy, ix = divmod(int(targets.ind[b, slot]), width)
                p = float(probabilities[b, int(targets.cat[b, slot]), iy, ix])
                positive += math.log(p) * (1 - p) ** 2
                count += 1
    return -negative if count == 0 else -(positive + negative) / count


def oracle_box_loss(maps: Maps, targets: TaskTargets, *, with_velocity: bool) -> list[float]:
    names = (
        ["reg", "height", "dim", "vel", "rot"] if with_velocity else ["reg", "height", "dim", "rot"]
    )
    columns = list(range(10)) if with_velocity else [0, 1, 2, 3, 4, 5, 8, 9]
    width = maps["reg"].shape[3]
    sums, count = [0.0] * len(columns), 0
    for b in range(targets.mask.shape[0]):
        for slot in range(targets.mask.shape[1]):
            if not targets.mask[b, slot]:
                continue
            count += 1
            iy, ix = divmod(int(targets.ind[b, slot]), width)
            codes = [float(v) for name in names for v in maps[name][b, :, iy, ix]]
            for k, column in enumerate(columns):
                sums[k] += abs(codes[k] - float(targets.anno_box[b, slot, column]))
    return [total / (count + 1e-4) for total in sums]


@pytest.mark.parametrize("with_velocity", [True, False])
@pytest.mark.parametrize("boxes_per_frame", [[25, 40], [1, 0], [0, 0]])
def test_losses_agree_with_the_plain_loop(
    small_head: HeadSpec, boxes_per_frame: list[int], with_velocity: bool
) -> None:
    spec = small_head
    if not with_velocity:
        loss = replace(spec.loss, code_weights=(1, 2, 3, 4, 5, 6, 7, 8), weight=2.0)
        spec = replace(spec, with_velocity=False, loss=loss)
    generator = torch.Generator().manual_seed(len(boxes_per_frame) + sum(boxes_per_frame))
    maps = random_maps(spec, 2, generator)
    targets = random_targets(spec, boxes_per_frame, generator)
    terms = centerpoint_loss(maps, targets, spec)
    total = 0.0
    for task_maps, task_targets, found in zip(maps, targets, terms.tasks, strict=True):
        hm_loss = oracle_focal_loss(task_maps["hm"], task_targets)
        elements = oracle_box_loss(task_maps, task_targets, with_velocity=with_velocity)
        weights = spec.loss.code_weights
        loc_loss = sum(w * e for w, e in zip(weights, elements, strict=True))
        total += hm_loss + spec.loss.weight * loc_loss
        assert float(found.hm_loss) == pytest.approx(hm_loss, rel=1e-5)
        assert found.loc_loss_elem.tolist() == pytest.approx(elements, rel=1e-5)
        assert float(found.loc_loss) == pytest.approx(loc_loss, rel=1e-5)
        assert float(found.loss) == pytest.approx(hm_loss + spec.loss.weight * loc_loss, rel=1e-5)
        assert int(found.num_positive) == int(task_targets.mask.sum())
    assert float(terms.total) == pytest.approx(total, rel=1e-5)


def test_without_boxes_the_focal_loss_is_not_normalized(small_head: HeadSpec) -> None:
    targets = assign_targets_batch(
        [torch.zeros(0, 9)] * 2, [torch.zeros(0, dtype=torch.int64)] * 2, small_head
    )[0]
    logits = torch.zeros(2, 1, 20, 24)
    expected = -2 * 20 * 24 * math.log(0.5) * 0.25
    assert float(fast_focal_loss(logits, targets)) == pytest.approx(expected, rel=1e-6)


def test_saturated_logits_stay_finite_and_are_clamped(small_head: HeadSpec) -> None:
    generator = torch.Generator().manual_seed(3)
    maps = random_maps(small_head, 1, generator)
    targets = random_targets(small_head, [30], generator)
    for task_maps in maps:
        task_maps["hm"] = torch.where(task_maps["hm"] > 0, 200.0, -200.0)
    terms = centerpoint_loss(maps, targets, small_head)
    for task_maps, task_targets, found in zip(maps, targets, terms.tasks, strict=True):
        # 1 - 1e-4 is rounded to float32, and its distance to 1 by up to 3e-8 / 1e-4.
        expected = oracle_focal_loss(task_maps["hm"], task_targets)
        assert float(found.hm_loss) == pytest.approx(expected, rel=1e-3)


def test_gradients_reach_every_map_only_where_they_should(small_head: HeadSpec) -> None:
    generator = torch.Generator().manual_seed(4)
    maps = random_maps(small_head, 2, generator)
    targets = random_targets(small_head, [20, 20], generator)
    for task_maps in maps:
        for tensor in task_maps.values():
            tensor.requires_grad_()
    centerpoint_loss(maps, targets, small_head).total.backward()
    for task_maps, task_targets in zip(maps, targets, strict=True):
        assert (task_maps["hm"].grad != 0).float().mean() > 0.9
        cells = torch.zeros(2, 20 * 24, dtype=torch.bool)
        for b in range(2):
            cells[b, task_targets.ind[b, task_targets.mask[b].bool()]] = True
        touched = (task_maps["height"].grad != 0).view(2, -1)
        assert not (touched & ~cells).any()
        assert touched.any()


def test_half_precision_maps_are_computed_in_float32(small_head: HeadSpec) -> None:
    generator = torch.Generator().manual_seed(5)
    half = [{k: v.half() for k, v in m.items()} for m in random_maps(small_head, 1, generator)]
    targets = random_targets(small_head, [20], generator)
    from_half = centerpoint_loss(half, targets, small_head).total
    as_float = [{k: v.float() for k, v in m.items()} for m in half]
    assert from_half.dtype == torch.float32
    assert torch.equal(from_half, centerpoint_loss(as_float, targets, small_head).total)


def test_targets_and_losses_take_few_operations(small_head: HeadSpec) -> None:
    """Each takes the host some ten microseconds; one task after the other they were 900."""
    generator = torch.Generator().manual_seed(6)
    maps = random_maps(small_head, 4, generator)
    # Constants are sent once.
    centerpoint_loss(maps, random_targets(small_head, [4] * 4, generator), small_head)
    with OperationCounter() as counter:
        targets = random_targets(small_head, [30, 0, 20, 45], generator)
        centerpoint_loss(maps, targets, small_head)
    # A GPU is waited for once, for the largest radius.
    assert counter.waits == {"_local_scalar_dense": 1}
    assert counter.launches <= 200
