"""What stands around the graphs of neck and head, on any device: a recording is played by hand."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from small_detector import make_detector, write_config
from voxelquant.detection import dense_graph
from voxelquant.detection.dense_graph import DenseGraph, can_be_graphed
from voxelquant.detection.detector import CenterPoint


class PlayedByHand:
    """Reads and writes fixed memory, as recorded graphs do, by running the module."""

    def __init__(self, module: nn.Module, bev: Tensor) -> None:
        self.module, self.leaf = module, bev
        self.parameters = tuple(module.parameters())
        self.bev = bev.detach()
        self.maps = module(bev).detach()
        self.grad_maps = torch.zeros_like(self.maps)
        self.grads = tuple(torch.empty_like(leaf) for leaf in (bev, *self.parameters))
        self.played = 0
        self.forward = self.backward = self  # either is replayed

    def replay(self) -> None:
        self.played += 1
        with torch.enable_grad():
            if self.played % 2:
                self.result = self.module(self.leaf)
                self.maps.copy_(self.result.detach())
                return
            leaves = (self.leaf, *self.parameters)
            grads = torch.autograd.grad(self.result, leaves, self.grad_maps)
        for kept, grad in zip(self.grads, grads, strict=True):
            kept.copy_(grad)


@pytest.fixture
def model(tmp_path_factory: pytest.TempPathFactory) -> CenterPoint:
    return make_detector(write_config(tmp_path_factory.mktemp("dense") / "small.yaml")).train()


@pytest.fixture
def graph(model: CenterPoint, monkeypatch: pytest.MonkeyPatch) -> DenseGraph:
    monkeypatch.setattr(dense_graph, "_Recorded", PlayedByHand)
    return DenseGraph(model, 2, amp=False)


def play(graph: DenseGraph) -> Any:
    return graph._recorded


def test_steps_are_those_of_the_modules(graph: DenseGraph, model: CenterPoint) -> None:
    plain = copy.deepcopy(model)
    optimizers = [torch.optim.SGD(m.parameters(), lr=1e-3) for m in (model, plain)]
    for number in range(3):
        bev = torch.randn_like(play(graph).bev)
        inputs = [bev.clone().requires_grad_() for _ in range(2)]
        for dense, own, optimizer in zip((graph, plain.dense), inputs, optimizers, strict=True):
            optimizer.zero_grad(set_to_none=True)
            maps = [value for task in dense(own) for value in task.values()]
            torch.stack([value.square().mean() for value in maps]).sum().backward()
            optimizer.step()
        assert play(graph).played == 2 * (number + 1)
        torch.testing.assert_close(inputs[0].grad, inputs[1].grad, rtol=1e-3, atol=1e-6)
    for (name, own_value), value in zip(
        model.state_dict().items(), plain.state_dict().values(), strict=True
    ):
        torch.testing.assert_close(own_value, value, rtol=1e-3, atol=1e-5, msg=name)


def test_gradients_are_taken_without_a_copy(graph: DenseGraph, model: CenterPoint) -> None:
    bev = torch.randn_like(play(graph).bev).requires_grad_()
    graph(bev)[0]["hm"].sum().backward()
    recorded = play(graph)
    for parameter, grad in zip(recorded.parameters, recorded.grads[1:], strict=True):
        assert parameter.grad is not None
        assert parameter.grad.data_ptr() == grad.data_ptr()


def test_what_does_not_fit_runs_the_modules(graph: DenseGraph, model: CenterPoint) -> None:
    bev = torch.randn_like(play(graph).bev)
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
