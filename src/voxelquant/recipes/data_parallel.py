"""One model on many processes: gradients averaged, batch norms in agreement."""

from __future__ import annotations

import inspect
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from voxelquant.recipes.distributed import World

_BATCHNORMS = (nn.BatchNorm1d, nn.BatchNorm2d)
NO_SYNC_ON_CPU = (
    "note: batch norms see the batch of their own process: torch synchronises them on GPUs only; "
    "their running statistics are averaged"
)


def synchronise_batchnorms(model: nn.Module, world: World) -> bool:
    """Let batch norms see the frames of all processes, where torch can: on GPUs; in place.

    Call it before an optimiser is built.

    Returns:
        Whether they do; True for a process alone.
    """
    if world.shard.world_size == 1:
        return True
    if not world.device.startswith("cuda"):
        return False
    nn.SyncBatchNorm.convert_sync_batchnorm(model)
    return True


def replicate(model: nn.Module, world: World) -> nn.Module:
    """The model with gradients averaged over processes; itself for a process alone."""
    if world.shard.world_size == 1:
        return model
    # Buffers are ranges and running statistics, which have rules of their own for agreeing; DDP
    # would copy those of rank 0 over the others' before every forward. torch 2.13 renamed the flag.
    known = inspect.signature(DistributedDataParallel).parameters
    flag = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
    options: dict[str, Any] = {flag: False}
    return DistributedDataParallel(model, **options)


def average_batchnorm_statistics(model: nn.Module, world: World) -> None:
    """Mean over processes of running statistics that each took of its own frames, in place."""
    if world.shard.world_size == 1:
        return
    own = [
        cast(Tensor, statistic)
        for module in model.modules()
        if isinstance(module, _BATCHNORMS) and module.training and module.track_running_stats
        for statistic in (module.running_mean, module.running_var)
    ]
    if not own:
        return
    means = world.mean(torch.cat([statistic.reshape(-1) for statistic in own]))
    parts = means.split([statistic.numel() for statistic in own])
    for statistic, mean in zip(own, parts, strict=True):
        statistic.copy_(mean.view_as(statistic))
