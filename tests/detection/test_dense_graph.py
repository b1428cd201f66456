"""What stands around the graphs of neck and head, on any device: a recording is played by hand."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from small_detector import make_detector, write_config
from voxelquant.data.synthetic import generate_frames
from voxelquant.detection import dense_graph
from voxelquant.detection.dense_graph import (
    DenseGraph,
    GraphedDetector,
    LossGraph,
    _has_hooks,
    can_be_graphed,
)
from voxelquant.detection.detector import CenterPoint
from voxelquant.detection.head_spec import HeadSpec
from voxelquant.detection.losses import centerpoint_loss
from voxelquant.detection.targets import TaskTargets, assign_targets_batch
from voxelquant.recipes.train import DetectorTrainee


class PlayedByHand:
    """Reads and writes fixed memory, as recorded graphs do, by running the module."""

    def __init__(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self.module, self.leaf = module, inputs[0]
        self.parameters = tuple(module.parameters())
        self.inputs = tuple(x.detach() for x in inputs)
        self.out = module(*inputs).detach()
        self.grad_out = torch.zeros_like(self.out)
        self.grads = tuple(torch.empty_like(leaf) for leaf in (self.leaf, *self.parameters))
        self.played = 0
        self.forward = self.backward = self  # either is replayed

    def replay(self) -> None:
        self.played += 1
        with torch.enable_grad():
            if self.played % 2:
                self.result = self.module(self.leaf, *self.inputs[1:])
                self.out.copy_(self.result.detach())
                return
            leaves = (self.leaf, *self.parameters)
            grads = torch.autograd.grad(self.result, leaves, self.grad_out)
        for kept, grad in zip(self.grads, grads, strict=True):
            kept.copy_(grad)


@pytest.fixture
def model(tmp_path_factory: pytest.TempPathFactory) -> CenterPoint:
    return make_detector(write_config(tmp_path_factory.mktemp("dense") / "small.yaml")).train()


@pytest.fixture
def graph(model: CenterPoint, monkeypatch: pytest.MonkeyPatch) -> DenseGraph:
    """In float64: joined branches sum in another order, and no ReLU takes another side for it."""

    def example_map(
        model: CenterPoint, batch_size: int, original=dense_graph._example_map
    ) -> Tensor:
        example: Tensor = original(model, batch_size)
        return example.detach().double().requires_grad_()

    model.neck.double()
    model.bbox_head.double()
    monkeypatch.setattr(dense_graph, "_example_map", example_map)
    monkeypatch.setattr(dense_graph, "Recorded", PlayedByHand)
    return DenseGraph(model, 2, amp=False)


@pytest.fixture
def loss_graph(model: CenterPoint, monkeypatch: pytest.MonkeyPatch) -> LossGraph:
    monkeypatch.setattr(dense_graph, "Recorded", PlayedByHand)
    return LossGraph(model, 2, amp=False)


def play(graph: DenseGraph | LossGraph) -> Any:
    return graph._recorded


def bev_like(graph: DenseGraph | LossGraph) -> Tensor:
    return torch.randn_like(play(graph).inputs[0])


def random_targets(spec: HeadSpec, seed: int) -> list[TaskTargets]:
    """Of two frames."""
    generator = torch.Generator().manual_seed(seed)
    boxes = torch.rand((2, 12, 9), generator=generator) + 0.5
    boxes[..., :2] = boxes[..., :2] * 40 - 40
    labels = torch.randint(len(spec.class_names), (2, 12), generator=generator)
    return assign_targets_batch(list(boxes), list(labels), spec)


def assert_same_state(own: nn.Module, wanted: nn.Module) -> None:
    for (name, value), expected in zip(
        own.state_dict().items(), wanted.state_dict().values(), strict=True
    ):
        torch.testing.assert_close(value, expected, rtol=1e-3, atol=1e-5, msg=name)


def test_steps_are_those_of_the_modules(graph: DenseGraph, model: CenterPoint) -> None:
    plain = copy.deepcopy(model)
    optimizers = [torch.optim.SGD(m.parameters(), lr=1e-3) for m in (model, plain)]
    for number in range(3):
        bev = bev_like(graph)
        inputs = [bev.clone().requires_grad_() for _ in range(2)]
        for dense, own, optimizer in zip((graph, plain.dense), inputs, optimizers, strict=True):
            optimizer.zero_grad(set_to_none=True)
            maps = [value for task in dense(own) for value in task.values()]
            torch.stack([value.square().mean() for value in maps]).sum().backward()
            optimizer.step()
        assert play(graph).played == 2 * (number + 1)
        torch.testing.assert_close(inputs[0].grad, inputs[1].grad, rtol=1e-3, atol=1e-6)
    assert_same_state(model, plain)


def test_steps_with_the_loss_are_those_of_the_modules(
    loss_graph: LossGraph, model: CenterPoint
) -> None:
    plain, spec = copy.deepcopy(model), model.config.head_spec
    optimizers = [torch.optim.SGD(m.parameters(), lr=1e-3) for m in (model, plain)]
    for number in range(3):
        bev, targets = bev_like(loss_graph), random_targets(spec, number)
        inputs = [bev.clone().requires_grad_() for _ in range(2)]
        for optimizer in optimizers:
            optimizer.zero_grad(set_to_none=True)
        own = loss_graph(inputs[0], targets)
        wanted = centerpoint_loss(plain.dense(inputs[1]), targets, spec).total
        torch.testing.assert_close(own, wanted, rtol=1e-4, atol=0)
        for loss, optimizer in zip((own, wanted), optimizers, strict=True):
            (2 * loss).backward()  # a gradient of the loss other than 1
            optimizer.step()
        assert play(loss_graph).played == 2 * (number + 1)
        torch.testing.assert_close(inputs[0].grad, inputs[1].grad, rtol=1e-3, atol=1e-6)
    assert_same_state(model, plain)


def test_recording_a_loss_leaves_the_detector_as_it_was(
    model: CenterPoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = copy.deepcopy(model)
    monkeypatch.setattr(dense_graph, "Recorded", PlayedByHand)
    LossGraph(model, 2, amp=False)
    for (name, value), expected in zip(
        model.state_dict().items(), before.state_dict().values(), strict=True
    ):
        assert torch.equal(value, expected), name


def test_a_loss_that_does_not_fit_comes_from_the_modules(
    loss_graph: LossGraph, model: CenterPoint
) -> None:
    plain, spec = copy.deepcopy(model), model.config.head_spec
    bev = bev_like(loss_graph)
    targets = random_targets(spec, 3)
    own = loss_graph(bev, targets)  # nothing to learn
    wanted = centerpoint_loss(plain.dense(bev), targets, spec).total
    assert play(loss_graph).played == 0
    assert torch.equal(own, wanted)


def test_a_trainee_takes_the_loss_of_the_graph(loss_graph: LossGraph, model: CenterPoint) -> None:
    plain = copy.deepcopy(model)
    frames = generate_frames(5, range(2), key_frames=1)
    losses = []
    for own, predict in ((model, GraphedDetector(model, loss_graph)), (plain, plain)):
        trainee = DetectorTrainee(own, own.config)
        batch = trainee.prepare(frames)
        losses.append(trainee.loss(predict, batch))
    assert play(loss_graph).played == 1
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-4, atol=0)


def test_gradients_are_taken_without_a_copy(graph: DenseGraph, model: CenterPoint) -> None:
    bev = bev_like(graph).requires_grad_()
    graph(bev)[0]["hm"].sum().backward()
    recorded = play(graph)
    for parameter, grad in zip(recorded.parameters, recorded.grads[1:], strict=True):
        assert parameter.grad is not None
        assert parameter.grad.data_ptr() == grad.data_ptr()


def test_what_does_not_fit_runs_the_modules(graph: DenseGraph, model: CenterPoint) -> None:
    bev = bev_like(graph)
    graph(bev[:1].clone().requires_grad_())  # a smaller batch
    graph(bev)  # nothing to learn
    with torch.no_grad():
        graph(bev.clone().requires_grad_())
    model.eval()
    graph(bev.clone().requires_grad_())
    assert play(graph).played == 0
    model.train()
    graph(bev.clone().requires_grad_())
    assert play(graph).played == 1


def test_on_a_cpu_nothing_is_graphed(model: CenterPoint) -> None:
    assert not can_be_graphed(model)


def test_hooks_are_seen_whatever_they_wait_for(model: CenterPoint) -> None:
    weight = next(model.neck.parameters())
    assert not _has_hooks(model.neck)
    assert not _has_hooks(weight)
    for holder, register in (
        (model.neck, model.neck.register_forward_hook),
        (model.neck, model.neck.register_full_backward_hook),
        (weight, weight.register_hook),
        (weight, weight.register_post_accumulate_grad_hook),
    ):
        handle = register(lambda *_: None)  # type: ignore[operator]
        assert _has_hooks(holder)
        handle.remove()
        assert not _has_hooks(holder)
