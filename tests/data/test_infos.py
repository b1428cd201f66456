import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from nuscenes import NuScenes
from nuscenes.eval.detection.utils import category_to_detection_name
from pyquaternion import Quaternion

from nuscenes_world import CLASS_NAMES, KEY_FRAMES, VERSION, TinyNuScenes
from voxelquant.data.frame import Frame
from voxelquant.data.infos import InfoDataset
from voxelquant.data.nuscenes import NuScenesDataset
from voxelquant.errors import DatasetError

Info = dict[str, Any]


def matrix(row: Info, inverse: bool = False) -> np.ndarray:
    pose = Quaternion(row["rotation"]).transformation_matrix
    pose[:3, 3] = row["translation"]
    return np.linalg.inv(pose) if inverse else pose


def create_infos(tiny: TinyNuScenes, nsweeps: int = 10) -> list[Info]:
    """Infos of the whole dataset in det3d's layout, through the devkit's own boxes."""
    nusc = NuScenes(VERSION, str(tiny.root), verbose=False)
    return [create_info(nusc, sample, nsweeps) for sample in nusc.sample]


def create_info(nusc: NuScenes, sample: Info, nsweeps: int) -> Info:
    reference = nusc.get("sample_data", sample["data"]["LIDAR_TOP"])
    sensor = nusc.get("calibrated_sensor", reference["calibrated_sensor_token"])
    ego = nusc.get("ego_pose", reference["ego_pose_token"])
    info = {
        "lidar_path": f"data/nuScenes/{reference['filename']}",
        "cam_front_path": "",
        "cam_intrinsic": np.eye(3),
        "token": sample["token"],
        "sweeps": [],
        "ref_from_car": matrix(sensor, inverse=True),
        "car_from_global": matrix(ego, inverse=True),
        "timestamp": 1e-6 * reference["timestamp"],
    }
    current = reference
    while len(info["sweeps"]) < nsweeps - 1:
        if current["prev"] == "":
            if not info["sweeps"]:
                sweep = {"lidar_path": info["lidar_path"], "sample_data_token": current["token"]}
                sweep |= {"transform_matrix": None, "time_lag": current["timestamp"] * 0}
                info["sweeps"].append(sweep)
            else:
                info["sweeps"].append(info["sweeps"][-1])
            continue
        current = nusc.get("sample_data", current["prev"])
        car_from_current = matrix(nusc.get("calibrated_sensor", current["calibrated_sensor_token"]))
        global_from_car = matrix(nusc.get("ego_pose", current["ego_pose_token"]))
        transform = info["ref_from_car"] @ info["car_from_global"] @ global_from_car
        info["sweeps"].append(
            {
                "lidar_path": f"data/nuScenes/{current['filename']}",
                "sample_data_token": current["token"],
                "transform_matrix": transform @ car_from_current,
                "global_from_car": global_from_car,
                "car_from_current": car_from_current,
                "time_lag": info["timestamp"] - 1e-6 * current["timestamp"],
            }
        )
    return info | annotations(nusc, sample)


def annotations(nusc: NuScenes, sample: Info) -> Info:
    _, boxes, _ = nusc.get_sample_data(sample["data"]["LIDAR_TOP"])
    rows = [nusc.get("sample_annotation", box.token) for box in boxes]
    kept = np.array([row["num_lidar_pts"] + row["num_radar_pts"] > 0 for row in rows])
    lidar = nusc.get("sample_data", sample["data"]["LIDAR_TOP"])
    to_sensor = (
        Quaternion(
            nusc.get("calibrated_sensor", lidar["calibrated_sensor_token"])["rotation"]
        ).inverse
        * Quaternion(nusc.get("ego_pose", lidar["ego_pose_token"])["rotation"]).inverse
    )
    velocities = np.stack(
        [to_sensor.rotation_matrix @ nusc.box_velocity(box.token) for box in boxes]
    )
    heading = np.stack([box.orientation.rotation_matrix[:, 0] for box in boxes])
    gt_boxes = np.concatenate(
        [
            np.stack([box.center for box in boxes]),
            np.stack([box.wlh for box in boxes]),
            velocities[:, :2],
            -np.arctan2(heading[:, 1], heading[:, 0])[:, None] - np.pi / 2,
        ],
        axis=1,
    )
    names = np.array([category_to_detection_name(box.name) or "ignore" for box in boxes])
    return {
        "gt_boxes": gt_boxes[kept],
        "gt_boxes_velocity": velocities[kept],
        "gt_names": names[kept],
        "gt_boxes_token": np.array([box.token for box in boxes])[kept],
    }


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
