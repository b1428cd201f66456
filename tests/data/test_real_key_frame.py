"""Conventions against a real nuScenes key frame: its annotators counted the points of each box."""

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from nuscenes_world import CLASS_NAMES
from voxelquant.data.frame import Frame
from voxelquant.data.infos import InfoDataset
from voxelquant.geometry import points_in_boxes, wrap_to_pi, yaw_det3d_to_theta


@pytest.fixture(scope="module")
def truth(real_data: Path) -> dict[str, np.ndarray]:
    raw = json.loads((real_data / "nuscenes_keyframe_scene0061_gt.json").read_text())
    return {name: np.array(value) for name, value in raw.items() if name != "categories"}


@pytest.fixture(scope="module")
def frame(
    real_data: Path, truth: dict[str, np.ndarray], tmp_path_factory: pytest.TempPathFactory
) -> Frame:
    """The key frame through a det3d info file, its boxes turned into det3d vectors here."""
    root = tmp_path_factory.mktemp("real")
    (root / "samples/LIDAR_TOP").mkdir(parents=True)
    points = np.load(real_data / "nuscenes_keyframe_scene0061.npz")["points"]
    points.tofile(root / "samples/LIDAR_TOP/key.pcd.bin")
    x, y, z, length, width, height, theta = truth["boxes_xyzlwh_yaw"].T
    vx, vy = truth["velocity_xy"].T
    info = {
        "lidar_path": "samples/LIDAR_TOP/key.pcd.bin",
        "token": str(truth["token"]),
        "sweeps": [],
        "ref_from_car": np.linalg.inv(truth["lidar2ego"]),
        "car_from_global": np.linalg.inv(truth["ego2global"]),
        "timestamp": float(truth["timestamp"]),
        "gt_boxes": np.stack([x, y, z, width, length, height, vx, vy, -theta - np.pi / 2], axis=1),
        "gt_names": truth["names"],
    }
    (root / "infos.pkl").write_bytes(pickle.dumps([info]))
    return InfoDataset(root / "infos.pkl", root, CLASS_NAMES, nsweeps=1)[0]


def test_boxes_hold_the_points_that_nuscenes_counted(
    frame: Frame, truth: dict[str, np.ndarray]
) -> None:
    """Nearly: nuScenes counted in boxes upright in the world, ours are upright in the LiDAR frame,
    which leans by 1.4 degrees here, so points within centimetres of a face may change sides."""
    assert frame.boxes_det3d is not None
    counted = points_in_boxes(frame.points, frame.boxes_det3d).sum(dim=0).numpy()
    expected = truth["num_lidar_pts"][np.isin(truth["names"], CLASS_NAMES)]
    assert expected.sum() > 900
    assert (counted == expected).mean() > 0.85
    assert abs(counted - expected).sum() < 0.04 * expected.sum()
    # Any other reading of the angle puts most boxes beside their points.
    turned = frame.boxes_det3d.clone()
    turned[:, 8] = yaw_det3d_to_theta(turned[:, 8])
    elsewhere = points_in_boxes(frame.points, turned).sum(dim=0).numpy()
    assert abs(elsewhere - expected).sum() > 0.2 * expected.sum()


def test_fast_objects_drive_along_their_length(frame: Frame) -> None:
    assert frame.boxes_det3d is not None
    vx, vy, yaw_det3d = frame.boxes_det3d[:, 6:9].unbind(dim=1)
    fast = torch.hypot(vx, vy) > 1
    assert fast.sum() >= 3
    away = wrap_to_pi(torch.atan2(vy, vx) - yaw_det3d_to_theta(yaw_det3d))[fast].abs()
    assert away.median() < 0.1
