"""The state file: safetensors, with recipe, plan and metadata as JSON in its header."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor

from voxelquant.atomic_file import atomic_path
from voxelquant.errors import ConfigError, GeometryError, QuantStateError
from voxelquant.quant.plan import PrecisionPlan
from voxelquant.quant.plan_json import plan_from_json, plan_to_json
from voxelquant.quant.recipe import Recipe, parse_recipe

_FORMAT = "voxelquant.quant_state"
_VERSION = "1"


@dataclass(frozen=True)
class StateContent:
    """What the file holds."""

    tensors: dict[str, Tensor]
    recipe: Recipe
    plan: PrecisionPlan
    metadata: dict[str, Any]


def is_state_file(path: Path) -> bool:
    """Whether the header of a file says that it is a state file, of whatever version."""
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            return (file.metadata() or {}).get("format") == _FORMAT
    except (safetensors.SafetensorError, OSError, ValueError):
        return False


def write_state(path: Path, content: StateContent) -> None:
    """Write beside the final name and rename, so that no reader ever sees half a file.

    Raises:
        QuantStateError: the folder cannot be written, or the metadata is not JSON.
    """
    try:
        header = {
            "format": _FORMAT,
            "version": _VERSION,
            "recipe": content.recipe.model_dump_json(exclude_none=True),
            "plan": json.dumps(plan_to_json(content.plan)),
            "metadata": json.dumps(content.metadata),
        }
    except TypeError as error:
        raise QuantStateError(f"{path}: got metadata that is not JSON ({error})") from error
    with atomic_path(path, QuantStateError) as unfinished:
        unfinished.write_bytes(_in_fixed_order(safetensors.torch.save(content.tensors, header)))


def _in_fixed_order(content: bytes) -> bytes:
    """The same safetensors file with sorted metadata, which safetensors writes in random order.

    A file that has the same content then has the same bytes, and the same checksum.
    """
    start = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:start])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # tensors stay aligned
    return len(text).to_bytes(8, "little") + text + content[start:]


def read_state(path: Path) -> StateContent:
    """Read a state file.

    Raises:
        QuantStateError: missing, truncated, not safetensors, or without our header.
    """
    if not path.is_file():
        raise QuantStateError(f"{path}: got no such file, need a state that QuantState.save wrote")
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (safetensors.SafetensorError, OSError, ValueError) as error:
        reason = str(error).split("\n", 1)[0]
        raise QuantStateError(
            f"{path}: got a file that is truncated or not safetensors ({reason}); "
            "fetch it again, or make it again with `voxelquant ptq`"
        ) from error
    if "format" not in header:
        raise QuantStateError(
            f"{path}: got a safetensors file that is no quantized state, float weights perhaps; "
            "`voxelquant ptq` makes a state from float weights"
        )
    if header.get("format") != _FORMAT or header.get("version") != _VERSION:
        raise QuantStateError(
            f"{path}: got a safetensors file of format {header.get('format')!r} version "
            f"{header.get('version')!r}, need {_FORMAT!r} version {_VERSION!r}"
        )
    try:
        recipe = parse_recipe(json.loads(header["recipe"]), str(path))
        plan = plan_from_json(json.loads(header["plan"]))
        metadata = json.loads(header["metadata"])
    except (KeyError, TypeError, ValueError, AttributeError, ConfigError, GeometryError) as error:
        raise QuantStateError(f"{path}: got a damaged header ({error})") from error
    return StateContent(tensors, recipe, plan, metadata)
