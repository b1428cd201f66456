"""The objects that training pastes: found, or cut out of the training frames on first use."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from voxelquant.atomic_file import open_sibling
from voxelquant.data.det3d_objects import Det3dObjects
from voxelquant.data.frame import Frame
from voxelquant.data.object_database import (
    DatabaseKey,
    ObjectDatabase,
    build_database,
    database_name,
)
from voxelquant.data.object_sampler import ObjectSampler
from voxelquant.data.objects import ObjectsInMemory, ObjectSource
from voxelquant.data.records import FrameDataset
from voxelquant.data.sampling import Shard
from voxelquant.data.synthetic import WorldConfig, generate_frames
from voxelquant.detection.config import DetectorConfig
from voxelquant.errors import BadInputError, DatasetError
from voxelquant.plural import counted
from voxelquant.recipes.datasets import find_det3d_file
from voxelquant.recipes.distributed import World
from voxelquant.recipes.progress import StageReporter
from voxelquant.recipes.training_source import keep_seen_boxes

_SYNTHETIC_FRAMES = 256  # hold some thousands of objects, about 100 MB
_FRAMES_AT_ONCE = {"cpu": 16, "cuda": 64}  # a GPU takes hardly longer for 64 than for 16
_BEAT_S = 60.0  # collectives give up after some ten minutes, building can take hours


@dataclass(frozen=True)
class PastingOptions:
    """How the objects of a dataset are come by.

    Attributes:
        work_dir: where the database goes if the dataset's folder cannot be written.
        split_named: whether the user named a split. Then det3d's database, which was made of
            another set of frames for all we know, is not read.
        num_workers: processes that read frames while the database is built.
    """

    work_dir: Path
    split_named: bool = False
    num_workers: int = 0


def dataset_object_sampler(
    config: DetectorConfig,
    dataset: FrameDataset,
    options: PastingOptions,
    *,
    reporter: StageReporter,
    world: World | None = None,
) -> ObjectSampler | None:
    """The config's object sampler over det3d's database if it is there, else over our own.

    Ours is built by the main process where it is missing, damaged or of other frames, while the
    others wait.

    Returns:
        None if the config has no object sampler.

    Raises:
        BadInputError: the database can neither be read nor built, or holds nothing to paste.
    """
    settings = config.train.object_sampler
    if settings is None:
        return None
    world = world or World(Shard(), "cpu")
    det3d = None
    if not options.split_named:
        det3d = find_det3d_file(config, dataset.root, settings.info_path)
    source: Det3dObjects | ObjectDatabase
    if det3d is not None:
        source = Det3dObjects(det3d, dataset.root, config.class_names)
    else:
        source = ObjectDatabase(_database_for_all(dataset, options, reporter, world))
    return _sampler(config, source, str(source.path), reporter if world.is_main else None)


def synthetic_object_sampler(
    config: DetectorConfig,
    seed: int,
    pool_size: int,
    *,
    world_config: WorldConfig,
    device: torch.device | str,
    reporter: StageReporter,
) -> ObjectSampler | None:
    """The config's object sampler over objects of the synthetic world's first frames.

    They stay as they are while the pool of frames goes on: what is pasted must follow from seed
    and step, in a run that was resumed as well.

    Returns:
        None if the config has no object sampler.

    Raises:
        BadInputError: these frames hold nothing to paste.
    """
    if config.train.object_sampler is None:
        return None
    n = min(pool_size, _SYNTHETIC_FRAMES)
    at_once = _FRAMES_AT_ONCE.get(torch.device(device).type, 16)
    with reporter.stage("objects", f"cutting objects out of {n} synthetic frames") as advance:

        def frames() -> Iterator[Frame]:
            for begin in range(0, n, at_once):
                scenes = range(begin, min(n, begin + at_once))
                yield from generate_frames(
                    seed, scenes, key_frames=1, device=device, config=world_config
                )
                advance(scenes.stop, n)

        source = ObjectsInMemory(map(keep_seen_boxes, frames()), config.class_names)
    return _sampler(config, source, f"{n} synthetic frames", reporter)


def _sampler(
    config: DetectorConfig, source: ObjectSource, origin: str, reporter: StageReporter | None
) -> ObjectSampler:
    assert config.train.object_sampler is not None
    try:
        sampler = ObjectSampler(source, config.class_names, config.train.object_sampler)
    except DatasetError as error:
        raise DatasetError(f"{origin}: {error}") from error
    if reporter is not None:
        reporter.say(f"pasting objects of {origin} ({counted(len(source.index), 'object')})")
        if sampler.lacking:
            reporter.say(
                f"note: none of {', '.join(sampler.lacking)} is pasted: no such object there "
                "passes object_sampler's min_points and removed_difficulties"
            )
    return sampler


def _database_for_all(
    dataset: FrameDataset, options: PastingOptions, reporter: StageReporter, world: World
) -> Path:
    """Path of the dataset's database, which the main process has built if need be.

    While it builds, the main process takes part in a collective now and then, so that the others,
    who wait in it, do not give up. A failure of the main process stops all of them.
    """
    outcome: Path | str | None = None
    if world.is_main:
        beat = _Beat(lambda: world.gather(None))
        try:
            outcome = find_or_build_database(dataset, options, reporter, beat)
        except BadInputError as error:
            outcome = str(error)
        world.gather(outcome)
    while outcome is None:
        outcome = world.gather(None)[0]
    if isinstance(outcome, str):
        raise DatasetError(outcome)
    return outcome


class _Beat:
    """Calls a function once a minute, however often it is called."""

    def __init__(self, act: Callable[[], object]) -> None:
        self._act = act
        self._last = time.monotonic()

    def __call__(self) -> None:
        if time.monotonic() - self._last > _BEAT_S:
            self._act()
            self._last = time.monotonic()


def find_or_build_database(
    dataset: FrameDataset,
    options: PastingOptions,
    reporter: StageReporter,
    beat: Callable[[], None] | None = None,
) -> Path:
    """Path of the dataset's own database: in its folder, or else in the work dir.

    Args:
        dataset: annotated frames.
        options: work dir, workers.
        reporter: says what is built, and why.
        beat: called after every frame.

    Raises:
        DatasetError: neither folder can be written, or a frame cannot be read.
    """
    key, name = DatabaseKey.of(dataset), database_name(dataset)
    places = [dataset.root / name, options.work_dir / name]
    defects = []
    for path in filter(Path.exists, places):
        defect = _defect(path, key)
        if defect is None:
            return path
        defects.append(f"{defect}; building it again")
    for line in defects:
        reporter.say(line)
    path = _writable(places, reporter)
    text = f"cutting the objects of {counted(len(dataset), 'frame')} into {path}"
    with reporter.stage("objects", text) as advance:

        def progress(done: int, total: int) -> None:
            advance(done, total)
            if beat is not None:
                beat()

        build_database(dataset, path, num_workers=options.num_workers, progress=progress)
    return path


def _defect(path: Path, key: DatabaseKey) -> str | None:
    """Why a file does not serve as the database, in one line; None if it does."""
    try:
        built_from = ObjectDatabase(path).key
    except DatasetError as error:
        return str(error)
    difference = built_from.difference(key)
    return None if difference is None else f"{path}: out of date ({difference})"


def _writable(places: list[Path], reporter: StageReporter) -> Path:
    """The first place where a file can be made."""
    first, last = places
    try:
        open_sibling(first, DatasetError).unlink()
    except DatasetError:
        reporter.say(f"{first.parent} cannot be written; the object database goes to {last.parent}")
        open_sibling(last, DatasetError).unlink()
        return last
    return first
