"""Weights in several safetensors files and an index that names them.

The layout is Hugging Face's: `NAME.safetensors.index.json` beside `NAME-00001-of-00002.safetensors`
and so on. The index keeps the digest of every shard, so it stands for all of them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from contextlib import ExitStack
from numbers import Integral
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor

from voxelquant.atomic_file import atomic_path
from voxelquant.detection.checkpoint_files import read_safetensors
from voxelquant.detection.file_kinds import INDEX_SUFFIX
from voxelquant.digest import file_digest
from voxelquant.errors import CheckpointError

_INDEX = "an index: a JSON object whose weight_map names the shard of each tensor"
_JSON_NAMES = {list: "a list", str: "a text", bool: "true or false", type(None): "null"}
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


def index_of_shard(path: Path) -> Path | None:
    """The index beside a file that names it as one of several shards, if there is one."""
    for index in sorted(path.parent.glob(f"*{INDEX_SUFFIX}")):
        try:
            names = set(_read_index(index)[0].values())
        except CheckpointError:
            continue
        if path.name in names and len(names) > 1:
            return index
    return None


def _read_index(path: Path) -> tuple[dict[str, str], dict[str, str], dict[str, str]]:
    """File of each tensor, digest of each file, further metadata."""
    content = _object("the file", _parse(path), path)
    if "weight_map" not in content:
        raise CheckpointError(f"{path}: got no weight_map, need {_INDEX}")
    places = _object("weight_map", content["weight_map"], path)
    if not places:
        raise CheckpointError(
            f"{path}: got an empty weight_map, which names no tensor; fetch the index again"
        )
    for name in places.values():
        if not isinstance(name, str) or not _SHARD_NAME.fullmatch(name):
            raise CheckpointError(
                f"{path}: got shard {name!r:.60}, need the name of a .safetensors file beside it"
            )
    metadata = dict(_object("metadata", content.get("metadata", {}), path))
    digests = _object("sha256", metadata.pop("sha256", {}), path)
    return places, digests, {key: str(value) for key, value in metadata.items()}


def _parse(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from None
    except (ValueError, RecursionError) as error:  # not UTF-8, not JSON, or nested without end
        raise CheckpointError(f"{path}: not valid JSON ({error}), need {_INDEX}") from None


def _object(what: str, value: Any, path: Path) -> dict[str, Any]:
    if not isinstance(value, dict):
        got = _JSON_NAMES.get(type(value), "a number")
        raise CheckpointError(f"{path}: {what} is {got}, need {_INDEX}")
    return value


def save_shards(
    tensors: Mapping[str, Tensor], path: Path, most_bytes: int, metadata: Mapping[str, str]
) -> None:
    """Write tensors in shards, in order, and their index last.

    Every file is complete under a temporary name before the first takes its own, so nothing that
    can fail then is left but renaming. A process that is killed between two renames leaves an index
    that refuses its shards. Shards of an older index which the new one does not have are removed.

    Args:
        tensors: what is written.
        path: of the index, ending in `.safetensors.index.json`.
        most_bytes: of the tensors of a shard, at least those of the largest tensor.
        metadata: text by name.

    Raises:
        CheckpointError: another name, a size that does not do, or a file cannot be written.
    """
    if not is_index(path):
        raise CheckpointError(f"{path}: need a name that ends in {INDEX_SUFFIX}")
    if not _SHARD_NAME.fullmatch(_shard_name(path, 1, 1)):
        raise CheckpointError(
            f"{path}: shards are named after their index, need a name of letters, digits, '.', '_' "
            "and '-'"
        )
    require_room(tensors, path, most_bytes)
    stale = _own_shards(path)
    shards = _divide(tensors, most_bytes)
    names = [_shard_name(path, number, len(shards)) for number in range(1, len(shards) + 1)]
    with ExitStack() as unfinished:
        # Files take their names in the reverse of this order: the index after all of its shards.
        index = unfinished.enter_context(atomic_path(path, CheckpointError))
        places: dict[str, str] = {}
        digests: dict[str, str] = {}
        for name, shard in zip(names, shards, strict=True):
            file = unfinished.enter_context(atomic_path(path.parent / name, CheckpointError))
            file.write_bytes(safetensors.torch.save(shard, metadata=dict(metadata)))
            digests[name] = file_digest(file)
            places |= dict.fromkeys(shard, name)
        content = {"metadata": {**metadata, "sha256": digests}, "weight_map": places}
        index.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    _remove(stale - set(names), path)


def require_room(tensors: Mapping[str, Tensor], path: Path, most_bytes: int) -> None:
    """Refuse a size of shards that does not do; `path` is that of the index.

    Raises:
        CheckpointError: there is nothing to write, or a tensor is larger than a shard.
    """
    if not tensors:
        raise CheckpointError(f"{path}: got a model without weights, there is nothing to write")
    name, largest = max(tensors.items(), key=lambda item: item[1].nbytes)
    if not isinstance(most_bytes, Integral) or most_bytes < largest.nbytes:
        raise CheckpointError(
            f"{path}: got shard_bytes {most_bytes!r}, need a whole number of at least "
            f"{largest.nbytes} bytes, which {name} alone takes"
        )


def _divide(tensors: Mapping[str, Tensor], most_bytes: int) -> list[dict[str, Tensor]]:
    shards: list[dict[str, Tensor]] = [{}]
    size = 0
    for name, tensor in tensors.items():
        if size + tensor.nbytes > most_bytes:
            shards.append({})
            size = 0
        shards[-1][name] = tensor
        size += tensor.nbytes
    return shards


def _shard_name(index: Path, number: int, count: int) -> str:
    return f"{index.name.removesuffix(INDEX_SUFFIX)}-{number:05d}-of-{count:05d}.safetensors"


def _own_shards(index: Path) -> set[str]:
    """Files that an index names and that have the names `save_shards` gives under it.

    Another file may serve others as well, whoever wrote the index; it is not ours to remove.
    """
    try:
        places, _, _ = _read_index(index)
    except CheckpointError:  # absent, or none: which shards were its own cannot be told
        return set()
    stem = re.escape(index.name.removesuffix(INDEX_SUFFIX))
    own = re.compile(rf"{stem}-\d{{5}}-of-\d{{5}}\.safetensors")
    return {name for name in places.values() if own.fullmatch(name)}


def _remove(names: set[str], index: Path) -> None:
    try:
        for name in names:
            (index.parent / name).unlink(missing_ok=True)
    except OSError as error:
        raise CheckpointError(
            f"{error.filename}: of the weights that stood here before, cannot be removed "
            f"({error.strerror}); the new ones are complete, remove it by hand"
        ) from None
