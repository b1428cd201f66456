"""One process of many: rank, device, and the few collectives that recipes need.

`torchrun -m voxelquant VERB ...` starts one process per GPU (or per core, over gloo). Without it
everything here is the identity, so recipes are written once.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from voxelquant.data.sampling import Shard
from voxelquant.errors import BadInputError
from voxelquant.recipes.device import choose_device
from voxelquant.recipes.rank import process_count
from voxelquant.recipes.signals import PATIENCE, Signals

T = TypeVar("T")
_joins = itertools.count()  # each run of a process has keys of its own in the store


@dataclass(frozen=True)
class World:
    """One process among those of its run.

    What recipes call here, every process calls in the same order. If one cannot (its frame is
    damaged), the others learn of it instead of waiting for it.

    Attributes:
        shard: rank and number of processes.
        device: device of this process.
        signals: how the processes learn that one has failed; None without torchrun.
    """

    shard: Shard
    device: str
    signals: Signals | None = field(default=None, repr=False, compare=False, kw_only=True)

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and speaks to the user."""
        return self.shard.rank == 0

    @property
    def in_words(self) -> str:
        """For the title of a stage that several processes work on."""
        count = self.shard.world_size
        return f" in {count} processes" if count > 1 else ""

    def gather(self, value: T) -> list[T]:
        """Values of all processes in order of rank, in every process.

        Values travel pickled between the processes of one run; nothing comes from a file.
        """
        if self.shard.world_size == 1:
            return [value]
        self.barrier()
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

    def gather_to_main(self, value: T) -> list[T]:
        """Values of all processes in order of rank in the main process; nothing in the others.

        For what is large: the others neither receive it nor hold it.
        """
        if self.shard.world_size == 1:
            return [value]
        self.barrier()
        gathered: list[T | None] | None = [None] * self.shard.world_size if self.is_main else None
        dist.gather_object(value, gathered)
        return gathered or []  # type: ignore[return-value]  # every place is filled

    def in_main(self, work: Callable[[], T]) -> T:
        """Do something once, in the main process; every process gets the result."""
        return self.gather(work() if self.is_main else None)[0]  # type: ignore[return-value]

    def barrier(self) -> None:
        """Wait until every process is here.

        Raises:
            AnotherProcessFailedError: one of them failed.
        """
        if self.signals is not None:
            self.signals.meet()

    def while_none_failed(self, items: Iterable[T]) -> Iterator[T]:
        """The items one by one, for as long as no other process has failed.

        Raises:
            AnotherProcessFailedError: one has.
        """
        for item in items:
            if self.signals is not None:
                self.signals.stop_if_another_failed()
            yield item


@contextmanager
def join_world(device: str = "auto") -> Iterator[World]:
    """Join the processes that torchrun started, for the time of a run; alone without torchrun.

    The processes leave together. Whatever one of them raises inside ends all of them: it raises
    here what it raised, the others AnotherProcessFailedError.

    Args:
        device: `auto`, `cpu`, `cuda` or `cuda:N`; of several processes on one machine each takes
            the GPU of its local rank.

    Raises:
        BadInputError: no such device, more processes than GPUs, or one GPU named for several.
    """
    if process_count() == 1:
        yield World(Shard(), choose_device(device))
        return
    # torch documents both names, and forgets to export them to type checkers.
    store, rank, world_size = next(dist.rendezvous("env://"))  # type: ignore[attr-defined]
    store = dist.PrefixStore(f"voxelquant {next(_joins)}", store)  # type: ignore[attr-defined]
    signals = Signals(store, world_size)
    with signals.ending_together():
        chosen = _device_of_local_rank(device)
        signals.meet()  # before a collective: a machine may lack what others have
        _open_group(chosen, store, Shard(rank, world_size))
        world = World(Shard(rank, world_size), chosen, signals=signals)
        _require_one_kind_of_device(world)
        yield world
        signals.part(world.is_main)
    # Where a process failed, the group is left to the end of the process: closing it may wait.
    dist.destroy_process_group()


def _open_group(device: str, store: Any, shard: Shard) -> None:
    """Tensors on GPUs go through NCCL; all else, objects too, through gloo and main memory."""
    backend = "gloo"
    if device.startswith("cuda"):
        torch.cuda.set_device(device)
        backend = "cpu:gloo,cuda:nccl"
    dist.init_process_group(
        backend, store=store, rank=shard.rank, world_size=shard.world_size, timeout=PATIENCE
    )


def _require_one_kind_of_device(world: World) -> None:
    kinds = [device.partition(":")[0] for device in world.gather(world.device)]
    if len(set(kinds)) > 1:
        raise BadInputError(
            f"got processes on {', '.join(kinds)}, need one kind of device for all; give --device "
            "cpu, or start processes only on machines with GPUs"
        )


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
