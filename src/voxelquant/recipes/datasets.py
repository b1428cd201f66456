"""Open the dataset that a config and the command line name."""

from __future__ import annotations

import re
from enum import Enum
from pathlib import Path

from voxelquant.data.nuscenes import NuScenesDataset
from voxelquant.data.tables import custom_splits
from voxelquant.detection.config import DetectorConfig
from voxelquant.errors import DatasetError


class Purpose(Enum):
    """What frames are wanted for; decides on the split where the user names none."""

    TRAIN = ("train", "training", "calibration")
    VAL = ("val", "validation")


def open_dataset(
    config: DetectorConfig,
    root: str | Path,
    split: str | None = None,
    version: str | None = None,
    *,
    purpose: Purpose = Purpose.VAL,
) -> NuScenesDataset:
    """A split of the nuScenes tables under `root`; by default the one that serves the purpose.

    Raises:
        DatasetError: the folder, its version or the split is missing, damaged or ambiguous.
    """
    root = Path(root)
    version = version or config.data.version or find_version(root)
    return NuScenesDataset(
        root,
        version,
        split or choose_split(root / version, purpose),
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
    versions = sorted({path.parent.name for path in root.glob("v*/*.json")})
    if len(versions) != 1:
        found = ", ".join(versions) or "no version folder (v1.0-trainval, say)"
        raise DatasetError(f"{root}: found {found}, need one with tables; choose it with --version")
    return versions[0]


def choose_split(tables: Path, purpose: Purpose) -> str:
    """The split of a version folder that serves a purpose, by its name.

    nuScenes' own versions have their own names; elsewhere it is the one split of `splits.json`
    whose name holds a fitting word (`synthetic_val`, `demo_calibration`).

    Raises:
        DatasetError: none fits, or several do.
    """
    official = {"trainval": "{}", "mini": "mini_{}"}.get(tables.name.rpartition("-")[2])
    if official is not None:
        return official.format(purpose.value[0])
    known = sorted(custom_splits(tables)) if tables.is_dir() else []
    fitting = [name for name in known if set(re.split("[^a-z]+", name.lower())) & {*purpose.value}]
    if len(fitting) != 1:
        found = f"{len(fitting)} splits" if fitting else "no split"
        raise DatasetError(
            f"{tables}: {found} to choose for {purpose.name.lower()}; choose one with --split: "
            f"{', '.join(known) or 'splits.json lists none'}"
        )
    return fitting[0]
