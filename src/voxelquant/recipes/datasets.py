"""Open the dataset that a config and the command line name."""

from __future__ import annotations

from pathlib import Path

from voxelquant.data.nuscenes import NuScenesDataset
from voxelquant.detection.config import DetectorConfig
from voxelquant.errors import DatasetError


def open_dataset(
    config: DetectorConfig, root: str | Path, split: str, version: str | None = None
) -> NuScenesDataset:
    """A split of the nuScenes tables under `root`.

    Raises:
        DatasetError: the folder, its version or the split is missing or damaged.
    """
    return NuScenesDataset(
        Path(root),
        version or config.data.version or find_version(Path(root)),
        split,
        class_names=config.class_names,
        nsweeps=config.data.nsweeps,
    )


def find_version(root: Path) -> str:
    """The version folder of a dataset root, where there is exactly one.

    Raises:
        DatasetError: no folder `v*` with tables, or several.
    """
    if not root.is_dir():
        raise DatasetError(f"{root}: no such folder; give --data the root of a nuScenes dataset")
    versions = sorted(path.parent.name for path in root.glob("v*/sample.json"))
    if len(versions) != 1:
        raise DatasetError(
            f"{root}: found {versions or 'no version folder (v1.0-trainval, say)'}, need one "
            "that holds the tables; choose it with `data.version` in the config"
        )
    return versions[0]
