"""nuScenes tables, opened through nuscenes-devkit, with one clear line for whatever is broken."""

import difflib
import json
from pathlib import Path
from typing import Any

from voxelquant.errors import DatasetError, MissingDependencyError
from voxelquant.plural import counted

TABLE_NAMES = (
    "category",
    "attribute",
    "visibility",
    "instance",
    "sensor",
    "calibrated_sensor",
    "ego_pose",
    "log",
    "scene",
    "sample",
    "sample_data",
    "sample_annotation",
    "map",
)
MAY_BE_EMPTY = ("attribute", "visibility", "log", "sample_annotation", "instance")
# The devkit evaluates its own splits on their own version only.
VERSION_SUFFIX = {
    "train": "trainval",
    "val": "trainval",
    "train_detect": "trainval",
    "train_track": "trainval",
    "test": "test",
    "mini_train": "mini",
    "mini_val": "mini",
}


def open_tables(root: str | Path, version: str) -> Any:
    """Database of a version folder: a `nuscenes.NuScenes`.

    Args:
        root: Folder that holds the version folder, `samples`, `sweeps` and `maps`.
        version: Name of the version folder, such as `v1.0-trainval`.

    Raises:
        DatasetError: The folder or a table is missing, unreadable or contradicts another one.
        MissingDependencyError: nuscenes-devkit is not installed.
    """
    folder = Path(root) / version
    if not version or not folder.is_dir():
        found = sorted(path.parent.name for path in Path(root).glob("*/sample_data.json"))
        raise DatasetError(
            f"{folder}: no such version folder; {root} holds "
            f"{', '.join(found) if found else 'no nuScenes tables'}"
        )
    missing = [name for name in TABLE_NAMES if not (folder / f"{name}.json").is_file()]
    if missing:
        raise DatasetError(
            f"{folder}: {', '.join(f'{name}.json' for name in missing)} missing; need all "
            f"{len(TABLE_NAMES)} tables of nuScenes, fetch the metadata again"
        )
    try:
        from nuscenes.nuscenes import NuScenes
    except ImportError as error:
        raise MissingDependencyError(
            f"nuScenes tables are read through nuscenes-devkit ({error}); install it with: "
            "pip install 'voxelquant[nuscenes]'"
        ) from error
    try:
        return NuScenes(version=version, dataroot=str(root), verbose=False)
    except Exception as error:  # the devkit raises anything from AssertionError to plain Exception
        raise DatasetError(_diagnose(folder, error)) from error


def split_sample_tokens(nusc: Any, split: str) -> tuple[str, ...]:
    """Tokens of the split's key frames, in the order of the sample table.

    Args:
        nusc: Open tables.
        split: A split of nuScenes, or one that `splits.json` in the version folder defines.

    Raises:
        DatasetError: No such split, a split of another version, or one without samples.
    """
    scenes = set(split_scene_names(nusc, split))
    tokens = tuple(
        sample["token"]
        for sample in nusc.sample
        if nusc.get("scene", sample["scene_token"])["name"] in scenes
    )
    if not tokens:
        raise DatasetError(
            f"{nusc.table_root}: split {split} has no samples here; its scenes are missing from "
            "scene.json or sample.json, fetch the metadata again"
        )
    return tokens


def split_scene_names(nusc: Any, split: str) -> list[str]:
    """Scene names of a split of nuScenes or of `splits.json`.

    Raises:
        DatasetError: No such split, or a split of another version.
    """
    from nuscenes.utils.splits import create_splits_scenes

    official: dict[str, list[str]] = create_splits_scenes()
    if split in official:
        suffix = VERSION_SUFFIX[split]
        if not nusc.version.endswith(suffix):
            raise DatasetError(
                f"split {split} belongs to a version that ends in {suffix}, got {nusc.version}; "
                f"choose that version, or another split: {_listed(_known_splits(nusc, official))}"
            )
        return official[split]
    custom = custom_splits(Path(nusc.table_root))
    if split not in custom:
        known = _known_splits(nusc, official)
        nearest = difflib.get_close_matches(split, known, n=1)
        hint = f"did you mean {nearest[0]}? " if nearest else ""
        raise DatasetError(
            f"{nusc.table_root}: no split {split}; {hint}known here: {_listed(known)}; "
            "other splits can be defined in splits.json"
        )
    absent = set(custom[split]) - {scene["name"] for scene in nusc.scene}
    if absent:
        raise DatasetError(
            f"{nusc.table_root}/splits.json: split {split} names "
            f"{counted(len(absent), 'scene')} that scene.json lacks ({min(absent)}); "
            "mend one of the two"
        )
    return custom[split]


def _known_splits(nusc: Any, official: dict[str, list[str]]) -> list[str]:
    fitting = [name for name in official if nusc.version.endswith(VERSION_SUFFIX[name])]
    return sorted([*fitting, *custom_splits(Path(nusc.table_root))])


def custom_splits(folder: Path) -> dict[str, list[str]]:
    """`splits.json` of a version folder, empty where there is none."""
    path = folder / "splits.json"
    if not path.exists():
        return {}
    splits = _parse(path)
    if not isinstance(splits, dict) or not all(_is_name_list(v) for v in splits.values()):
        raise DatasetError(f"{path}: need an object that maps split names to lists of scene names")
    return splits


def _diagnose(folder: Path, error: Exception) -> str:
    """Why the devkit could not open a version folder: the first defect found."""
    for name in TABLE_NAMES:
        path = folder / f"{name}.json"
        try:
            table = _parse(path)
        except DatasetError as defect:
            return str(defect)
        if not isinstance(table, list) or not all(isinstance(row, dict) for row in table):
            return f"{path}: need a list of records; fetch the metadata again"
        if not table and name not in MAY_BE_EMPTY:
            return f"{path}: got no records, need at least one; fetch the metadata again"
        for row in table if name == "map" else ():
            if not (folder.parent / str(row.get("filename"))).exists():
                return (
                    f"{folder.parent / str(row.get('filename'))}: no such map file, but the "
                    "devkit wants every map that map.json names; fetch the maps"
                )
    return (
        f"{folder}: the tables contradict each other ({type(error).__name__}: {error}); "
        "fetch the metadata again"
    )


def _parse(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DatasetError(f"{path}: cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise DatasetError(
            f"{path}: not valid JSON ({error}); the file is truncated or damaged, fetch it again"
        ) from error


def _is_name_list(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) for name in value)


def _listed(names: list[str]) -> str:
    return ", ".join(names) if names else "none"
