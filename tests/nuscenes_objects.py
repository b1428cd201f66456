"""Boxes of the tiny dataset filled with points, and det3d's database of its objects."""

import math
import pickle
from pathlib import Path

import numpy as np

from nuscenes_world import CLASS_NAMES, VERSION, TinyNuScenes, write_tiny_nuscenes
from voxelquant.data.nuscenes import NuScenesDataset
from voxelquant.data.records import FrameDataset


def write_filled_nuscenes(root: Path, per_box: int = 9) -> TinyNuScenes:
    """The tiny dataset with points in every annotated box of its key frames."""
    tiny = write_tiny_nuscenes(root)
    dataset = NuScenesDataset(tiny.root, VERSION, "both", CLASS_NAMES, nsweeps=1)
    rng = np.random.default_rng(1)
    for index in range(len(dataset)):
        record = dataset.record(index)
        assert record.annotations is not None
        with record.path.open("ab") as file:
            for box in record.annotations.boxes_det3d.numpy():
                points = np.zeros((per_box, 5), np.float32)
                points[:, :3] = box[:3] + in_lidar_frame(
                    box, rng.uniform(-0.45, 0.45, (per_box, 3)) * box[[4, 3, 5]]
                )
                points[:, 3] = rng.integers(0, 256, per_box)
                points.tofile(file)
    return tiny


def in_lidar_frame(box: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """Offsets along a box's length, width and height, along the axes of the LiDAR."""
    theta = -box[-1] - math.pi / 2
    turn = [[math.cos(theta), -math.sin(theta), 0], [math.sin(theta), math.cos(theta), 0]]
    return offsets @ np.array([*turn, [0, 0, 1]]).T


def in_box_frame(box: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """The way back."""
    theta = -box[-1] - math.pi / 2
    turn = [[math.cos(theta), -math.sin(theta), 0], [math.sin(theta), math.cos(theta), 0]]
    return offsets @ np.array([*turn, [0, 0, 1]])


def objects_of(dataset: FrameDataset) -> list[tuple[str, np.ndarray, np.ndarray]]:
    """Class, box [9] and points [p, 5] about its centre of every object that holds points."""
    found = []
    for frame in (dataset[index] for index in range(len(dataset))):
        assert frame.boxes_det3d is not None
        assert frame.labels is not None
        points = frame.points.numpy()
        for box, label in zip(frame.boxes_det3d.numpy(), frame.labels.tolist(), strict=True):
            own = in_box_frame(box, points[:, :3].astype(np.float64) - box[:3])
            inside = (np.abs(own) <= box[[4, 3, 5]] / 2).all(axis=1)
            if inside.any():
                cloud = points[inside].copy()
                cloud[:, :3] -= box[:3]
                found.append((dataset.class_names[label], box, cloud))
    return found


def write_det3d_database(
    dataset: FrameDataset, root: Path, name: str = "dbinfos_train_10sweeps_withvelo.pkl"
) -> Path:
    """The objects of a dataset as det3d's `create_groundtruth_database` lays them out."""
    folder = root / "gt_database_10sweeps_withvelo"
    folder.mkdir()
    infos: dict[str, list[dict[str, object]]] = {"ignore": []}
    for number, (kind, box, cloud) in enumerate(objects_of(dataset)):
        file = f"{number}_{kind}_0.bin"
        cloud.astype(np.float32).tofile(folder / file)
        infos.setdefault(kind, []).append(
            {
                "name": kind,
                "path": f"{folder.name}/{file}",
                "image_idx": number,
                "gt_idx": 0,
                "box3d_lidar": box.astype(np.float32),
                "num_points_in_gt": len(cloud),
                "difficulty": np.int32(0),
                "group_id": number,
            }
        )
    path = root / name
    path.write_bytes(pickle.dumps(infos))
    return path
