"""The synthetic world on disk, as nuScenes v1.0 tables and point files."""

import glob
import json
import os
import secrets
import shutil
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from voxelquant.data.synthetic.annotate import annotate
from voxelquant.data.synthetic.config import SceneSpec, WorldConfig
from voxelquant.data.synthetic.frames import group_scenes
from voxelquant.data.synthetic.layout import Scenes, lay_out
from voxelquant.data.synthetic.parameters import differences, world_parameters
from voxelquant.data.synthetic.returns import Returns, fire
from voxelquant.data.synthetic.sensor import spin
from voxelquant.data.synthetic.tables import (
    Tables,
    add_annotations,
    add_revolutions,
    add_scene,
    ego_to_global,
    is_key_frame,
    log_token,
    revolutions_of,
    split_names,
    start_tables,
    sweep_filename,
)
from voxelquant.errors import DatasetError
from voxelquant.plural import counted

TABLE_VERSION = "v1.0-synthetic"
_PARAMETERS = "synthetic_world.json"
_REVOLUTIONS_AT_ONCE = 10
_ONE_PIXEL_PNG = struct.pack(">8B", 137, 80, 78, 71, 13, 10, 26, 10)  # the devkit never opens it


def write_dataset(
    root: Path | str,
    splits: Mapping[str, Sequence[SceneSpec]],
    *,
    device: torch.device | str = "cpu",
    config: WorldConfig | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Write scenes as a nuScenes data set of version `v1.0-synthetic` with custom splits.

    Nothing stands under `root` before everything does. A data set that was written with the same
    parameters is kept as it is.

    Args:
        root: data root to make.
        splits: scenes of each split; no scene may stand in two splits.
        device: where the points are made.
        config: the world; None is nuScenes' LIDAR_TOP with 10 sweeps.
        progress: called with (scenes done, scenes in all).

    Returns:
        The data root.

    Raises:
        DatasetError: `root` exists and is something else, or the splits cannot be written.
    """
    root, config = Path(root), config or WorldConfig()
    specs = [spec for scenes in splits.values() for spec in scenes]
    if len({(spec.seed, spec.scene) for spec in specs}) != len(specs) or not specs:
        raise DatasetError(
            f"got {counted(len(specs), 'scene')}: need at least one, each in one split only"
        )
    parameters = world_parameters(splits, config)
    if root.exists():
        _refuse_other_content(root, parameters)
        return root
    with _renamed_when_complete(root) as folder:
        _write(folder, splits, torch.device(device), config, progress)
        _dump(folder / TABLE_VERSION / _PARAMETERS, parameters)
    return root


def unfinished_copies(root: Path | str) -> list[Path]:
    """Folders beside `root` that its writing left unfinished, or is still at.

    They are named, not removed. The number in the name is of a process, but it may be one of
    another machine on a shared disk, or of another container: that no process here has it does not
    show that nobody writes there.
    """
    root = Path(root)
    return sorted(root.parent.glob(f"{glob.escape(_unfinished_prefix(root))}*"))


def _unfinished_prefix(root: Path) -> str:
    return f".{root.name}.partial-"


def _refuse_other_content(root: Path, parameters: dict[str, Any]) -> None:
    path = root / TABLE_VERSION / _PARAMETERS
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise DatasetError(
            f"{root} exists and is no complete synthetic data set: delete it or name another folder"
        )
    different = differences(found, parameters)
    if different:
        raise DatasetError(
            f"{root} holds a synthetic data set of {'; '.join(different)}: "
            "delete it or name another folder"
        )


@contextmanager
def _renamed_when_complete(root: Path) -> Iterator[Path]:
    # Process numbers recur, in containers at once; the rest of the name is nobody else's.
    name = f"{_unfinished_prefix(root)}{os.getpid()}-{secrets.token_hex(4)}"
    folder = root.with_name(name)
    try:
        folder.mkdir(parents=True)
        yield folder
        folder.rename(root)
    except OSError as error:
        raise DatasetError(
            f"{root}: cannot be written ({error.strerror}); choose another folder, or make room"
        ) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _write(
    folder: Path,
    splits: Mapping[str, Sequence[SceneSpec]],
    device: torch.device,
    config: WorldConfig,
    progress: Callable[[int, int], None] | None,
) -> None:
    for name in ("samples/LIDAR_TOP", "sweeps/LIDAR_TOP", "maps", TABLE_VERSION):
        (folder / name).mkdir(parents=True)
    (folder / "maps/none.png").write_bytes(_ONE_PIXEL_PNG)
    specs = [spec for scenes in splits.values() for spec in scenes]
    tables = start_tables(config, [log_token(spec, config) for spec in specs])
    done = 0
    for group in group_scenes(specs, device):
        scenes = lay_out(group, config, device)
        for row, spec in enumerate(group):
            _write_scene(folder, tables, scenes, (row, spec), config)
            done += 1
            if progress is not None:
                progress(done, len(specs))
    for table, records in tables.records.items():
        _dump(folder / TABLE_VERSION / f"{table}.json", records)
    _dump(folder / TABLE_VERSION / "splits.json", split_names(splits))


def _write_scene(
    folder: Path,
    tables: Tables,
    scenes: Scenes,
    which: tuple[int, SceneSpec],
    config: WorldConfig,
) -> None:
    row, spec = which
    add_scene(tables, spec, config)
    lead, count = config.sweeps - 1, revolutions_of(spec, config)
    device = scenes.keys.device
    truths, poses = [], []
    for start in range(0, count, _REVOLUTIONS_AT_ONCE):
        numbers = torch.arange(start, min(start + _REVOLUTIONS_AT_ONCE, count), device=device)
        rows = torch.full_like(numbers, row)
        revolutions = spin(scenes, rows, numbers, config.lidar, lead)
        returns = fire(scenes, revolutions, config.lidar)
        _write_points(folder, spec, returns, numbers.tolist(), config)
        poses.append(ego_to_global(scenes, revolutions, config).cpu())
        keys = [i for i, number in enumerate(numbers.tolist()) if is_key_frame(number, config)]
        if keys:
            truths.append(annotate(scenes, revolutions, returns, config).at(keys))
    add_revolutions(tables, spec, torch.cat(poses), config)
    add_annotations(tables, spec, (scenes, row), truths, config)


def _write_points(
    folder: Path, spec: SceneSpec, returns: Returns, numbers: list[int], config: WorldConfig
) -> None:
    ring = torch.arange(config.lidar.rays, device=returns.thing.device) % config.lidar.rings
    for index, number in enumerate(numbers):
        columns = [axis[index] for axis in (*returns.xyz, returns.intensity)]
        points = torch.stack([*columns, ring.float()], dim=1).cpu().numpy()  # [rays, 5]
        points.astype(np.float32).tofile(folder / sweep_filename(spec, number, config))


def _dump(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content))
