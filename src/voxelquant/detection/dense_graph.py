"""Neck and head of a detector in training as CUDA graphs, with its loss or without.

Shapes are those of the batch alone, whatever the sparse backbone makes of it.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from voxelquant.detection.detector import CenterPoint
from voxelquant.detection.head import CenterHead, TaskHead
from voxelquant.detection.head_spec import HeadSpec
from voxelquant.detection.joined_branches import can_join, join_maps
from voxelquant.detection.losses import centerpoint_loss
from voxelquant.detection.neck import RPN
from voxelquant.detection.recorded import Recorded, replay
from voxelquant.detection.targets import (
    TaskTargets,
    assign_targets_batch,
    pack_targets,
    unpack_targets,
)
from voxelquant.sparse import SparseTensor

Maps = list[dict[str, Tensor]]
# What a graph may hold: modules whose work depends on shapes and parameters, and on no value.
_RECORDED: set[type[nn.Module]] = {RPN, CenterHead, TaskHead, nn.Sequential, nn.ModuleList}
_HOOKS = (
    *("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks"),
    "_post_accumulate_grad_hooks",
)
_RECORDED |= {nn.Conv2d, nn.ConvTranspose2d, nn.BatchNorm2d, nn.ReLU, nn.ZeroPad2d}


class DenseGraph:
    """Neck and head of one detector, for BEV maps of one shape, on a CUDA device.

    Called with such a map while the detector trains, it replays the graphs; with any other, or
    where no gradient is wanted, it runs the modules. Values, gradients and running statistics are
    those of the modules; what `Recorded` says of parameters and gradients holds.

    Nothing else may use the device while this records: another thread's call would be recorded too,
    or break it.

    Args:
        model: in the mode in which it trains; its parameters and running statistics stay.
        batch_size: clouds in a batch.
        amp: record bfloat16 autocast.
        join_branches: compute the branches of a task as one, where they are alike.
    """

    def __init__(
        self, model: CenterPoint, batch_size: int, *, amp: bool, join_branches: bool = True
    ) -> None:
        self.model = model
        self._joined = JoinedMaps(model, join_branches=join_branches)
        self._recorded = _record(self._joined, model, batch_size, amp=amp)

    def __call__(self, bev: Tensor) -> Maps:
        """`[b, c, h, w]` → per task the raw maps, as the head returns them."""
        if not _replays(self._recorded, bev, self.model):
            return self.model.dense(bev)
        return self._joined.part(replay(self._recorded, bev))


class LossGraph:
    """Neck, head and loss of one detector, as `DenseGraph`: a step then launches no loss either.

    Args:
        model: in the mode in which it trains; its parameters and running statistics stay.
        batch_size: clouds in a batch.
        amp: record bfloat16 autocast of neck and head.
        join_branches: compute the branches of a task as one, where they are alike.
    """

    def __init__(
        self, model: CenterPoint, batch_size: int, *, amp: bool, join_branches: bool = True
    ) -> None:
        self.model = model
        module = _LossOfMap(JoinedMaps(model, join_branches=join_branches), model.config.head_spec)
        device = next(model.parameters()).device
        boxes = [torch.zeros((0, 9), device=device)] * batch_size
        labels = [torch.zeros(0, dtype=torch.int64, device=device)] * batch_size
        empty = pack_targets(assign_targets_batch(boxes, labels, module.spec))
        self._recorded = _record(module, model, batch_size, amp=amp, more=empty)

    def __call__(self, bev: Tensor, targets: Sequence[TaskTargets]) -> Tensor:
        """Total loss [] of BEV maps `[b, c, h, w]`; the next call overwrites it."""
        if not _replays(self._recorded, bev, self.model):
            return _loss(self.model.dense(bev), targets, self.model.config.head_spec)
        return replay(self._recorded, bev, *pack_targets(targets))


@dataclass(frozen=True)
class GraphedDetector:
    """A detector with a graph that goes from its BEV map to its loss."""

    detector: CenterPoint
    graph: LossGraph

    def __call__(self, x: SparseTensor) -> Maps:
        """Raw maps of each task, without the graph."""
        maps: Maps = self.detector(x)
        return maps

    def loss(self, x: SparseTensor, targets: Sequence[TaskTargets]) -> Tensor:
        """Total loss [] of a batch."""
        return self.graph(self.detector.backbone(x), targets)


class _LossOfMap(nn.Module):
    """Neck, head and loss: of a BEV map and packed targets."""

    def __init__(self, joined: "JoinedMaps", spec: HeadSpec) -> None:
        super().__init__()
        self.joined, self.spec = joined, spec

    def forward(self, bev: Tensor, *packed: Tensor) -> Tensor:
        maps = self.joined.part(self.joined(bev))
        return _loss(maps, unpack_targets(packed, self.spec), self.spec)


def _loss(maps: Maps, targets: Sequence[TaskTargets], spec: HeadSpec) -> Tensor:
    """In float32, whatever the maps were computed in."""
    with torch.autocast(targets[0].hm.device.type, enabled=False):
        return centerpoint_loss(maps, targets, spec).total


def _record(
    module: nn.Module,
    model: CenterPoint,
    batch_size: int,
    *,
    amp: bool,
    more: tuple[Tensor, ...] = (),
) -> Recorded:
    """Record what a module does with a BEV map, and with `more` beside it."""
    # Casts of weights that a cache kept would be missing from the graph.
    with torch.autocast("cuda", dtype=torch.bfloat16, enabled=amp, cache_enabled=False):
        example = _example_map(model, batch_size)
        with _kept_buffers(module):
            return Recorded(module, (example, *more))


def _replays(recorded: Recorded, bev: Tensor, model: CenterPoint) -> bool:
    """Whether a step with this map is what was recorded."""
    example = recorded.inputs[0]
    fits = bev.shape == example.shape and bev.dtype == example.dtype
    return fits and bev.requires_grad and torch.is_grad_enabled() and model.training


def can_be_graphed(model: CenterPoint) -> bool:
    """Whether neck and head do the same work in every step: on a GPU, plain, without hooks."""
    modules = [*model.neck.modules(), *model.bbox_head.modules()]
    plain = all(type(module) in _RECORDED and not _has_hooks(module) for module in modules)
    parameters = [*model.neck.parameters(), *model.bbox_head.parameters()]
    return plain and all(p.is_cuda and not _has_hooks(p) for p in parameters)


def _has_hooks(of: nn.Module | Tensor) -> bool:
    """Whether something is called that a graph would leave out."""
    return any(bool(getattr(of, name, None)) for name in _HOOKS)


class JoinedMaps(nn.Module):
    """Neck and head with all maps in one tensor: one to hand over, and one gradient to take back.

    A module beside the detector, so that what is recorded changes nothing in it.

    Args:
        model: in the mode in which it trains.
        join_branches: compute the branches of a task as one, where they are alike.
    """

    def __init__(self, model: CenterPoint, *, join_branches: bool = True) -> None:
        super().__init__()
        self.neck, self.bbox_head = model.neck, model.bbox_head
        self._joins = join_branches and can_join(model.bbox_head)
        self._channels = [_channels_of(task) for task in model.bbox_head.tasks]

    def forward(self, bev: Tensor) -> Tensor:
        """`[b, c, h, w]` → `[b, channels of all maps, h, w]`."""
        shared = self.bbox_head.shared_conv(self.neck(bev))
        maps: list[Tensor] = []
        for task in self.bbox_head.tasks:
            assert isinstance(task, TaskHead)
            maps += [join_maps(task, shared)] if self._joins else task(shared).values()
        return torch.cat(maps, dim=1)

    def part(self, joined: Tensor) -> Maps:
        """The maps of each task, views of what `forward` returns."""
        sizes = [size for task in self._channels for size in task.values()]
        parts = iter(joined.split(sizes, dim=1))
        return [{name: next(parts) for name in task} for task in self._channels]


def _channels_of(task: nn.Module) -> dict[str, int]:
    """Channels of each map."""
    lasts = {name: branch[-1] for name, branch in task.named_children()}  # type: ignore[index]
    return {name: cast(nn.Conv2d, last).out_channels for name, last in lasts.items()}


def _example_map(model: CenterPoint, batch_size: int) -> Tensor:
    """A BEV map as the backbone makes them, of clouds of a single point."""
    low, high = torch.tensor(model.config.point_range).view(2, 3)
    point = torch.zeros(1, model.config.n_point_columns)
    point[0, :3] = (low + high) / 2
    device = next(model.parameters()).device
    modes = {module: module.training for module in model.backbone.modules()}
    model.backbone.eval()  # a single voxel has no statistics
    with torch.no_grad():
        bev = model.backbone(model.read_clouds([point.to(device)] * batch_size, train=True))
    for module, training in modes.items():
        module.training = training
    return torch.zeros_like(bev).requires_grad_()


@contextmanager
def _kept_buffers(module: nn.Module) -> Iterator[None]:
    """Buffers are afterwards what they were, in the same memory: recording runs forward."""
    kept = [(buffer, buffer.clone()) for buffer in module.buffers()]
    yield
    with torch.no_grad():
        for buffer, value in kept:
            buffer.copy_(value)
