"""Quantized detectors from files: our own states, and NVIDIA's quantized checkpoints."""

from __future__ import annotations

import zipfile
from dataclasses import dataclass, replace
from pathlib import Path

from voxelquant.detection.checkpoint_files import find_state_dict, read_torch_file
from voxelquant.detection.config import DetectorConfig
from voxelquant.detection.detector import CenterPoint
from voxelquant.detection.file_kinds import text_kind
from voxelquant.detection.nvidia_import import import_nvidia_checkpoint
from voxelquant.detection.nvidia_layout import is_nvidia_checkpoint
from voxelquant.detection.sharded_weights import is_index
from voxelquant.errors import CheckpointError, QuantStateError
from voxelquant.quant.state import QuantState
from voxelquant.quant.state_file import is_state_file

_TORCH_SUFFIXES = (".pth", ".pt", ".ckpt")
_ADVICE = "`voxelquant ptq` makes a state from float weights"


@dataclass(frozen=True)
class LoadedState:
    """A quantized detector as data, and what is to be said of the file that it came from."""

    state: QuantState
    notes: tuple[str, ...] = ()


def is_quant_state(path: str | Path) -> bool:
    """Whether a file holds a quantized detector rather than float weights, by what is in it.

    Raises:
        CheckpointError: the file is missing, or is a torch file that is unreadable or unsafe.
    """
    if not Path(path).is_file():
        raise CheckpointError(f"{path}: no such file; give --weights a checkpoint")
    if not _is_torch_file(Path(path)):
        return is_state_file(Path(path))
    return is_nvidia_checkpoint(find_state_dict(read_torch_file(Path(path)), Path(path)))


def load_quant_state(path: str | Path, config: DetectorConfig) -> LoadedState:
    """A quantized detector from `ptq.safetensors`, or from NVIDIA's `ptq.pth` or `qat.pth`.

    Raises:
        CheckpointError: a torch file that is unreadable, unsafe, or of another model.
        QuantStateError: a file that holds no quantized detector, or a damaged one.
    """
    path = Path(path)
    if path.is_file() and _is_torch_file(path):
        return _load_torch_file(path, config)
    if not is_quant_state(path):
        kind = "an index of float weights in shards" if is_index(path) else text_kind(path)
        if kind is not None:
            raise QuantStateError(f"{path}: got {kind}, need a quantized state; {_ADVICE}")
    return LoadedState(QuantState.load(path))


def _is_torch_file(path: Path) -> bool:
    return path.suffix in _TORCH_SUFFIXES or zipfile.is_zipfile(path)


def _load_torch_file(path: Path, config: DetectorConfig) -> LoadedState:
    content = read_torch_file(path)
    if not is_nvidia_checkpoint(find_state_dict(content, path)):
        raise QuantStateError(
            f"{path}: got float weights, need a quantized state or NVIDIA's ptq.pth; {_ADVICE}"
        )
    network = CenterPoint(config)
    grid = network.voxel_grid().sparse_shape
    found = import_nvidia_checkpoint(content, path, network, grid)
    metadata = {**found.state.metadata, "config": config.name}
    return LoadedState(replace(found.state, metadata=metadata), found.notes)
