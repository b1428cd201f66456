"""Distillation: zero where both agree, and otherwise only where it matters."""

import pytest
import torch
from torch import Tensor

from voxelquant.detection.config import load_config
from voxelquant.detection.distill import MOST_POSITIVES, distillation_loss

SPEC = load_config("centerpoint_tiny").head_spec
HEIGHT, WIDTH = 24, 30
Maps = list[dict[str, Tensor]]


def random_maps(seed: int, batch: int = 2, empty: bool = False) -> Maps:
    generator = torch.Generator().manual_seed(seed)

    def draw(channels: int) -> Tensor:
        return torch.randn(batch, channels, HEIGHT, WIDTH, generator=generator)

    tasks = []
    for task in SPEC.tasks:
        maps = {name: draw(channels) for name, channels in SPEC.regression_heads}
        maps["hm"] = draw(len(task.class_names)) * 1.5 - (12.0 if empty else 4.0)
        tasks.append(maps)
    return tasks


def copy_of(maps: Maps) -> Maps:
    return [{name: value.clone() for name, value in task.items()} for task in maps]


def distance(student: Maps, teacher: Maps) -> float:
    return distillation_loss(student, teacher, SPEC).item()


def test_a_student_like_its_teacher_has_nothing_to_learn() -> None:
    teacher = random_maps(0)
    student = copy_of(teacher)
    leaves = [value.requires_grad_() for task in student for value in task.values()]
    loss = distillation_loss(student, teacher, SPEC)
    assert loss.item() == pytest.approx(0.0, abs=1e-5)
    loss.backward()
    assert all(float(leaf.grad.abs().max()) < 1e-6 for leaf in leaves)  # type: ignore[union-attr]


def test_it_is_the_plain_formula() -> None:
    """Cell by cell, with nothing shared but the maps."""
    student, teacher = random_maps(1, batch=1), random_maps(2, batch=1)
    total = 0.0
    for own, wanted in zip(student, teacher, strict=True):
        p, q = own["hm"][0].double().sigmoid(), wanted["hm"][0].double().sigmoid()
        positives = q.amax(0) > SPEC.decode.score_threshold
        assert 0 < int(positives.sum()) < MOST_POSITIVES
        rest = sorted((-p.amax(0)[~positives]).tolist())[:MOST_POSITIVES]
        chosen = positives | (-p.amax(0) <= rest[-1]) & ~positives
        kl = q * (q / p).log() + (1 - q) * ((1 - q) / (1 - p)).log()
        names = [name for name, _ in SPEC.regression_heads]
        gap = torch.cat([(own[n] - wanted[n])[0] for n in names]).abs().double()  # [codes, H, W]
        weights = torch.tensor(SPEC.loss.code_weights).double()[:, None, None]
        boxes = (gap * weights).sum(0)[positives].sum()
        heat = kl.sum(0)[chosen].sum()
        total += float((heat + SPEC.loss.weight * boxes) / positives.sum())
    assert distance(student, teacher) == pytest.approx(total, rel=1e-4)


def test_regressions_count_where_the_teacher_sees_an_object_and_nowhere_else() -> None:
    teacher = random_maps(3, batch=1)
    student = copy_of(teacher)
    seen = teacher[0]["hm"][0].sigmoid().amax(0) > SPEC.decode.score_threshold
    student[0]["reg"][0][:, ~seen] += 5.0
    assert distance(student, teacher) == pytest.approx(0.0, abs=1e-5)
    student[0]["reg"][0][:, seen] += 1.0
    # Two codes of weight 1, a metre apart each, at every positive.
    assert distance(student, teacher) == pytest.approx(2 * SPEC.loss.weight, rel=1e-4)


def test_a_false_alarm_costs_although_the_teacher_sees_nothing() -> None:
    teacher = random_maps(4, empty=True)
    student = copy_of(teacher)
    assert distance(student, teacher) == pytest.approx(0.0, abs=1e-5)
    student[0]["hm"][0, 0, 5, 5] = 3.0
    assert distance(student, teacher) > 1.0


def test_without_positives_every_map_still_has_a_gradient() -> None:
    """Else a process of many would wait for parameters that take no part."""
    teacher, student = random_maps(5, empty=True), random_maps(6, empty=True)
    leaves = [value.requires_grad_() for task in student for value in task.values()]
    distillation_loss(student, teacher, SPEC).backward()
    assert all(leaf.grad is not None for leaf in leaves)
