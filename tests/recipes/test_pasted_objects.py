import io
import shutil
import threading
from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

import pytest
import torch

from nuscenes_objects import write_det3d_database, write_filled_nuscenes
from nuscenes_world import CLASS_NAMES, VERSION
from voxelquant.data.augment import Augmentation
from voxelquant.data.det3d_objects import Det3dObjects
from voxelquant.data.frame import Frame
from voxelquant.data.nuscenes import NuScenesDataset
from voxelquant.data.object_database import ObjectDatabase, database_name
from voxelquant.data.object_sampler import ObjectSampler
from voxelquant.data.sampling import Shard
from voxelquant.data.synthetic import WorldConfig
from voxelquant.detection.config import DetectorConfig, load_config
from voxelquant.errors import BadInputError, DatasetError
from voxelquant.recipes import pasted_objects
from voxelquant.recipes.distributed import World
from voxelquant.recipes.pasted_objects import (
    PastingOptions,
    dataset_object_sampler,
    synthetic_object_sampler,
)
from voxelquant.recipes.progress import StageReporter
from voxelquant.recipes.training_source import (
    DatasetSource,
    DropBoxesOutside,
    SyntheticSource,
    training_transforms,
)

BALANCED = WorldConfig(class_mix="balanced")
WORKERS = pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")


def config_with(**sampler: Any) -> DetectorConfig:
    config = load_config("centerpoint_tiny").model_dump()
    config["train"]["object_sampler"] = {
        "info_path": "data/nuScenes/dbinfos.pkl",
        "sample_groups": dict.fromkeys(CLASS_NAMES, 4),
        **sampler,
    }
    config["data"] |= {"root": "data/nuScenes", "nsweeps": 2}
    return DetectorConfig.model_validate(config)


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_filled_nuscenes(tmp_path_factory.mktemp("filled")).root


@pytest.fixture
def root(filled: Path, tmp_path: Path) -> Path:
    shutil.copytree(filled, tmp_path / "data")
    return tmp_path / "data"


def open_fit(root: Path, nsweeps: int = 2, split: str = "fit") -> NuScenesDataset:
    return NuScenesDataset(root, VERSION, split, CLASS_NAMES, nsweeps)


class Setting:
    """A dataset and a work dir, and what is said while the sampler is opened."""

    def __init__(self, root: Path, work_dir: Path) -> None:
        self.root = root
        self.work_dir = work_dir
        self.cache = root / database_name(open_fit(root))

    def open(self, config: DetectorConfig | None = None, **options: Any) -> list[str]:
        """What is said while the sampler is opened; the sampler is `self.sampler`."""
        stream = io.StringIO()
        nsweeps, world = options.pop("nsweeps", 2), options.pop("world", None)
        self.sampler = dataset_object_sampler(
            config or config_with(),
            open_fit(self.root, nsweeps),
            PastingOptions(self.work_dir, **options),
            reporter=StageReporter(stream),
            world=world,
        )
        return stream.getvalue().splitlines()


@pytest.fixture
def setting(root: Path, tmp_path: Path) -> Setting:
    return Setting(root, tmp_path / "work")


def test_the_first_use_builds_and_the_next_reads(setting: Setting) -> None:
    built, used, lacking = setting.open()
    assert built.startswith(f"cutting the objects of 3 frames into {setting.cache} ... ")
    assert used == f"pasting objects of {setting.cache} (28 objects)"
    assert lacking.startswith("note: none of truck, construction_vehicle is pasted")
    before = setting.cache.stat()
    assert setting.open() == [used, lacking]
    assert setting.cache.stat().st_mtime_ns == before.st_mtime_ns
    assert not setting.work_dir.exists()
    assert isinstance(setting.sampler, ObjectSampler)
    assert isinstance(setting.sampler.source, ObjectDatabase)


def test_a_config_without_sampler_is_left_alone(setting: Setting) -> None:
    files = sorted(setting.root.rglob("*"))
    assert setting.open(load_config("centerpoint_tiny")) == []
    assert setting.sampler is None
    assert sorted(setting.root.rglob("*")) == files
    synthetic = synthetic_object_sampler(
        load_config("centerpoint_tiny"),
        0,
        2,
        world_config=WorldConfig(),
        device="cpu",
        reporter=StageReporter(),
    )
    assert synthetic is None
    with pytest.raises(AssertionError, match="goes unheeded"):
        training_transforms(config_with())


def test_objects_are_pasted_before_all_else(setting: Setting) -> None:
    setting.open()
    transforms = training_transforms(config_with(), setting.sampler)
    kinds = [type(transform) for transform in transforms]
    assert kinds == [ObjectSampler, Augmentation, DropBoxesOutside]


def annotate_once_more(root: Path) -> None:
    table = root / VERSION / "sample_annotation.json"
    table.write_text(table.read_text().replace("[", "[ ", 1))


def cut_off(root: Path) -> None:
    path = root / database_name(open_fit(root))
    path.write_bytes(path.read_bytes()[:-100])


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (annotate_once_more, "out of date (annotation digest was"),
        (cut_off, "cannot be read as an object database"),
    ],
)
def test_a_stale_or_damaged_database_is_built_again(
    setting: Setting, change: Callable[[Path], None], reason: str
) -> None:
    setting.open()
    good = setting.cache.read_bytes()
    change(setting.root)
    why, built, *_ = setting.open()
    assert why.startswith(f"{setting.cache}: {reason}")
    assert why.endswith("; building it again")
    assert built.startswith("cutting the objects of 3 frames")
    assert len(setting.cache.read_bytes()) == len(good)
    assert len(setting.open()) == 2


def test_another_number_of_sweeps_is_another_database(setting: Setting) -> None:
    setting.open()
    assert setting.open(nsweeps=1)[0].startswith("cutting")
    assert sorted(path.name for path in setting.root.glob("object_*")) == [
        "object_database_v1.0-tiny_fit_1sweeps.safetensors",
        "object_database_v1.0-tiny_fit_2sweeps.safetensors",
    ]


def forbid_writing(monkeypatch: pytest.MonkeyPatch, *folders: Path) -> None:
    """As a read-only file system does, even to a user who may do anything."""
    touch = Path.touch

    def refuse(path: Path, *args: Any, **kwargs: Any) -> None:
        if any(path.is_relative_to(folder) for folder in folders):
            raise PermissionError(13, "Permission denied")
        touch(path, *args, **kwargs)

    monkeypatch.setattr(Path, "touch", refuse)


def test_an_unwritable_dataset_gets_its_database_in_the_work_dir(
    setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    forbid_writing(monkeypatch, setting.root)
    path = setting.work_dir / setting.cache.name
    told, built, used, _ = setting.open()
    assert told == f"{setting.root} cannot be written; the object database goes to {path.parent}"
    assert str(path) in built
    assert str(path) in used
    assert setting.open()[0] == used
    assert not list(setting.root.glob("object_*"))


def test_nowhere_to_write_is_one_clear_line(
    setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    forbid_writing(monkeypatch, setting.root, setting.work_dir)
    with pytest.raises(DatasetError, match="cannot be written") as caught:
        setting.open()
    assert "\n" not in str(caught.value)
    assert str(setting.work_dir) in str(caught.value)


def test_det3ds_database_is_read_where_it_is(setting: Setting) -> None:
    path = write_det3d_database(open_fit(setting.root), setting.root, "dbinfos.pkl")
    used, _ = setting.open()
    assert used == f"pasting objects of {path} (28 objects)"
    assert setting.sampler is not None
    assert isinstance(setting.sampler.source, Det3dObjects)
    assert not setting.cache.exists()
    # Whoever names a split trains on other frames than those that det3d's database is made of.
    assert str(setting.cache) in setting.open(split_named=True)[0]
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(DatasetError, match=r"dbinfos.pkl: not a complete pickle"):
        setting.open()


def test_nothing_to_paste_stops_the_run(setting: Setting) -> None:
    with pytest.raises(DatasetError, match=r"none of 28 objects can be pasted") as caught:
        setting.open(config_with(sample_groups={"truck": 3}))
    assert str(caught.value).startswith(f"{setting.cache}: ")
    with pytest.raises(BadInputError, match="got class lorry"):
        setting.open(config_with(sample_groups={"lorry": 3}))


class Meeting:
    """Where the threads that stand in for processes gather."""

    def __init__(self, size: int) -> None:
        self.barrier = threading.Barrier(size, timeout=20)
        self.values: list[Any] = [None] * size
        self.rounds = 0


@dataclass(frozen=True)
class ThreadWorld(World):
    meeting: Meeting

    def gather(self, value: Any) -> list[Any]:
        meeting = self.meeting
        meeting.values[self.shard.rank] = value
        meeting.barrier.wait()
        values = list(meeting.values)
        if self.is_main:
            meeting.rounds += 1
        meeting.barrier.wait()
        return values


def together(setting: Setting) -> tuple[Meeting, list[list[str] | Exception]]:
    """What each of two processes says, or raises."""
    meeting = Meeting(2)
    outcomes: list[list[str] | Exception] = [[], []]

    def run(rank: int) -> None:
        own = Setting(setting.root, setting.work_dir)
        try:
            outcomes[rank] = own.open(world=ThreadWorld(Shard(rank, 2), "cpu", meeting))
        except BadInputError as error:
            outcomes[rank] = error

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return meeting, outcomes


def test_one_process_builds_while_the_others_wait(
    setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pasted_objects, "_BEAT_S", 0.0)
    meeting, (first, second) = together(setting)
    assert isinstance(first, list)
    assert [line.split()[0] for line in first] == ["cutting", "pasting", "note:"]
    assert second == []
    assert meeting.rounds == 4  # a sign of life after each of three frames, and the path
    meeting, (first, second) = together(setting)
    assert meeting.rounds == 1
    assert isinstance(first, list)
    assert first[0].startswith("pasting")


def test_what_stops_the_builder_stops_all(setting: Setting) -> None:
    (setting.root / "samples/LIDAR_TOP/scene-a-05.pcd.bin").unlink()
    _, outcomes = together(setting)
    assert [str(outcome) for outcome in outcomes] == [str(outcomes[0])] * 2
    assert all(isinstance(outcome, DatasetError) for outcome in outcomes)
    assert "scene-a-05.pcd.bin: cannot be read" in str(outcomes[0])
    assert not list(setting.root.glob("object_*"))


def batches(setting: Setting, first_step: int, steps: int, num_workers: int) -> list[list[Frame]]:
    setting.open()
    source = DatasetSource(
        open_fit(setting.root),
        range(3),
        seed=11,
        device="cpu",
        transforms=training_transforms(config_with(), setting.sampler),
        num_workers=num_workers,
    )
    return list(islice(source.batches(first_step, 1), steps))


def assert_same(ours: list[list[Frame]], theirs: list[list[Frame]]) -> None:
    assert len(ours) == len(theirs)
    for mine, other in zip(chain(*ours), chain(*theirs), strict=True):
        assert torch.equal(mine.points, other.points)
        assert torch.equal(mine.boxes_det3d, other.boxes_det3d)
        assert torch.equal(mine.labels, other.labels)


@WORKERS
def test_what_is_pasted_follows_from_the_step_alone(setting: Setting) -> None:
    unbroken = batches(setting, 0, 7, num_workers=0)
    assert max(len(frame.labels) for batch in unbroken for frame in batch) > 12  # type: ignore[arg-type]
    assert_same(batches(setting, 0, 7, num_workers=2), unbroken)
    assert_same(batches(setting, 4, 3, num_workers=1), unbroken[4:])


def test_the_synthetic_world_lends_its_first_frames() -> None:
    config = config_with(sample_groups={"car": 100, "pedestrian": 3}, min_points={"car": 5})
    stream = io.StringIO()

    def source() -> SyntheticSource:
        pasting = synthetic_object_sampler(
            config,
            3,
            2,
            world_config=BALANCED,
            device="cpu",
            reporter=StageReporter(stream),
        )
        transforms = training_transforms(config, pasting)
        return SyntheticSource(
            seed=3,
            pool_size=2,
            turnover=0,
            device="cpu",
            transforms=transforms,
            world_config=BALANCED,
        )

    unbroken = source()
    plain = unbroken.draw(0, 1)[0]
    augmented = list(islice(unbroken.batches(0, 1), 2))
    assert len(augmented[0][0].points) > len(plain.points) + 5
    assert_same(list(islice(source().batches(1, 1), 1)), augmented[1:])
    lines = stream.getvalue().splitlines()
    assert lines[0].startswith("cutting objects out of 2 synthetic frames ... ")
    assert lines[1].startswith("pasting objects of 2 synthetic frames (")
