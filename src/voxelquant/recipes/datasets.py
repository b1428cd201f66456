"""Open the dataset that a config and the command line name."""

from __future__ import annotations

import re
from collections.abc import Mapping
from enum import Enum
from pathlib import Path

from voxelquant.data.infos import InfoDataset
from voxelquant.data.nuscenes import NuScenesDataset
from voxelquant.data.records import FrameDataset
from voxelquant.data.tables import custom_splits
from voxelquant.detection.config import DetectorConfig, Reader
from voxelquant.errors import BadInputError, DatasetError

# `--data synthetic`: frames are generated as they are wanted, nothing is read from disk.
SYNTHETIC = "synthetic"


class Purpose(Enum):
    """What frames are wanted for; decides on the split where the user names none."""

    TRAIN = ("train", "training", "calibration")
    VAL = ("val", "validation")


def open_dataset(
    config: DetectorConfig,
    root: str | Path | None,
    split: str | None = None,
    version: str | None = None,
    *,
    purpose: Purpose = Purpose.VAL,
) -> FrameDataset:
    """Key frames under `root`: of the config's det3d info file if it is there, else of the tables.

    Naming a split asks for the tables.

    Args:
        config: detector, whose `data` section names info files, and a root for want of another.
        root: dataset folder; None is the config's own.
        split: split of the tables; default: the one that serves the purpose.
        version: version folder of the tables; default: the config's, or the only one.
        purpose: what the frames are for.

    Raises:
        DatasetError: the folder, its version or the split is missing, damaged or ambiguous, or the
            detector reads points that no dataset holds.
    """
    require_lidar_reader(config)
    root = dataset_root(config, root, purpose)
    infos = config.data.train_infos if purpose is Purpose.TRAIN else config.data.val_infos
    info_path = None if split is not None else find_det3d_file(config, root, infos)
    if info_path is not None:
        return _open_infos(config, info_path, root, version, purpose)
    version = version or config.data.version or find_version(root)
    return NuScenesDataset(
        root,
        version,
        split or choose_split(root / version, purpose),
        class_names=config.class_names,
        nsweeps=config.data.nsweeps,
        interval=_interval(config, purpose),
    )


def require_lidar_reader(config: DetectorConfig) -> None:
    """Refuse a detector that needs more than what datasets and the synthetic world hold.

    Raises:
        DatasetError: it reads painted and virtual points.
    """
    if config.reader is Reader.DYNAMIC_VIRTUAL:
        raise DatasetError(
            f"config {config.name} reads painted and virtual points, {config.n_point_columns} "
            "columns each, which no dataset here holds; give frames of your own with --frame or to "
            "CenterPoint.read_clouds, or use a config without `virtual`"
        )


def _interval(config: DetectorConfig, purpose: Purpose) -> int:
    return config.data.train_interval if purpose is Purpose.TRAIN else 1


def _open_infos(
    config: DetectorConfig, path: Path, root: Path, version: str | None, purpose: Purpose
) -> InfoDataset:
    """The info file, with the tables beside it where it is clear which they are."""
    split = None
    try:
        version = version or config.data.version or find_version(root)
        split = choose_split(root / version, purpose)
    except DatasetError:  # infos suffice for all but scoring, which then says what it lacks
        version = None
    return InfoDataset(
        path,
        root,
        config.class_names,
        config.data.nsweeps,
        version=version,
        split=split,
        interval=_interval(config, purpose),
    )


def dataset_root(
    config: DetectorConfig, root: str | Path | None, purpose: Purpose = Purpose.VAL
) -> Path:
    """The folder that the command line names, or else the config.

    Raises:
        DatasetError: neither names one, or there is no such folder.
    """
    root = root if root is not None else config.data.root
    # Frames to train and calibrate on may be generated; the metric reads what it scores from disk.
    need = "give --data the root of a nuScenes dataset"
    if purpose is Purpose.TRAIN:
        need += f", or `{SYNTHETIC}`"
    if root is None:
        raise DatasetError(f"config {config.name} names no data root; {need}")
    if not Path(root).is_dir():
        if str(root) == SYNTHETIC:
            need += "; `voxelquant synth --out DATA` writes a synthetic one"
        got = "a file" if Path(root).exists() else "no such folder"
        raise DatasetError(f"{root}: {got}; {need}")
    return Path(root)


def refuse_unused(
    data: str | None, *, of_synthetic: Mapping[str, object], of_dataset: Mapping[str, object]
) -> None:
    """Refuse options that the chosen kind of frames has no use for; they would be ignored.

    Args:
        data: `--data` of the command line.
        of_synthetic: value by name of options of the synthetic world; None is not given.
        of_dataset: of options of a dataset on disk.

    Raises:
        BadInputError: one that has no use is given.
    """
    synthetic = data == SYNTHETIC
    for name, value in (of_dataset if synthetic else of_synthetic).items():
        if value is None:
            continue
        got = f"--{name.replace('_', '-')} {value}"
        if synthetic:
            raise BadInputError(
                f"got {got} with --data {SYNTHETIC}, which is generated and read from nowhere; "
                "leave it out"
            )
        chosen = "the config's data root" if data is None else f"--data {data}"
        raise BadInputError(
            f"got {got}, an option of the synthetic world, with {chosen}; leave it out, or give "
            f"--data {SYNTHETIC}"
        )


def find_det3d_file(config: DetectorConfig, root: Path, named: str | None) -> Path | None:
    """A file that a det3d config names, where it is under the data root in use; None if it is not.

    det3d's paths lead from its checkout through the config's own data root
    (`data/nuScenes/infos_val.pkl`). What lies behind that root is looked up under `root`: another
    dataset than the config's must not be read with the infos of the config's. A file elsewhere is
    looked up under `root`, then as it is named.
    """
    if named is None:
        return None
    own = config.data.root
    if own is not None and Path(named).is_relative_to(own):
        candidates = [root / Path(named).relative_to(own)]
    else:
        candidates = [root / named, Path(named)]
    return next((path for path in candidates if path.is_file()), None)


def find_version(root: Path) -> str:
    """The version folder of a dataset root: the only one, or nuScenes' own for training.

    CenterPoint's scripts take `v1.0-trainval` and know no other; `v1.0-test` and `v1.0-mini` often
    lie beside it.

    Raises:
        DatasetError: no folder `v*` with tables, or several without that one.
    """
    versions = sorted({path.parent.name for path in root.glob("v*/*.json")})
    if "v1.0-trainval" in versions:
        return "v1.0-trainval"
    if not versions:
        raise DatasetError(
            f"{root}: found no version folder with tables (v1.0-trainval/*.json, say); give --data "
            "the root of a nuScenes dataset"
        )
    if len(versions) > 1:
        found = ", ".join(versions)
        raise DatasetError(f"{root}: found {found}, need one of them; choose it with --version")
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
