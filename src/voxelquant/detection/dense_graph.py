"""Neck and head of a detector in training as two CUDA graphs, forward and backward.

Their few thousand small launches take a host longer than the computation takes a GPU. Shapes are
those of the batch alone, so all of it is recorded once and launched as a whole ever after.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import cast

import torch
from torch import Tensor, nn

from voxelquant.detection.detector import CenterPoint
from voxelquant.detection.head import CenterHead, TaskHead
from voxelquant.detection.joined_branches import can_join, join_maps
from voxelquant.detection.neck import RPN

Maps = list[dict[str, Tensor]]
# What a graph may hold: modules whose work depends on shapes and parameters, and on no value.
_RECORDED: set[type[nn.Module]] = {RPN, CenterHead, TaskHead, nn.Sequential, nn.ModuleList}
_RECORDED |= {nn.Conv2d, nn.ConvTranspose2d, nn.BatchNorm2d, nn.ReLU, nn.ZeroPad2d}


class DenseGraph:
    """Neck and head of one detector, for BEV maps of one shape, on a CUDA device.

    Called with such a map while the detector trains, it replays the graphs; with any other, or
    where no gradient is wanted, it runs the modules. Values, gradients and running statistics are
    those of the modules. Parameters must stay the same tensors; a gradient is to be taken and set
    to None before the next call, since all calls write it into the same memory.

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
        autocast = torch.autocast("cuda", dtype=torch.bfloat16, enabled=amp, cache_enabled=False)
        with autocast:
            example = _example_map(model, batch_size)
            self._shape, self._dtype = example.shape, example.dtype
            with _kept_buffers(self._joined):
                graphed = torch.cuda.make_graphed_callables(self._joined, (example,))
        self._replay = cast("Callable[[Tensor], Tensor]", graphed)

    def __call__(self, bev: Tensor) -> Maps:
        """`[b, c, h, w]` → per task the raw maps, as the head returns them."""
        fits = bev.shape == self._shape and bev.dtype == self._dtype and bev.requires_grad
        if not (fits and self.model.training and torch.is_grad_enabled()):
            return self.model.dense(bev)
        return self._joined.part(self._replay(bev))


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
