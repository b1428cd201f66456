import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nuscenes_objects import write_det3d_database, write_filled_nuscenes
from nuscenes_world import CLASS_NAMES, VERSION
from voxelquant.data.det3d_objects import Det3dObjects
from voxelquant.data.nuscenes import NuScenesDataset
from voxelquant.data.objects import ObjectsInMemory
from voxelquant.errors import DatasetError

Row = dict[str, Any]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> NuScenesDataset:
    root = write_filled_nuscenes(tmp_path_factory.mktemp("filled")).root
    dataset = NuScenesDataset(root, VERSION, "fit", CLASS_NAMES, nsweeps=2)
    write_det3d_database(dataset, root)
    return dataset


@pytest.fixture
def database(dataset: NuScenesDataset, tmp_path: Path) -> Path:
    """A copy to be changed."""
    shutil.copytree(dataset.root / "gt_database_10sweeps_withvelo", tmp_path / "gt_database")
    path = tmp_path / "dbinfos.pkl"
    path.write_bytes((dataset.root / "dbinfos_train_10sweeps_withvelo.pkl").read_bytes())
    change(path, lambda row: row.update(path=row["path"].replace("_10sweeps_withvelo", "")))
    return path


def change(path: Path, edit: Callable[[Row], object], name: str = "") -> None:
    """Edit the objects of one class, or all."""
    infos = pickle.loads(path.read_bytes())
    for row in [row for kind, rows in infos.items() for row in rows if name in ("", kind)]:
        edit(row)
    path.write_bytes(pickle.dumps(infos))


def test_objects_are_those_of_the_frames(dataset: NuScenesDataset, database: Path) -> None:
    theirs = Det3dObjects(database, database.parent, CLASS_NAMES)
    ours = ObjectsInMemory(iter(dataset), CLASS_NAMES)
    assert len(theirs.index) == len(ours.index)
    assert set(theirs.index.names) == set(CLASS_NAMES) - {"truck", "construction_vehicle"}
    order = torch.argsort(ours.index.kinds, stable=True)  # theirs stand class by class
    for row, other in enumerate(order.tolist()):
        assert theirs.index.names[theirs.index.kinds[row]] == CLASS_NAMES[ours.index.kinds[other]]
        assert torch.equal(theirs.index.boxes_det3d[row], ours.index.boxes_det3d[other])
        assert int(theirs.index.num_points[row]) == int(ours.index.num_points[other])
        assert torch.equal(theirs.points(row), ours.points(other))
    only = Det3dObjects(database, database.parent, ["bus"])
    assert only.index.names == ("bus",)
    assert len(only.index) == 3


def test_boxes_are_read_as_frames_have_them(database: Path) -> None:
    box = np.array([1, 2, 3, 2, 4, 1.5, np.nan, np.nan, 4.0])
    change(database, lambda row: row.update(box3d_lidar=box, difficulty=2), "bus")
    index = Det3dObjects(database, database.parent, ["bus"]).index
    assert torch.allclose(
        index.boxes_det3d[0], torch.tensor([1, 2, 3, 2, 4, 1.5, 0, 0, 4.0 - 2 * torch.pi])
    )
    assert index.difficulties.tolist() == [2, 2, 2]


def test_a_moved_dataset_is_found_by_the_folder(database: Path) -> None:
    change(database, lambda row: row.update(path=f"/gone/nuScenes/{row['path']}"))
    assert len(Det3dObjects(database, database.parent, CLASS_NAMES).points(0)) > 0


class Attack:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch executed",)


def test_a_pickle_that_names_code_is_refused(
    database: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    database.write_bytes(pickle.dumps({"car": [Attack()]}))
    with pytest.raises(DatasetError, match=r"dbinfos.pkl: names \w+.system.*not executed"):
        Det3dObjects(database, database.parent, CLASS_NAMES)
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda row: row.update(path="../gt_database/../../x.bin"), "need a path with a folder"),
        (lambda row: row.update(path="elsewhere/x.bin"), "need a path with a folder gt_database"),
        (lambda row: row.pop("path"), "KeyError: 'path'"),
        (lambda row: row.pop("num_points_in_gt"), "num_points_in_gt"),
        (lambda row: row.update(box3d_lidar=np.zeros(7)), r"box3d_lidar \(7,\), need \[9\]"),
        (lambda row: row.update(box3d_lidar=np.full(9, np.inf)), "a box is not finite"),
        (lambda row: row.update(path="gt_database/absent.bin"), "absent.bin, which is missing"),
    ],
)
def test_bad_objects_are_named(database: Path, edit: Callable[[Row], object], message: str) -> None:
    change(database, edit, "car")
    with pytest.raises(DatasetError, match=message) as caught:
        Det3dObjects(database, database.parent, CLASS_NAMES)
    assert str(database) in str(caught.value)
    assert "create the database again" in str(caught.value)


@pytest.mark.parametrize("content", [[], {"car": 1}, {"car": [1]}])
def test_other_layouts_are_refused(database: Path, content: object) -> None:
    database.write_bytes(pickle.dumps(content))
    with pytest.raises(DatasetError, match=r"dbinfos.pkl: .*create the database again"):
        Det3dObjects(database, database.parent, CLASS_NAMES)


def test_point_files_are_checked_when_they_are_read(database: Path) -> None:
    objects = Det3dObjects(database, database.parent, ["car"])
    file = database.parent / "gt_database" / "0_car_0.bin"
    file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(DatasetError, match=r"0_car_0.bin: got \d+ bytes, need the \d+"):
        objects.points(0)
    file.unlink()
    with pytest.raises(DatasetError, match=r"0_car_0.bin: cannot be read"):
        objects.points(0)
