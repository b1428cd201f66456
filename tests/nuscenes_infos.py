"""Infos of a small dataset in the layout of det3d's `create_data`, through the devkit's boxes."""

from typing import Any

import numpy as np
from nuscenes import NuScenes
from nuscenes.eval.detection.utils import category_to_detection_name
from pyquaternion import Quaternion

from nuscenes_world import VERSION, TinyNuScenes

Info = dict[str, Any]


def matrix(row: Info, inverse: bool = False) -> np.ndarray:
    pose = Quaternion(row["rotation"]).transformation_matrix
    pose[:3, 3] = row["translation"]
    return np.linalg.inv(pose) if inverse else pose


def create_infos(tiny: TinyNuScenes, nsweeps: int = 10) -> list[Info]:
    """Infos of the whole dataset, in the order of its samples."""
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
