"""What a written data set holds, read from its tables alone."""

import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

from voxelquant.data.synthetic.taxonomy import CATEGORIES, CHILD, CLASS_NAMES, KINDS, WORKER
from voxelquant.errors import DatasetError

_CLASS_OF_CATEGORY = {
    name: CLASS_NAMES[index if index < len(CLASS_NAMES) else (8 if index in (CHILD, WORKER) else 3)]
    for index, name in enumerate(CATEGORIES)
}


def count_visible_instances(tables: Path | str, split: str) -> dict[str, int]:
    """Distinct instances of each class in a split that the metric can see.

    An instance counts if at least one of its annotations holds a LiDAR point and stands within the
    class's range of the nuScenes detection metric (50, 40 or 30 m).

    Args:
        tables: folder of the tables (`<root>/v1.0-synthetic`).
        split: name of a split in `splits.json`.

    Raises:
        DatasetError: a table is missing or the split is unknown.
    """
    folder = Path(tables)
    names = _read(folder, "splits")
    if split not in names:
        raise DatasetError(f"{folder} has no split {split!r}: it has {', '.join(names)}")
    scenes = {scene["token"] for scene in _read(folder, "scene") if scene["name"] in names[split]}
    samples = {s["token"] for s in _read(folder, "sample") if s["scene_token"] in scenes}
    poses = {pose["token"]: pose["translation"] for pose in _read(folder, "ego_pose")}
    ego = {
        data["sample_token"]: poses[data["ego_pose_token"]]
        for data in _read(folder, "sample_data")
        if data["is_key_frame"]
    }
    categories = {c["token"]: _CLASS_OF_CATEGORY[c["name"]] for c in _read(folder, "category")}
    class_of = {i["token"]: categories[i["category_token"]] for i in _read(folder, "instance")}
    ranges_m = {kind.name: kind.range_m for kind in KINDS}
    seen = {
        annotation["instance_token"]
        for annotation in _read(folder, "sample_annotation")
        if annotation["sample_token"] in samples
        and annotation["num_lidar_pts"] > 0
        and math.dist(annotation["translation"][:2], ego[annotation["sample_token"]][:2])
        < ranges_m[class_of[annotation["instance_token"]]]
    }
    counts = Counter(class_of[token] for token in seen)
    return {name: counts[name] for name in CLASS_NAMES}


def _read(folder: Path, table: str) -> Any:
    path = folder / f"{table}.json"
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise DatasetError(f"cannot read {path}: {error}; write the data set again") from error
