"""One process of many: rank, device, and the few collectives that recipes need.

`torchrun -m voxelquant VERB ...` starts one process per GPU (or per core, over gloo). Without it
everything here is the identity, so recipes are written once.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from voxelquant.data.sampling import Shard
from voxelquant.errors import BadInputError
from voxelquant.recipes.device import choose_device

T = TypeVar("T")


@dataclass(frozen=True)
class World:
    """One process among those of its run.

    Attributes:
        shard: rank and number of processes.
        device: device of this process.
    """

    shard: Shard
    device: str

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and speaks to the user."""
        return self.shard.rank == 0

    def gather(self, value: T) -> list[T]:
        """Values of all processes in order of rank, in every process.

        Values travel pickled between the processes of one run; nothing comes from a file.
        """
        if self.shard.world_size == 1:
            return [value]
        gathered: list[T | None] = [None] * self.shard.world_size
        dist.all_gather_object(gathered, value)
        return gathered  # type: ignore[return-value]  # every place is filled

    def mean(self, value: Tensor) -> Tensor:
        """Mean of a tensor over all processes, the same bits in each."""
        if self.shard.world_size == 1:
            return value
        total = value.detach().clone()
        dist.all_reduce(total)
        return total / self.shard.world_size

    def largest(self, value: Tensor) -> Tensor:
        """Elementwise maximum of a tensor over all processes."""
        if self.shard.world_size == 1:
            return value
        most = value.detach().clone()
        dist.all_reduce(most, dist.ReduceOp.MAX)
        return most

    def any(self, flag: bool) -> bool:
        """Whether a flag is set in some process."""
        if self.shard.world_size == 1:
            return flag
        return bool(self.largest(torch.tensor(float(flag), device=self.device)))

    def barrier(self) -> None:
        """Wait until every process is here."""
        if self.shard.world_size > 1:
            dist.barrier()


@contextmanager
def join_world(device: str = "auto") -> Iterator[World]:
    """Join the processes that torchrun started, for the time of a run; alone without torchrun.

    Args:
        device: `auto`, `cpu`, `cuda` or `cuda:N`; of several processes on one machine each takes
            the GPU of its local rank.

    Raises:
        BadInputError: no such device, more processes than GPUs, or one GPU named for several.
    """
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    if world_size == 1:
        yield World(Shard(), choose_device(device))
        return
    chosen = _device_of_local_rank(device)
    if chosen.startswith("cuda"):
        torch.cuda.set_device(chosen)
    dist.init_process_group("nccl" if chosen.startswith("cuda") else "gloo")
    world = World(Shard(dist.get_rank(), world_size), chosen)
    try:
        yield world
        world.barrier()  # the first process may still write what the others read next
    finally:
        dist.destroy_process_group()


def _device_of_local_rank(device: str) -> str:
    chosen = choose_device(device)
    if chosen == "cpu":
        return chosen
    if ":" in chosen:
        raise BadInputError(
            f"got device {chosen!r} for several processes, need one GPU for each: give cuda"
        )
    local_rank, gpus = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
    if local_rank >= gpus:
        raise BadInputError(
            f"got process {local_rank} of this machine and {gpus} GPUs, need one GPU for each "
            "process; start fewer with --nproc-per-node, or give --device cpu"
        )
    return f"cuda:{local_rank}"
