import json
from pathlib import Path

import pytest

from voxelquant.detection.config import DetectorConfig, load_config
from voxelquant.errors import DatasetError
from voxelquant.recipes.datasets import (
    Purpose,
    choose_split,
    find_det3d_file,
    find_version,
    open_dataset,
)
from voxelquant.recipes.frame_files import FrameChoice, choose_cloud


def tables(root: Path, version: str, *splits: str) -> Path:
    folder = root / version
    folder.mkdir(parents=True)
    (folder / "sample.json").touch()
    (folder / "splits.json").write_text(json.dumps({name: [] for name in splits}))
    return folder


@pytest.mark.parametrize(
    ("version", "train", "val"),
    [("v1.0-trainval", "train", "val"), ("v1.0-mini", "mini_train", "mini_val")],
)
def test_the_splits_of_nuscenes_itself(tmp_path, version: str, train: str, val: str) -> None:
    assert choose_split(tmp_path / version, Purpose.TRAIN) == train
    assert choose_split(tmp_path / version, Purpose.VAL) == val


@pytest.mark.parametrize(
    ("splits", "train", "val"),
    [
        (("synthetic_train", "synthetic_val"), "synthetic_train", "synthetic_val"),
        (("demo_calibration", "demo_validation"), "demo_calibration", "demo_validation"),
        (("Night-Val", "trainer", "retrain_me", "training"), "training", "Night-Val"),
    ],
)
def test_custom_splits_are_chosen_by_name(tmp_path, splits, train: str, val: str) -> None:
    folder = tables(tmp_path, "v1.0-synthetic", *splits)
    assert choose_split(folder, Purpose.TRAIN) == train
    assert choose_split(folder, Purpose.VAL) == val


@pytest.mark.parametrize("splits", [(), ("all",), ("a_val", "b_val")])
def test_a_choice_that_is_not_clear_lists_the_splits(tmp_path, splits) -> None:
    folder = tables(tmp_path, "v1.0-synthetic", *splits)
    listed = ", ".join(splits) or "splits.json lists none"
    with pytest.raises(DatasetError, match=f"choose one with --split: {listed}"):
        choose_split(folder, Purpose.VAL)


def test_the_only_version_is_found_and_among_several_that_of_the_reference(tmp_path) -> None:
    tables(tmp_path, "v1.0-mini")
    assert find_version(tmp_path) == "v1.0-mini"
    tables(tmp_path, "v1.0-test")
    with pytest.raises(DatasetError, match=r"found v1.0-mini, v1.0-test.*--version"):
        find_version(tmp_path)
    tables(tmp_path, "v1.0-trainval")
    assert find_version(tmp_path) == "v1.0-trainval"


def test_det3d_paths_follow_the_root_in_use(tmp_path, monkeypatch) -> None:
    config = load_config("centerpoint_voxel0075")
    named = config.data.val_infos
    assert config.data.root == "data/nuScenes"
    assert named is not None
    monkeypatch.chdir(tmp_path)
    used, checkout = tmp_path / "used", tmp_path / "data/nuScenes"
    for folder in (used, checkout):
        folder.mkdir(parents=True)
    name = named.rpartition("/")[2]
    (checkout / name).touch()
    assert find_det3d_file(config, checkout, named) == checkout / name
    # The infos of the checkout's dataset say nothing about another one.
    assert find_det3d_file(config, used, named) is None
    (used / name).touch()
    assert find_det3d_file(config, used, named) == used / name


def test_info_files_elsewhere(tmp_path, monkeypatch) -> None:
    config = load_config("centerpoint_voxel0075")
    monkeypatch.chdir(tmp_path)
    root = tmp_path / "root"
    (root / "mine").mkdir(parents=True)
    (tmp_path / "mine").mkdir()
    assert find_det3d_file(config, root, None) is None
    assert find_det3d_file(config, root, "mine/a.pkl") is None
    (tmp_path / "mine/a.pkl").touch()
    assert find_det3d_file(config, root, "mine/a.pkl") == Path("mine/a.pkl")
    (root / "mine/a.pkl").touch()
    assert find_det3d_file(config, root, "mine/a.pkl") == root / "mine/a.pkl"
    assert find_det3d_file(config, root, str(tmp_path / "mine/a.pkl")) == tmp_path / "mine/a.pkl"


def test_a_reader_of_virtual_points_finds_no_dataset(tmp_path) -> None:
    values = load_config("centerpoint_tiny").model_dump()
    values.update(reader="dynamic_virtual", max_voxels=None, max_points_per_voxel=None)
    values["backbone"]["in_channels"] = 21
    config = DetectorConfig.model_validate(values)
    with pytest.raises(DatasetError, match=r"centerpoint_tiny reads painted and virtual .*--frame"):
        open_dataset(config, tmp_path)
    with pytest.raises(DatasetError, match="which no dataset here holds"):
        choose_cloud(config, FrameChoice())
    with pytest.raises(DatasetError, match="no such folder"):  # another reader gets past this
        open_dataset(load_config("centerpoint_tiny"), tmp_path / "absent")
