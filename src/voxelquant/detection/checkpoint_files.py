"""Read tensors from weight files without running anything that a file holds."""

import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import torch
from torch import Tensor

from voxelquant.detection.file_kinds import why_no_weights
from voxelquant.errors import CheckpointError

_MAX_BYTES = 8 * 1024**3  # unpacked: a compressed file must not explode
_LFS_POINTER = b"version https://git-lfs"
_SCALAR_TYPES = (np.bool_, np.int32, np.int64, np.uint8, np.float16, np.float32, np.float64)

# What released checkpoints hold beside tensors and plain values: numpy scalars in their logs.
# numpy 1 and 2 call the same function by different names.
_NUMPY_SCALAR = np.float64(0).__reduce__()[0]
_SAFE_GLOBALS: list[Any] = [
    (_NUMPY_SCALAR, "numpy.core.multiarray.scalar"),
    (_NUMPY_SCALAR, "numpy._core.multiarray.scalar"),
    np.dtype,
    *(type(np.dtype(kind)) for kind in _SCALAR_TYPES),
]


def read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a safetensors file.

    Raises:
        CheckpointError: absent, truncated, or not a safetensors file; what else it is, if known.
    """
    _check_readable(path)
    try:
        with safetensors.safe_open(str(path), framework="pt", device="cpu") as file:
            metadata = dict(file.metadata() or {})
            return {key: file.get_tensor(key) for key in file.keys()}, metadata  # noqa: SIM118
    except (safetensors.SafetensorError, OSError, ValueError) as error:
        _refuse_foreign(path)
        raise CheckpointError(
            f"{path}: not a whole safetensors file ({_first_line(error)}); fetch it again"
        ) from None


def read_torch_file(path: Path) -> Any:
    """Content of a torch checkpoint, through the weights-only unpickler and a closed list.

    Raises:
        CheckpointError: absent, truncated, or holding an object outside the list, which is named
            and never built.
    """
    _check_readable(path)
    _check_unpacked_size(path)
    try:
        with torch.serialization.safe_globals(_SAFE_GLOBALS), warnings.catch_warnings():
            warnings.simplefilter(
                "ignore"
            )  # torch comments on the pickle protocol of foreign files
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle can raise anything
        forbidden = re.search(r"(?:GLOBAL|global|class) [`']?([\w.]+\.[\w.]+)", str(error))
        if isinstance(error, pickle.UnpicklingError) and forbidden:
            raise CheckpointError(
                f"{path}: refused, it holds `{forbidden[1]}`, and only tensors, plain values and "
                "numpy scalars are read; save its state_dict alone with torch.save"
            ) from None
        _refuse_foreign(path)
        raise CheckpointError(
            f"{path}: not a whole torch checkpoint ({_first_line(error)}); fetch it again"
        ) from None


def find_state_dict(content: Any, path: Path) -> dict[str, Tensor]:
    """The weights in `{meta, state_dict, optimizer}` or in a bare state dict.

    Raises:
        CheckpointError: no mapping of names to tensors is found.
    """
    weights = content
    for key in ("state_dict", "model_state", "model"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            weights = content[key]
            break
    if not isinstance(weights, Mapping) or not weights:
        kind = type(weights).__name__
        raise CheckpointError(f"{path}: got a {kind}, need a state_dict or a file that holds one")
    for name, value in weights.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise CheckpointError(
                f"{path}: got {name!r:.60} of type {type(value).__name__} where a state_dict has "
                "tensors; give a det3d checkpoint or a state_dict"
            )
    return dict(weights)


def _check_readable(path: Path) -> None:
    try:
        with path.open("rb") as file:
            start = file.read(len(_LFS_POINTER))
    except OSError as error:
        raise CheckpointError(
            f"{path}: cannot be read ({error.strerror}), need a file of weights"
        ) from None
    if start == _LFS_POINTER:
        raise CheckpointError(f"{path}: a git-lfs pointer, not the weights; run `git lfs pull`")
    if not start:
        raise CheckpointError(f"{path}: an empty file; fetch it again")


def _refuse_foreign(path: Path) -> None:
    reason = why_no_weights(path)
    if reason is not None:
        raise CheckpointError(f"{path}: {reason}") from None


def _check_unpacked_size(path: Path) -> None:
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as archive:
        size = sum(entry.file_size for entry in archive.infolist())
    if size > _MAX_BYTES:
        raise CheckpointError(f"{path}: unpacks to {size} bytes, more than {_MAX_BYTES}; refused")


def _first_line(error: Exception) -> str:
    # The weights-only unpickler puts its own finding behind a page of advice.
    lines = str(error).rpartition("WeightsUnpickler error:")[2].strip().splitlines()
    return lines[0][:160] if lines else type(error).__name__
