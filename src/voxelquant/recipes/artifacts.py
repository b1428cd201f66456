"""What a run leaves behind: whole files or none, and the provenance beside every number."""

import json
import math
import os
import platform
import subprocess
from collections.abc import Mapping
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

from voxelquant import __version__
from voxelquant.atomic_file import atomic_path, open_sibling
from voxelquant.recipes.machine import describe_machine, package_version

PACKAGE = Path(__file__).resolve().parents[1]
VERSIONED_PACKAGES = ("torch", "triton", "numpy", "nuscenes-devkit", "onnx", "safetensors")


def make_work_dir(folder: Path) -> None:
    """Make the folder of a run and try it, so that no work is done that cannot be kept.

    Raises:
        BadInputError: the folder cannot be made or written.
    """
    open_sibling(folder / "metrics.json").unlink()


def write_text_atomic(path: str | os.PathLike[str], text: str) -> Path:
    """Write UTF-8 text, whole or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return Path(path)


def write_json_atomic(path: str | os.PathLike[str], payload: Mapping[str, Any]) -> Path:
    """Write strict JSON (no NaN: what is not a number becomes null), whole or not at all."""
    text = json.dumps(to_jsonable(payload), indent=2, allow_nan=False, ensure_ascii=False)
    return write_text_atomic(path, text + "\n")


def to_jsonable(value: Any) -> Any:
    """Plain JSON types from dataclasses, pydantic models, paths, arrays and tensors.

    >>> to_jsonable({"map": float("nan"), "shape": (1, 2)})
    {'map': None, 'shape': [1, 2]}
    """
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): to_jsonable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_jsonable(item) for item in value]
    if isinstance(value, set | frozenset):
        return sorted(to_jsonable(item) for item in value)
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if is_dataclass(value) and not isinstance(value, type):
        return to_jsonable(asdict(value))
    if hasattr(value, "model_dump"):  # pydantic
        return to_jsonable(value.model_dump(mode="json"))
    if hasattr(value, "tolist"):  # numpy and torch
        return to_jsonable(value.tolist())
    raise TypeError(f"got {type(value).__name__}, which has no JSON form here")


def provenance(*, config: Any = None, seed: int | None = None) -> dict[str, Any]:
    """Everything that another person needs to get this run's numbers again."""
    return {
        "voxelquant": __version__,
        "commit": checkout_commit(PACKAGE),
        "versions": {
            "python": platform.python_version(),
            **{name: package_version(name) for name in VERSIONED_PACKAGES},
        },
        "machine": asdict(describe_machine()),
        "seed": seed,
        "config": to_jsonable(config),
    }


def checkout_commit(package: Path) -> str | None:
    """Commit of the checkout that holds this package, None for an installed package.

    A commit with uncommitted changes to tracked files ends in `-dirty`.
    """
    # A repository may merely surround the environment that we are installed in.
    if _git(package, "ls-files", "--error-unmatch", "__init__.py") is None:
        return None
    commit = _git(package, "rev-parse", "HEAD")
    if commit is None:
        return None
    changed = _git(package, "status", "--porcelain", "--untracked-files=no")
    return f"{commit}-dirty" if changed else commit


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        result = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=20
        )
    except (OSError, subprocess.TimeoutExpired):  # no git, or one that hangs on a dead network disk
        return None
    return result.stdout.strip() if result.returncode == 0 else None
