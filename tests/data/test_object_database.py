import gc
import multiprocessing
import os
import pickle
import shutil
import signal
import weakref
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from nuscenes_objects import objects_of, write_filled_nuscenes
from nuscenes_world import CLASS_NAMES, VERSION, TinyNuScenes
from voxelquant.data.frame import Frame
from voxelquant.data.nuscenes import NuScenesDataset
from voxelquant.data.object_database import (
    DatabaseKey,
    ObjectDatabase,
    build_database,
    database_name,
)
from voxelquant.data.objects import ObjectsInMemory, cut_objects
from voxelquant.errors import DatasetError

# Python 3.12 warns that a process with threads forks; workers run no code of those threads.
WORKERS = pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> TinyNuScenes:
    return write_filled_nuscenes(tmp_path_factory.mktemp("filled"))


@pytest.fixture(scope="module")
def dataset(filled: TinyNuScenes) -> NuScenesDataset:
    return NuScenesDataset(filled.root, VERSION, "both", CLASS_NAMES, nsweeps=3)


@pytest.fixture(scope="module")
def built(dataset: NuScenesDataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("database") / database_name(dataset)
    build_database(dataset, path)
    return path


def test_every_object_with_points_is_there(dataset: NuScenesDataset, built: Path) -> None:
    database = ObjectDatabase(built)
    expected = objects_of(dataset)
    assert len(database.index) == len(expected) > 50
    assert set(database.index.names) == set(CLASS_NAMES)
    for row, (name, box, cloud) in enumerate(expected):
        assert database.index.names[database.index.kinds[row]] == name
        assert np.array_equal(database.index.boxes_det3d[row].numpy(), box)
        assert int(database.index.num_points[row]) == len(cloud)
        assert np.array_equal(database.points(row).numpy(), cloud)
    assert (database.index.difficulties == 0).all()


def test_the_file_is_plain_safetensors(built: Path) -> None:
    assert built.name == "object_database_v1.0-tiny_both_3sweeps.safetensors"
    tensors = load_file(built)
    assert set(tensors) == {"points", "boxes_det3d", "kinds", "num_points"}
    assert tensors["points"].shape == (int(tensors["num_points"].sum()), 5)
    assert list(built.parent.iterdir()) == [built]


@WORKERS
def test_workers_change_nothing(dataset: NuScenesDataset, built: Path, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    path = tmp_path / "other.safetensors"
    build_database(dataset, path, num_workers=2, progress=lambda *done: seen.append(done))
    assert path.read_bytes() == built.read_bytes()
    assert seen == [(done, 6) for done in range(1, 7)]


def test_objects_in_memory_are_those_of_the_file(dataset: NuScenesDataset, built: Path) -> None:
    ours, theirs = ObjectsInMemory(iter(dataset), CLASS_NAMES), ObjectDatabase(built)
    assert torch.equal(ours.index.kinds, theirs.index.kinds.long())
    assert torch.equal(ours.index.boxes_det3d, theirs.index.boxes_det3d)
    for row in range(len(ours.index)):
        assert torch.equal(ours.points(row), theirs.points(row))


def test_a_point_in_two_boxes_belongs_to_both() -> None:
    box = torch.tensor([[1.0, 0, 0, 2, 4, 2, 0, 0, 0]])
    frame = Frame(
        token="t",
        points=torch.tensor([[1.0, 0, 0, 7, 0], [9.0, 9, 0, 7, 0]]),
        boxes_det3d=torch.cat((box, box + 0.1, box + 50)),
        labels=torch.tensor([0, 1, 2]),
        num_lidar_pts=None,
        ref_to_ego=torch.eye(4),
        ego_to_global=torch.eye(4),
        timestamp=0.0,
    )
    cut = cut_objects(frame)
    assert cut.labels.tolist() == [0, 1]
    assert cut.num_points.tolist() == [1, 1]
    assert torch.equal(cut.points[:, :3], frame.points[:1, :3] - cut.boxes_det3d[:, :3])
    assert frame.points[0, 0] == 1.0  # untouched
    with pytest.raises(DatasetError, match="frame t has no annotations"):
        cut_objects(replace(frame, boxes_det3d=None))
    with pytest.raises(DatasetError, match="no frames"):
        ObjectsInMemory([], CLASS_NAMES)


class Watched(NuScenesDataset):
    """Counts its frames that are alive whenever another one is read."""

    def __init__(self, root: Path) -> None:
        super().__init__(root, VERSION, "both", CLASS_NAMES, nsweeps=1)
        self.frames: list[weakref.ref[Frame]] = []
        self.most = 0

    def __getitem__(self, index: int) -> Frame:
        gc.collect()
        self.most = max(self.most, sum(frame() is not None for frame in self.frames))
        frame = super().__getitem__(index)
        self.frames.append(weakref.ref(frame))
        return frame


def test_no_more_than_a_frame_is_held(filled: TinyNuScenes, tmp_path: Path) -> None:
    dataset = Watched(filled.root)
    build_database(dataset, tmp_path / "database.safetensors")
    assert len(dataset.frames) == 6
    assert dataset.most <= 1


class Deadly(NuScenesDataset):
    """Kills the process that reads its fourth frame."""

    def __getitem__(self, index: int) -> Frame:
        if index == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__getitem__(index)


@WORKERS
def test_a_killed_builder_leaves_no_database(filled: TinyNuScenes, tmp_path: Path) -> None:
    dataset = Deadly(filled.root, VERSION, "both", CLASS_NAMES, nsweeps=1)
    path = tmp_path / database_name(dataset)
    builder = multiprocessing.get_context("fork").Process(
        target=build_database, args=(dataset, path)
    )
    builder.start()
    builder.join()
    assert builder.exitcode == -signal.SIGKILL
    (left,) = tmp_path.iterdir()  # it was at work
    assert left != path
    with pytest.raises(DatasetError, match="object database"):
        ObjectDatabase(left)


def test_a_frame_that_cannot_be_read_leaves_nothing(filled: TinyNuScenes, tmp_path: Path) -> None:
    root = tmp_path / "data"
    shutil.copytree(filled.root, root)
    (root / "samples/LIDAR_TOP/scene-b-05.pcd.bin").write_bytes(b"cut")
    dataset = NuScenesDataset(root, VERSION, "both", CLASS_NAMES, nsweeps=1)
    with pytest.raises(DatasetError, match=r"scene-b-05.*truncated"):
        build_database(dataset, tmp_path / "out" / "database.safetensors")
    assert not list((tmp_path / "out").iterdir())


def test_frames_without_objects_make_an_empty_database(
    filled: TinyNuScenes, tmp_path: Path
) -> None:
    dataset = NuScenesDataset(filled.root, VERSION, "both", ["construction_vehicle"], nsweeps=1)
    build_database(dataset, tmp_path / "empty.safetensors")
    assert len(ObjectDatabase(tmp_path / "empty.safetensors").index) == 0


def test_it_opens_its_own_file_in_another_process(built: Path) -> None:
    database = ObjectDatabase(built)
    sent = pickle.dumps(database)
    assert len(sent) < 30_000
    copy = pickle.loads(sent)
    assert torch.equal(copy.points(5), database.points(5))
    assert copy.key == database.key


def damages(good: bytes, folder: Path) -> Iterator[bytes]:
    yield b""
    yield b"no such thing" * 100
    yield good[: len(good) // 2]
    yield good[:-4]
    save_file({"points": torch.zeros(3, 5)}, folder / "foreign")
    yield (folder / "foreign").read_bytes()
    yield good.replace(b'\\"format\\": 2', b'\\"farmot\\": 2')
    missing = bytearray(good)
    missing[-4:] = bytes(4)  # points that belong to no object
    yield bytes(missing)
    counts = np.frombuffer(good[-8:], np.int32)
    moved = np.array([counts.sum(), 0], np.int32)  # an object without points
    yield good[:-8] + moved.tobytes()
    wrong = bytearray(good)
    start = good.index(b'"kinds"')
    count = ObjectDatabase(folder / "good").index.kinds.numel()
    assert start > 0
    wrong[-8 * count : -4 * count] = b"\x7f" * (4 * count)  # classes that are not there
    yield bytes(wrong)


def test_damaged_files_are_named(built: Path, tmp_path: Path) -> None:
    shutil.copy(built, tmp_path / "good")
    kinds = 0
    for content in damages(built.read_bytes(), tmp_path):
        path = tmp_path / f"bad{kinds}.safetensors"
        path.write_bytes(content)
        assert content != built.read_bytes()
        with pytest.raises(DatasetError, match=path.name) as caught:
            ObjectDatabase(path)
        assert "\n" not in str(caught.value)
        kinds += 1
    assert kinds == 9
    with pytest.raises(DatasetError, match="absent"):
        ObjectDatabase(tmp_path / "absent.safetensors")


def test_the_key_tells_other_frames_apart(filled: TinyNuScenes, tmp_path: Path) -> None:
    def key(split: str = "both", nsweeps: int = 3, names: tuple[str, ...] = CLASS_NAMES) -> str:
        dataset = NuScenesDataset(filled.root, VERSION, split, names, nsweeps)
        difference = DatabaseKey.of(dataset).difference(reference)
        return difference or ""

    dataset = NuScenesDataset(filled.root, VERSION, "both", CLASS_NAMES, nsweeps=3)
    reference = DatabaseKey.of(dataset)
    assert key() == ""
    assert key(names=CLASS_NAMES[::-1]) == ""  # labels stand in the file by name
    assert key("fit").startswith("annotations was v1.0-tiny_fit, is v1.0-tiny_both")
    assert key(nsweeps=2) == "nsweeps was 2, is 3"
    assert key(names=CLASS_NAMES[:2]).startswith("classes was ('car', 'truck'), is")
    annotations = filled.root / VERSION / "sample_annotation.json"
    text = annotations.read_text()
    annotations.write_text(text.replace("1", "2", 1))  # of the same size
    assert key().startswith("annotation digest was ")
    annotations.write_text(text)
    changed = replace(reference, annotation_digest="another")
    assert "annotation digest" in str(reference.difference(changed))
    assert "frame digest" in str(reference.difference(replace(reference, frame_digest="0")))
    assert "frames was 6, is 5" in str(reference.difference(replace(reference, frames=5)))
    assert "format" in str(reference.difference(replace(reference, format=1)))
