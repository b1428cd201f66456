import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nuscenes_infos import Info, create_infos
from nuscenes_world import CLASS_NAMES, KEY_FRAMES, VERSION, TinyNuScenes
from voxelquant.data.frame import Frame
from voxelquant.data.infos import InfoDataset
from voxelquant.data.nuscenes import NuScenesDataset
from voxelquant.errors import DatasetError


@pytest.fixture(scope="module")
def infos(tiny: TinyNuScenes) -> list[Info]:
    return create_infos(tiny)


def open_infos(infos: Any, tiny: TinyNuScenes, tmp_path: Path, nsweeps: int = 10) -> InfoDataset:
    path = tmp_path / "infos_val_10sweeps_withvelo_filter_True.pkl"
    path.write_bytes(pickle.dumps(infos, protocol=4))
    return InfoDataset(path, tiny.root, CLASS_NAMES, nsweeps)


def assert_same(got: Frame, expected: Frame) -> None:
    for name, value in vars(expected).items():
        other = getattr(got, name)
        if name == "num_lidar_pts":
            assert other is None  # infos do not tell
        elif isinstance(value, torch.Tensor):
            assert other.dtype == value.dtype, name
            # Two orders of float64 products, rounded to float32 for points and boxes.
            bound = 1e-9 if value.dtype == torch.float64 else 4e-6
            torch.testing.assert_close(other, value, rtol=0, atol=bound, msg=name)
        else:
            assert other == value, name


@pytest.mark.parametrize("nsweeps", [1, 4, 10])
def test_same_frames_from_infos_and_tables(
    tiny: TinyNuScenes, infos: list[Info], tmp_path: Path, nsweeps: int
) -> None:
    tables = NuScenesDataset(tiny.root, VERSION, "both", CLASS_NAMES, nsweeps)
    dataset = open_infos(infos, tiny, tmp_path, nsweeps)
    assert dataset.sample_tokens == tables.sample_tokens
    assert len(dataset) == 2 * KEY_FRAMES
    for index in range(len(tables)):
        expected = tables[index]
        assert expected.labels is not None
        assert len(expected.labels) >= 9
        assert_same(dataset[index], expected)
        assert dataset.classes_in(index) == tables.classes_in(index)


def test_every_other_key_frame(tiny: TinyNuScenes, infos: list[Info], tmp_path: Path) -> None:
    path = tmp_path / "infos.pkl"
    path.write_bytes(pickle.dumps(infos, protocol=4))
    dataset = InfoDataset(path, tiny.root, CLASS_NAMES, interval=2)
    tables = NuScenesDataset(tiny.root, VERSION, "both", CLASS_NAMES, interval=2)
    every_token = tuple(info["token"] for info in infos)
    assert len(every_token) == 6
    assert dataset.sample_tokens == tables.sample_tokens == every_token[::2]
    assert dataset[1].token == tables[1].token == every_token[2]


def test_test_infos_have_no_boxes(tiny: TinyNuScenes, infos: list[Info], tmp_path: Path) -> None:
    bare = [{k: v for k, v in info.items() if not k.startswith("gt_")} for info in infos]
    frame = open_infos(bare, tiny, tmp_path)[0]
    assert frame.boxes_det3d is None
    assert frame.labels is None


@pytest.mark.parametrize("shape", [(0,), (0, 9)])
def test_frame_without_boxes(
    tiny: TinyNuScenes, infos: list[Info], tmp_path: Path, shape: tuple[int, ...]
) -> None:
    empty = [info | {"gt_boxes": np.zeros(shape), "gt_names": np.array([])} for info in infos]
    frame = open_infos(empty, tiny, tmp_path)[0]
    assert frame.boxes_det3d is not None
    assert frame.boxes_det3d.shape == (0, 9)


def test_malicious_infos_are_refused(tiny: TinyNuScenes, infos: list[Info], tmp_path: Path) -> None:
    class Malice:
        def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
            return os.system, (f"touch {tmp_path}/executed",)

    with pytest.raises(DatasetError, match=r"filter_True\.pkl: names \w+\.system"):
        open_infos([*infos, {"token": Malice()}], tiny, tmp_path)
    assert not (tmp_path / "executed").exists()


def test_point_files_stay_under_the_root(
    tiny: TinyNuScenes, infos: list[Info], tmp_path: Path
) -> None:
    for path in ("/etc/passwd", "samples/../../secret.bin", "data/samples/../x.bin"):
        dataset = open_infos([infos[0] | {"lidar_path": path}], tiny, tmp_path)
        with pytest.raises(DatasetError, match="need a path with a folder samples or sweeps"):
            dataset.record(0)
    dataset = open_infos(
        [infos[0] | {"lidar_path": r"D:\samples\nuScenes\samples\LIDAR_TOP\a.bin"}], tiny, tmp_path
    )
    assert dataset.record(0).path == tiny.root / "samples/LIDAR_TOP/a.bin"


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"sweeps": []}, "lists 0 sweeps, need 9 for nsweeps 10"),
        ({"sweeps": None}, "scene-a-s0 is not laid out as det3d's"),
        ({"sweeps": [{"time_lag": 0.0}] * 9}, "lacks lidar_path|lacks transform_matrix"),
        ({"ref_from_car": np.eye(3)}, r"ref_from_car \(3, 3\), need a pose"),
        ({"gt_boxes": np.zeros((2, 7))}, r"gt_boxes \(2, 7\).*with velocities"),
        ({"gt_boxes": np.array(["a"])}, "gt_boxes does not hold numbers"),
        ({"timestamp": "soon"}, "is not laid out as det3d's"),
    ],
)
def test_malformed_infos(
    tiny: TinyNuScenes, infos: list[Info], tmp_path: Path, change: Info, match: str
) -> None:
    dataset = open_infos([infos[0] | change], tiny, tmp_path)
    with pytest.raises(DatasetError, match=match):
        dataset.record(0)


@pytest.mark.parametrize(
    ("content", "match"),
    [({"a": 1}, "got dict, need a list"), ([1], "need a list of dicts"), ([{}], "lacks token")],
)
def test_other_pickles(tiny: TinyNuScenes, tmp_path: Path, content: Any, match: str) -> None:
    with pytest.raises(DatasetError, match=match):
        open_infos(content, tiny, tmp_path)
