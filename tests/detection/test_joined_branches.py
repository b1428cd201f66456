"""Branches computed as one give what they give one by one: maps, gradients, statistics."""

import copy

import pytest
import torch
from torch import Tensor, nn

from voxelquant.detection.config import load_config
from voxelquant.detection.dense_graph import JoinedMaps, _example_map, _kept_buffers
from voxelquant.detection.detector import CenterPoint
from voxelquant.detection.joined_branches import can_join

Maps = list[dict[str, Tensor]]


@pytest.fixture
def model() -> CenterPoint:
    """A detector with the true tasks and branches, narrow, in float64 so that rounding is small."""
    values = load_config("centerpoint_tiny").model_dump()
    values["neck"] |= {"ds_num_filters": (8, 8), "us_num_filters": (8, 8)}
    values["head"] |= {"share_conv_channel": 8, "head_conv": 6}
    torch.manual_seed(2)
    model = CenterPoint(type(load_config("centerpoint_tiny")).model_validate(values)).double()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.5, 0.5)
    return model.train()


def loss_of(maps: Maps) -> Tensor:
    """Weighs every cell of every map differently."""
    parts = [
        (value * torch.linspace(-1, 1, value.numel(), dtype=value.dtype).view(value.shape)).sum()
        for task in maps
        for value in task.values()
    ]
    return torch.stack(parts).square().sum()


@pytest.mark.parametrize("join_branches", [True, False])
def test_maps_gradients_and_statistics_are_the_same(
    model: CenterPoint, join_branches: bool
) -> None:
    plain = copy.deepcopy(model)
    joined = JoinedMaps(model, join_branches=join_branches)
    assert can_join(model.bbox_head)
    inputs = [torch.randn(2, model.config.bev_channels, 12, 16).double() for _ in range(3)]
    for bev in inputs:
        own_input, other_input = (bev.clone().requires_grad_() for _ in range(2))
        own, other = joined.part(joined(own_input)), plain.dense(other_input)
        for mine, wanted in zip(own, other, strict=True):
            assert list(mine) == list(wanted)
            for name in mine:
                torch.testing.assert_close(mine[name], wanted[name])
        model.zero_grad()
        plain.zero_grad()
        loss_of(own).backward()
        loss_of(other).backward()
        torch.testing.assert_close(own_input.grad, other_input.grad)
        for (name, ours), theirs in zip(model.named_parameters(), plain.parameters(), strict=True):
            if not name.startswith("backbone"):
                scale = float(theirs.grad.abs().max())  # type: ignore[union-attr]
                torch.testing.assert_close(
                    ours.grad, theirs.grad, rtol=1e-6, atol=1e-7 * scale + 1e-6, msg=name
                )
    for (name, ours), theirs in zip(model.named_buffers(), plain.buffers(), strict=True):
        torch.testing.assert_close(ours, theirs, msg=name)


def test_what_is_not_alike_is_not_joined(model: CenterPoint) -> None:
    head = model.bbox_head
    norm = head.tasks[0].hm[1]  # type: ignore[union-attr, index]
    norm.eval()
    assert not can_join(head)
    norm.train()
    norm.eps = 1e-3
    assert not can_join(head)
    norm.eps = head.tasks[0].reg[1].eps  # type: ignore[union-attr, index]
    assert can_join(head)
    last = head.tasks[0].hm[3]  # type: ignore[union-attr, index]
    last.padding = last.dilation = (2, 2)  # the same size of map by another sum
    assert not can_join(head)
    last.padding = last.dilation = (1, 1)
    head.tasks[0].hm.append(nn.ReLU())  # type: ignore[union-attr, operator]
    assert not can_join(head)


def test_the_example_map_is_like_those_of_the_backbone(model: CenterPoint) -> None:
    model.float()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    example = _example_map(model, 2)
    cloud = torch.rand(500, 5) * 4
    bev = model.backbone(model.read_clouds([cloud, cloud]))
    assert (example.shape, example.dtype) == (bev.shape, bev.dtype)
    assert example.requires_grad
    assert all(module.training for module in model.modules())
    with _kept_buffers(model.neck):
        model.neck(example)
    for name, value in model.state_dict().items():
        if not name.startswith("backbone"):
            assert torch.equal(value, before[name]), name
