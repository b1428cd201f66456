"""Weights in several safetensors files and an index that names them.

The layout is Hugging Face's: `NAME.safetensors.index.json` beside `NAME-00001-of-00002.safetensors`
and so on. The index keeps the digest of every shard, so it stands for all of them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor

from voxelquant.atomic_file import atomic_path
from voxelquant.detection.checkpoint_files import read_safetensors
from voxelquant.digest import file_digest
from voxelquant.errors import CheckpointError

INDEX_SUFFIX = ".safetensors.index.json"
_SHARD_NAME = re.compile(r"[\w.-]+\.safetensors")


def is_index(path: Path) -> bool:
    """Whether a path names an index of shards."""
    return path.name.endswith(INDEX_SUFFIX)


def read_shards(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors of all shards of an index, and the index's metadata.

    Raises:
        CheckpointError: index or shard is absent, damaged, or of another index.
    """
    places, digests, metadata = _read_index(path)
    tensors: dict[str, Tensor] = {}
    for name in sorted(set(places.values())):
        shard = path.parent / name
        stored, _ = read_safetensors(shard)
        if name in digests and file_digest(shard) != digests[name]:
            raise CheckpointError(f"{shard}: not the file that {path.name} names; fetch both again")
        tensors |= {key: value for key, value in stored.items() if places.get(key) == name}
    missing = sorted(places.keys() - tensors.keys())
    if missing:
        raise CheckpointError(
            f"{path}: {places[missing[0]]} lacks {missing[0]}, which the index says it holds; "
            "fetch the files again"
        )
    return tensors, metadata


def _read_index(path: Path) -> tuple[dict[str, str], dict[str, str], dict[str, str]]:
    """File of each tensor, digest of each file, further metadata."""
    try:
        content = json.loads(path.read_text())
        metadata: dict[str, Any] = dict(content.get("metadata", {}))
        digests = dict(metadata.pop("sha256", {}))
        places = dict(content["weight_map"])
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from None
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise CheckpointError(
            f"{path}: got no index of shards ({type(error).__name__}: {error}), need a JSON object "
            "with a weight_map"
        ) from None
    for name in places.values():
        if not isinstance(name, str) or not _SHARD_NAME.fullmatch(name):
            raise CheckpointError(
                f"{path}: got shard {name!r:.60}, need the name of a .safetensors file beside it"
            )
    return places, digests, {key: str(value) for key, value in metadata.items()}


def save_shards(
    tensors: Mapping[str, Tensor], path: Path, most_bytes: int, metadata: Mapping[str, str]
) -> None:
    """Write tensors in shards, in order, and their index last.

    Args:
        tensors: what is written.
        path: of the index, ending in `.safetensors.index.json`.
        most_bytes: of the tensors of a shard; a larger tensor has one of its own.
        metadata: text by name.

    Raises:
        CheckpointError: another name, or a file cannot be written.
    """
    if not is_index(path):
        raise CheckpointError(f"{path}: need a name that ends in {INDEX_SUFFIX}")
    stem = path.name.removesuffix(INDEX_SUFFIX)
    shards: list[dict[str, Tensor]] = [{}]
    size = 0
    for name, tensor in tensors.items():
        if shards[-1] and size + tensor.nbytes > most_bytes:
            shards.append({})
            size = 0
        shards[-1][name] = tensor
        size += tensor.nbytes
    places: dict[str, str] = {}
    digests: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        name = f"{stem}-{number:05d}-of-{len(shards):05d}.safetensors"
        with atomic_path(path.parent / name, CheckpointError) as temporary:
            temporary.write_bytes(safetensors.torch.save(shard, metadata=dict(metadata)))
        digests[name] = file_digest(path.parent / name)
        places |= dict.fromkeys(shard, name)
    index = {"metadata": {**metadata, "sha256": digests}, "weight_map": places}
    with atomic_path(path, CheckpointError) as temporary:
        temporary.write_text(json.dumps(index, indent=1) + "\n")
