"""The sparse part of a model, and forwards that end with it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import takewhile
from typing import Any

from torch import nn

from voxelquant.quant.plan import PrecisionPlan


class _SparsePartDoneError(Exception):
    """Raised by a hook to end a forward whose rest nobody asked for."""


@contextmanager
def ending_after_sparse_part(
    model: nn.Module, plan: PrecisionPlan, done: Callable[[], bool]
) -> Iterator[None]:
    """Inside, one forward ends with the submodule that holds all nodes, if all is done by then.

    A detector's dense part, most of its time on a CPU, does not run. The forward's result is lost.

    Args:
        model: the float, fake-quant or lowered form of one network.
        plan: its plan.
        done: whether everything that the forward was run for has happened.
    """

    def stop(m: nn.Module, args: Any, out: Any) -> None:
        if done():
            raise _SparsePartDoneError

    handle = model.get_submodule(_path_of_sparse_part(plan)).register_forward_hook(stop)
    try:
        with suppress(_SparsePartDoneError):
            yield
    finally:
        handle.remove()


def _path_of_sparse_part(plan: PrecisionPlan) -> str:
    """Path of the smallest module that holds every node; "" is the model."""
    nodes = plan.graph.nodes
    paths = [p for n in nodes for p in (n.path, n.batchnorm_path, n.relu_path) if p is not None]
    parents = [path.split(".")[:-1] for path in paths]
    shared = takewhile(lambda names: len(set(names)) == 1, zip(*parents, strict=False))
    return ".".join(names[0] for names in shared)
