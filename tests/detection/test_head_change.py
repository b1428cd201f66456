"""Head error and churn against values worked out by hand."""

import math
from dataclasses import replace

import pytest
import torch

from voxelquant.detection.decode import decode_predictions
from voxelquant.detection.head_change import HeadChange, Positives
from voxelquant.detection.head_spec import HeadSpec

from .test_decode import silent_maps

CAR, TRUCK, CONSTRUCTION = 0, 1, 2


def put_box(maps, spec: HeadSpec, label: int, cell, score: float) -> None:
    """A box of 4 by 4 m in the middle of a cell."""
    task = next(t for t, offset in reversed(list(enumerate(spec.label_offsets))) if label >= offset)
    own, (iy, ix) = maps[task], cell
    own["hm"][0, label - spec.label_offsets[task], iy, ix] = math.log(score / (1 - score))
    own["reg"][0, :, iy, ix] = 0.5
    own["dim"][0, :, iy, ix] = math.log(4.0)
    own["rot"][0, 1, iy, ix] = 1.0


@pytest.fixture
def spec(small_head: HeadSpec) -> HeadSpec:
    wide = (-1e3,) * 3 + (1e3,) * 3
    return replace(small_head, decode=replace(small_head.decode, post_center_limit_range=wide))


@pytest.fixture
def scene(spec: HeadSpec):
    """A car, a truck, and a construction vehicle below the score of a positive."""
    maps = silent_maps(spec)
    put_box(maps, spec, CAR, (2, 3), 0.9)
    put_box(maps, spec, TRUCK, (5, 1), 0.6)
    return maps


def copied(maps):
    return [{name: value.clone() for name, value in task.items()} for task in maps]


def change(spec: HeadSpec, reference, maps) -> HeadChange:
    (found,) = decode_predictions(maps, spec)
    return Positives.of(reference, spec).change_in(maps, found)


def test_the_same_maps_do_not_differ(spec, scene) -> None:
    assert change(spec, scene, copied(scene)) == HeadChange(0.0, 2, 0, 0)


def test_head_error_weighs_as_the_loss_does(spec, scene) -> None:
    moved = copied(scene)
    moved[0]["hm"][0, 0, 2, 3] -= 0.3
    moved[0]["height"][0, 0, 2, 3] += 0.2
    moved[0]["vel"][0, 1, 2, 3] -= 0.5
    moved[1]["rot"][0, 0, 5, 1] += 0.01
    names = [n for n, channels in spec.regression_heads for _ in range(channels)]
    weight = dict(zip(names, spec.loss.code_weights, strict=True))
    assert weight["vel"] != weight["height"]
    wanted = 0.3 + spec.loss.weight * (
        0.2 * weight["height"] + 0.5 * weight["vel"] + 0.01 * weight["rot"]
    )
    found = change(spec, scene, moved)
    assert found.head_error == pytest.approx(wanted, rel=1e-4)
    assert (found.positives, found.lost, found.created) == (2, 0, 0)


def test_what_lies_between_positives_does_not_count(spec, scene) -> None:
    moved = copied(scene)
    for task in moved:
        for name, value in task.items():
            for cell in ((2, 3), (5, 1)):
                kept = value[0, :, cell[0], cell[1]].clone()
                value[0, :, 4, 6] += 0.5 if name != "hm" else 0.0
                value[0, :, cell[0], cell[1]] = kept
    # The other class of the truck's own cell is none of the positive's either.
    moved[1]["hm"][0, 1, 5, 1] += 0.5
    assert change(spec, scene, moved).head_error == 0.0


def test_boxes_are_lost_and_created(spec, scene) -> None:
    gone = copied(scene)
    gone[0]["hm"][0, 0, 2, 3] = -10.0
    found = change(spec, scene, gone)
    assert (found.lost, found.created) == (1, 0)
    more = copied(scene)
    put_box(more, spec, CAR, (7, 7), 0.3)
    found = change(spec, scene, more)
    assert (found.lost, found.created) == (0, 1)


def test_another_class_is_another_box(spec, scene) -> None:
    renamed = copied(scene)
    renamed[1]["hm"][0, 1, 5, 1] = 3.0
    found = change(spec, scene, renamed)
    assert (found.lost, found.created) == (1, 1)


@pytest.mark.parametrize(("shift", "same"), [(1.0, True), (1.6, False)])
def test_half_an_overlap_makes_the_same_box(spec, scene, shift: float, same: bool) -> None:
    """Squares of 4 m: IoU 12/20 after one metre, 9.6/22.4 after 1.6 m."""
    size_m = spec.bev_grid.out_size_factor * spec.bev_grid.voxel_size[0]
    moved = copied(scene)
    moved[0]["reg"][0, 0, 2, 3] += shift / size_m
    found = change(spec, scene, moved)
    assert (found.lost, found.created) == ((0, 0) if same else (1, 1))


def test_weak_boxes_are_no_positives(spec, scene) -> None:
    low = replace(spec, decode=replace(spec.decode, score_threshold=0.02))
    weak = copied(scene)
    put_box(weak, low, CONSTRUCTION, (1, 6), 0.08)
    assert len(decode_predictions(weak, low)[0]) == 3
    assert change(low, weak, weak) == HeadChange(0.0, 2, 0, 0)
    assert change(low, scene, weak).created == 0
    silent = silent_maps(low)
    assert change(low, silent, scene) == HeadChange(0.0, 0, 0, 2)


def test_no_velocity_head(spec) -> None:
    still = replace(spec, with_velocity=False, loss=replace(spec.loss, code_weights=(1.0,) * 8))
    maps = silent_maps(still)
    put_box(maps, still, CAR, (2, 3), 0.9)
    assert change(still, maps, copied(maps)) == HeadChange(0.0, 1, 0, 0)


def test_positives_know_their_cells_best_first(spec, scene) -> None:
    put_box(scene, spec, CAR, (6, 6), 0.95)
    positives = Positives.of(scene, spec)
    assert positives.tasks.tolist() == [0, 0, 1]
    assert positives.cells_yx.tolist() == [[6, 6], [2, 3], [5, 1]]
    assert positives.boxes.labels.tolist() == [CAR, CAR, TRUCK]
    assert torch.allclose(positives.outputs[:, 0], torch.logit(torch.tensor([0.95, 0.9, 0.6])))
