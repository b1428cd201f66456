"""Write a synthetic LiDAR world to disk, in nuScenes v1.0 format."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from voxelquant.data.synthetic import (
    DEFAULT_CLASS_MIX,
    TABLE_VERSION,
    ClassMix,
    SceneSpec,
    WorldConfig,
    count_visible_instances,
    unfinished_copies,
    write_dataset,
)
from voxelquant.data.tables import VERSION_SUFFIX
from voxelquant.errors import DatasetError
from voxelquant.plural import counted
from voxelquant.recipes.device import choose_device
from voxelquant.recipes.progress import StageReporter

TRAIN_SPLIT, VAL_SPLIT = "synthetic_train", "synthetic_val"
_VAL_SHARE = 4  # of the scenes, one in so many validates


@dataclass(frozen=True)
class SynthRequest:
    """What the command line asks for.

    Attributes:
        out: data root to make.
        scenes: scenes in all, of which a quarter validates; not together with `splits`.
        seed: world seed; scenes of different seeds are disjoint.
        key_frames: key frames a scene, half a second apart.
        splits: `NAME=SCENES` of each split.
        device: where the points are made.
        class_mix: classes as frequent as in nuScenes (the default), or balanced for small sets.
    """

    out: Path
    scenes: int | None = None
    seed: int = 0
    key_frames: int = 2
    splits: tuple[str, ...] = ()
    device: str = "auto"
    class_mix: ClassMix | None = None


@dataclass(frozen=True)
class WrittenWorld:
    """What lies on disk."""

    root: Path
    version: str
    key_frames: dict[str, int]  # by split
    instances: dict[str, dict[str, int]]  # by split and class, as far as the metric can see


def run_synth(request: SynthRequest, reporter: StageReporter) -> WrittenWorld:
    """Write the dataset, or keep the one of the same parameters that lies there.

    Raises:
        DatasetError: unusable splits, another dataset in `out`, or a folder that cannot be written.
    """
    counts = scenes_of_splits(request.scenes, request.splits)
    splits: dict[str, Sequence[SceneSpec]] = {}
    first = 0
    for name, count in counts.items():
        numbers = range(first, first + count)
        splits[name] = [SceneSpec(request.seed, n, request.key_frames) for n in numbers]
        first += count
    say_unfinished(request.out, reporter)
    title = f"writing {counted(first, 'scene')} of seed {request.seed}"
    with reporter.stage("synth", title) as advance:
        device = choose_device(request.device)
        config = WorldConfig(class_mix=request.class_mix or DEFAULT_CLASS_MIX)
        write_dataset(request.out, splits, device=device, config=config, progress=advance)
    tables = request.out / TABLE_VERSION
    return WrittenWorld(
        root=request.out,
        version=TABLE_VERSION,
        key_frames={name: count * request.key_frames for name, count in counts.items()},
        instances={name: count_visible_instances(tables, name) for name in counts},
    )


def say_unfinished(root: Path, reporter: StageReporter) -> None:
    """Before a data set is written, name what a killed writing of it left beside it."""
    copies = unfinished_copies(root)
    if copies and not root.exists():
        names = ", ".join(map(str, copies))
        reporter.say(f"note: {names}: unfinished; delete it unless a run is still writing there")


def scenes_of_splits(scenes: int | None, splits: Sequence[str]) -> dict[str, int]:
    """Scenes of each split.

    Raises:
        DatasetError: neither or both are given, or a split cannot be used.

    >>> scenes_of_splits(8, [])
    {'synthetic_train': 6, 'synthetic_val': 2}
    >>> scenes_of_splits(None, ["calibration=3", "night_val=1"])
    {'calibration': 3, 'night_val': 1}
    """
    if (scenes is None) != bool(splits):
        raise DatasetError("need either --scenes N or one --split NAME=SCENES after the other")
    if scenes is not None:
        if scenes < 2:
            raise DatasetError(f"got {counted(scenes, 'scene')}, need 2: one trains, one validates")
        val = max(1, scenes // _VAL_SHARE)
        return {TRAIN_SPLIT: scenes - val, VAL_SPLIT: val}
    parsed = [_parse_split(split) for split in splits]
    repeated = [name for name, count in Counter(name for name, _ in parsed).items() if count > 1]
    if repeated:
        raise DatasetError(f"got split {repeated[0]} more than once, need each name once")
    return dict(parsed)


def _parse_split(text: str) -> tuple[str, int]:
    found = re.fullmatch(r"([A-Za-z][\w-]*)=([1-9]\d{0,5})", text)
    if found is None:
        raise DatasetError(f"got split {text!r}, need NAME=SCENES, synthetic_val=10 say")
    name = found[1]
    if name in VERSION_SUFFIX:
        raise DatasetError(
            f"got split {name}, but the devkit keeps that name for v1.0-{VERSION_SUFFIX[name]}; "
            f"take synthetic_{name}"
        )
    return name, int(found[2])
