"""Neck and head of a detector in training as two CUDA graphs, forward and backward.

Their few thousand small launches take a host longer than the computation takes a GPU. Shapes are
those of the batch alone, so all of it is recorded once and launched as a whole ever after.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from voxelquant.detection.detector import CenterPoint
from voxelquant.detection.head import CenterHead, TaskHead
from voxelquant.detection.joined_branches import can_join, join_maps
from voxelquant.detection.neck import RPN

Maps = list[dict[str, Tensor]]
_WARM_UP_CALLS = 3
# What a graph may hold: modules whose work depends on shapes and parameters, and on no value.
_RECORDED: set[type[nn.Module]] = {RPN, CenterHead, TaskHead, nn.Sequential, nn.ModuleList}
_RECORDED |= {nn.Conv2d, nn.ConvTranspose2d, nn.BatchNorm2d, nn.ReLU, nn.ZeroPad2d}


class DenseGraph:
    """Neck and head of one detector, for BEV maps of one shape, on a CUDA device.

    Called with such a map while the detector trains, it replays the graphs; with any other, or
    where no gradient is wanted, it runs the modules. Values, gradients and running statistics are
    those of the modules. Parameters must stay the same tensors; a gradient is to be taken and set
    to None before the next call, since all calls write it into the same memory.

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
        # Casts of weights that a cache kept would be missing from the graph.
        with torch.autocast("cuda", dtype=torch.bfloat16, enabled=amp, cache_enabled=False):
            example = _example_map(model, batch_size)
            with _kept_buffers(self._joined):
                self._recorded = _Recorded(self._joined, example)

    def __call__(self, bev: Tensor) -> Maps:
        """`[b, c, h, w]` → per task the raw maps, as the head returns them."""
        recorded = self._recorded
        fits = bev.shape == recorded.bev.shape and bev.dtype == recorded.bev.dtype
        wants_gradient = bev.requires_grad and torch.is_grad_enabled()
        if not (fits and wants_gradient and self.model.training):
            return self.model.dense(bev)
        joined: Tensor = _Replay.apply(recorded, bev, *recorded.parameters)
        return self._joined.part(joined)


class _Recorded:
    """Forward and backward of a module in two graphs, with the memory that they read and write.

    What `torch.cuda.make_graphed_callables` does, which keeps the autograd graph of the recording
    besides, and with it the stream on which it would then accumulate gradients.

    Attributes:
        bev: what the forward graph reads.
        parameters: of the module, those that train.
        maps: what the forward graph writes.
        grad_maps: what the backward graph reads.
        grads: what it writes: of `bev`, then of the parameters, in their order of memory.
    """

    def __init__(self, module: nn.Module, bev: Tensor) -> None:
        self.parameters = tuple(p for p in module.parameters() if p.requires_grad)
        leaves = (bev, *self.parameters)
        self._warm_up(module, leaves)
        self.forward, self.backward = torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.forward):
            maps = module(bev)
        self.grad_maps = torch.zeros_like(maps)
        with torch.cuda.graph(self.backward, pool=self.forward.pool()):
            grads = torch.autograd.grad(maps, leaves, self.grad_maps)
            self.grads = tuple(map(_in_order_of, grads, leaves))
        self.maps, self.bev = maps.detach(), bev.detach()

    def _warm_up(self, module: nn.Module, leaves: tuple[Tensor, ...]) -> None:
        """Libraries choose algorithms and take workspaces at first calls; graphs hold neither."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(_WARM_UP_CALLS):
                maps = module(leaves[0])
                torch.autograd.grad(maps, leaves, torch.zeros_like(maps))
        torch.cuda.current_stream().wait_stream(stream)


def _in_order_of(grad: Tensor, leaf: Tensor) -> Tensor:
    """The gradient as `leaf.grad` takes it without a copy."""
    return grad if grad.stride() == leaf.stride() else torch.empty_like(leaf).copy_(grad)


class _Replay(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, recorded: _Recorded, bev: Tensor, *parameters: Tensor) -> Tensor:
        ctx.recorded = recorded
        recorded.bev.copy_(bev)
        recorded.forward.replay()
        return recorded.maps.detach()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        recorded: _Recorded = ctx.recorded
        recorded.grad_maps.copy_(grad_outputs[0])
        recorded.backward.replay()
        return None, *[grad.detach() for grad in recorded.grads]


def can_be_graphed(model: CenterPoint) -> bool:
    """Whether neck and head do the same work in every step: on a GPU, plain, without hooks."""
    modules = [*model.neck.modules(), *model.bbox_head.modules()]
    return all(
        type(module) in _RECORDED and not module._forward_hooks and not module._forward_pre_hooks
        for module in modules
    ) and all(parameter.is_cuda for parameter in model.parameters())


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
