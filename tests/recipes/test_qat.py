"""Quantization-aware training: everything trains, and what is to stay stays."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from small_detector import make_detector, write_config
from voxelquant.data.frame import Frame
from voxelquant.data.sampling import Shard
from voxelquant.detection.config import DetectorConfig, load_config
from voxelquant.detection.detector import CenterPoint
from voxelquant.errors import BadInputError
from voxelquant.quant import calibrate, quantize
from voxelquant.quant.range_trainer import RangeTrainer
from voxelquant.quant.recipe import RangeTraining
from voxelquant.recipes.distributed import World
from voxelquant.recipes.qat_trainee import QatOptions, QatTrainee
from voxelquant.recipes.schedule import OneCycle
from voxelquant.recipes.training_loop import make_step, set_cycle
from voxelquant.sparse import SparseConvBase

ALONE = World(Shard(), "cpu")
Build = Callable[..., QatTrainee]


def frame_of(seed: int, points: int = 1500) -> Frame:
    """Random points, and a box for every task."""
    generator = torch.Generator().manual_seed(seed)
    spread = torch.tensor([40.0, 40.0, 2.0, 0.0, 0.0])
    cloud = (torch.rand(points, 5, generator=generator) * 2 - 1) * spread
    cloud[:, 3] = torch.randint(256, (points,), generator=generator).float()
    boxes = torch.tensor([2.0, 4.5, 1.6, 1.0, 0.5, 0.3]).expand(6, 6)
    centres = (torch.rand(6, 3, generator=generator) * 2 - 1) * spread[:3]
    return Frame(
        token=str(seed),
        points=cloud,
        boxes_det3d=torch.cat([centres, boxes], dim=1),
        labels=torch.tensor([0, 1, 3, 5, 6, 8]),
        num_lidar_pts=torch.full((6,), 5),
        ref_to_ego=torch.eye(4, dtype=torch.float64),
        ego_to_global=torch.eye(4, dtype=torch.float64),
        timestamp=0.0,
    )


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_config(tmp_path_factory.mktemp("qat") / "small.yaml")


@pytest.fixture(scope="module")
def calibrated(config: Path) -> CenterPoint:
    """Fake-quant detector with the published precisions; not to be changed."""
    float_model = make_detector(config).eval()
    model = quantize(float_model, "reference")
    calibrate(model, [float_model.read_clouds([frame_of(seed).points]) for seed in range(2)])
    return model  # type: ignore[return-value]


@pytest.fixture
def build(config: Path, calibrated: CenterPoint) -> Build:
    """A trainee on a copy of the calibrated detector."""
    import copy

    def make(ranges: RangeTraining | None = None, **options: object) -> QatTrainee:
        settings: DetectorConfig = load_config(config)
        model = copy.deepcopy(calibrated)
        trainer = RangeTrainer(model, ranges or RangeTraining(), 10)
        return QatTrainee(model, settings, trainer, QatOptions(**options))  # type: ignore[arg-type]

    return make


def step(trainee: QatTrainee, number: int = 0, frames: list[Frame] | None = None) -> Tensor:
    # Three boxes a task: the signs of an L1 gradient do not cancel.
    frames = frames or [frame_of(seed) for seed in (10, 11, 12)]
    return make_step(trainee, trainee.model, frames, number, ALONE)


@pytest.mark.parametrize("amp", [False, True])
def test_every_weight_is_in_the_optimiser_has_a_gradient_and_moves(build: Build, amp: bool) -> None:
    trainee = build(amp=amp)
    named = dict(trainee.model.named_parameters())
    optimised = {id(p) for group in trainee.optimizer.param_groups for p in group["params"]}
    before = {name: parameter.detach().clone() for name, parameter in named.items()}
    step(trainee)
    for name, parameter in named.items():
        assert id(parameter) in optimised, name
        assert parameter.grad is not None, name
        assert not torch.equal(parameter, before[name]), name
    convs = {n: m for n, m in trainee.model.named_modules() if isinstance(m, SparseConvBase)}
    assert len(convs) == 21  # the fp16 ones, conv_input and the first block, among them
    for name, conv in convs.items():
        assert f"{name}.weight" in named
        assert conv.bias is not None, name  # folding gave one to those that had none
        assert float(conv.weight.grad.abs().max()) > 0.0, name  # type: ignore[union-attr]
        assert float(conv.bias.grad.abs().max()) > 0.0, name  # type: ignore[union-attr]


def test_neck_and_head_take_statistics_unless_they_are_frozen(build: Build) -> None:
    for frozen in (False, True):
        trainee = build(freeze_bn=frozen)
        norms = {
            name: module
            for name, module in trainee.model.named_modules()
            if isinstance(module, torch.nn.BatchNorm2d)
        }
        assert len(norms) > 10
        before = {name: norm.running_var.clone() for name, norm in norms.items()}  # type: ignore[union-attr]
        weights = {name: norm.weight.detach().clone() for name, norm in norms.items()}
        step(trainee)
        for name, norm in norms.items():
            assert torch.equal(norm.running_var, before[name]) == frozen, name  # type: ignore[arg-type]
            assert not torch.equal(norm.weight, weights[name]), name


def test_learned_ranges_train_apart(build: Build) -> None:
    ranges = RangeTraining(
        activation_ranges="learned", weight_ranges="learned", range_lr_factor=7.0
    )
    trainee = build(ranges)
    weights, learned = trainee.optimizer.param_groups
    assert learned["weight_decay"] == 0.0
    assert weights["weight_decay"] == 0.01
    assert {id(p) for p in learned["params"]} == {id(p) for p in trainee.ranges.learned}
    set_cycle(trainee.optimizer, OneCycle(10, 1e-4), 4)
    assert weights["lr"] == pytest.approx(1e-4)
    assert learned["lr"] == pytest.approx(7e-4)
    step(trainee)
    assert all(float(growth.detach().abs().max()) > 0.0 for growth in trainee.ranges.learned)


def test_a_student_of_the_float_model_needs_no_labels(build: Build, config: Path) -> None:
    teacher = make_detector(config).eval().requires_grad_(False)
    trainee = build(task_weight=0.0, distill=1.0, teacher=teacher)
    frames = [replace(frame_of(seed), boxes_det3d=None, labels=None) for seed in (10, 11)]
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    losses = [float(step(trainee, number, frames)) for number in range(8)]
    assert losses[-1] < losses[0]
    for name, value in teacher.state_dict().items():
        assert torch.equal(value, before[name]), name
    with pytest.raises(BadInputError, match="frame 10 has no annotations"):
        step(build(), frames=frames)


def test_losses_are_weighted(build: Build, config: Path) -> None:
    teacher = make_detector(config).eval().requires_grad_(False)
    task = float(step(build()))
    distance = float(step(build(task_weight=0.0, distill=1.0, teacher=teacher)))
    both = float(step(build(task_weight=0.5, distill=3.0, teacher=teacher)))
    assert both == pytest.approx(0.5 * task + 3.0 * distance, rel=1e-5)


def test_a_gradient_that_is_not_finite_stops_the_training(build: Build) -> None:
    trainee = build()
    with torch.no_grad():
        trainee.detector.bbox_head.shared_conv[0].weight[0] = float("nan")  # type: ignore[index]
    with pytest.raises(BadInputError, match="got a gradient norm of nan"):
        step(trainee)


def test_gradients_are_clipped(build: Build) -> None:
    trainee = build()
    trainee.schedule = trainee.schedule.model_copy(update={"grad_clip_norm": 1e-3})
    step(trainee)
    norms = [p.grad.norm() for p in trainee.model.parameters() if p.grad is not None]
    assert float(torch.stack(norms).norm()) == pytest.approx(1e-3, rel=1e-3)
