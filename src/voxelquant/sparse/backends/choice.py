"""Which execution computes a convolution, and which one builds its kernel map.

`auto` takes Triton on CUDA devices where it runs, the reference everywhere else, and logs what it
took once for every dtype and device. A backend that is named never falls back.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache
from typing import Literal, get_args

import torch

from voxelquant.errors import BackendError

Backend = Literal["reference", "triton"]
BackendChoice = Literal["auto", "reference", "triton"]

_log = logging.getLogger("voxelquant.sparse")
_wanted: ContextVar[BackendChoice] = ContextVar("sparse_backend", default="auto")


@contextmanager
def use_backend(backend: BackendChoice) -> Iterator[None]:
    """Compute the convolutions of this block with one backend; backward passes follow forward.

    Args:
        backend: `auto`, `reference` or `triton`.

    Raises:
        BackendError: no backend has that name.

    >>> with use_backend("reference"):
    ...     choose_backend(torch.float32, torch.device("cpu"))
    'reference'
    """
    _check_name(backend)
    token = _wanted.set(backend)
    try:
        yield
    finally:
        _wanted.reset(token)


def choose_backend(
    dtype: torch.dtype, device: torch.device, wanted: BackendChoice | None = None
) -> Backend:
    """The backend that computes with operands of this dtype on this device.

    Args:
        dtype: of features and weight.
        device: where they are.
        wanted: a backend, or None for that of the enclosing `use_backend`.

    Raises:
        BackendError: the backend that was named does not run them.
    """
    return _choose(dtype, device, _wanted.get() if wanted is None else wanted)


def choose_map_backend(device: torch.device) -> Backend:
    """The backend that builds kernel maps on this device; the maps are the same.

    Args:
        device: where the coordinates are.

    Raises:
        BackendError: the backend that was named does not run there.
    """
    return _choose(None, device, _wanted.get())


@lru_cache(maxsize=256)
def _choose(dtype: torch.dtype | None, device: torch.device, wanted: BackendChoice) -> Backend:
    _check_name(wanted)
    if wanted == "reference":
        return "reference"
    if wanted == "triton":
        runs, reason = _triton_supports(dtype, device)
        if not runs:
            raise BackendError(
                f"backend 'triton': got {dtype or 'sites'} on {device}, {reason}; "
                "or take backend 'auto' or 'reference'"
            )
        return "triton"
    # Elsewhere Triton is not even imported.
    runs, reason = (False, "no GPU")
    if device.type == "cuda":
        runs, reason = _triton_supports(dtype, device)
    chosen: Backend = "triton" if runs else "reference"
    work = "kernel maps" if dtype is None else f"sparse convolutions of {dtype}"
    _log.info("%s on %s: %s (%s)", work, device, chosen, reason)
    return chosen


def _triton_supports(dtype: torch.dtype | None, device: torch.device) -> tuple[bool, str]:
    try:
        from voxelquant.sparse.backends.triton import conv
    except ImportError as error:
        return False, f"Triton cannot be imported ({error}), install it (pip install triton)"
    return conv.supports(dtype, device)


def _check_name(backend: str) -> None:
    if backend not in get_args(BackendChoice):
        raise BackendError(
            f"got backend {backend!r}, need one of {', '.join(get_args(BackendChoice))}"
        )
