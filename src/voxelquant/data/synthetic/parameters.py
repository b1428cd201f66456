"""What a written world was made with, and what tells two of them apart."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from voxelquant.data.synthetic.config import WORLD_VERSION, SceneSpec, WorldConfig

# Of a scene's record, in the words of the command line.
_SPEC_IN_WORDS = {"seed": "seed", "key_frames": "key frames of a scene"}


def world_parameters(
    splits: Mapping[str, Sequence[SceneSpec]], config: WorldConfig
) -> dict[str, Any]:
    """Everything that the files of a data set follow from, as JSON reads it back."""
    parameters = {
        "world_version": WORLD_VERSION,
        "config": asdict(config),
        "splits": {name: [asdict(spec) for spec in specs] for name, specs in splits.items()},
    }
    return json.loads(json.dumps(parameters))  # tuples become lists, as on disk


def differences(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """What of a data set is other than wanted, one phrase each.

    Args:
        found: parameters as a file holds them, of whatever version or make.
        wanted: those of `world_parameters`.

    >>> splits = {"val": [SceneSpec(1, 0)]}
    >>> balanced = world_parameters(splits, WorldConfig(class_mix="balanced"))
    >>> wanted = world_parameters({"val": [SceneSpec(2, 0)]}, WorldConfig())
    >>> differences(balanced, wanted)
    ['class mix balanced, not nuscenes', 'seed 1, not 2']
    """
    flat_found, flat_wanted = (dict(_flattened(each)) for each in (found, wanted))
    different = [
        f"{name} {_shown(flat_found.get(name))}, not {_shown(value)}"
        for name, value in flat_wanted.items()
        if flat_found.get(name) != value
    ]
    if different or found == wanted:
        return different
    return ["other scenes" if found.get("splits") != wanted["splits"] else "other settings"]


def _flattened(parameters: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Name in words and value of every parameter; of scenes, what they have in common."""
    yield "world version", parameters.get("world_version")
    yield from _settings(parameters.get("config"))
    splits = parameters.get("splits")
    splits = splits if isinstance(splits, dict) else {}
    lists = {name: scenes for name, scenes in splits.items() if isinstance(scenes, list)}
    records = [scene for scenes in lists.values() for scene in scenes if isinstance(scene, dict)]
    for key, name in _SPEC_IN_WORDS.items():
        yield name, sorted({str(record.get(key)) for record in records})
    yield "splits", [f"{name}={len(scenes)}" for name, scenes in lists.items()]


def _settings(config: Any) -> Iterator[tuple[str, Any]]:
    for key, value in config.items() if isinstance(config, dict) else ():
        if isinstance(value, dict):
            yield from ((f"{key} {name}", inner) for name, inner in _settings(value))
        else:
            yield key.replace("_", " "), value


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return " and ".join(map(str, value)) or "unknown"
    return "unknown" if value is None else str(value)
