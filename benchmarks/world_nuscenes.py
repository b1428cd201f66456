"""The same measures of what there is of real nuScenes LiDAR, and its published statistics.

Real points are read, never kept: histograms, sums and quantiles are all that leaves this module.
nuScenes is CC BY-NC-SA 4.0.
"""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from world_boxes import describe_boxes, intensity_in_boxes, measure_boxes
from world_measures import (
    OWN_RETURNS_M,
    FrameFigures,
    intensity_over_range,
    measure_cloud,
    measure_key_frame,
    measure_voxels,
    without_own_returns,
)

from voxelquant.data.synthetic import CLASS_NAMES
from voxelquant.geometry import theta_to_yaw_det3d

RINGS = 32
CLOUD, KEY_FRAME, VOXELS = "ten-sweep cloud", "scene 0061", "benchmark frame"

# Annotations of the training set a key frame (28,130 of them): Zhu 2019, 1908.09492, table 1.
TRAIN_BOXES_PER_FRAME = {
    "car": 14.7,
    "truck": 2.6,
    "construction_vehicle": 0.43,
    "bus": 0.47,
    "trailer": 0.74,
    "barrier": 4.4,
    "motorcycle": 0.36,
    "bicycle": 0.34,
    "pedestrian": 6.6,
    "traffic_cone": 2.9,
}
# Annotations of v1.0-mini (404 key frames of ten scenes), as `list_attributes` prints them in the
# tutorial of nuscenes-devkit.
MINI_ATTRIBUTES = {
    "vehicle.moving": 2715,
    "vehicle.stopped": 1545,
    "vehicle.parked": 4674,
    "cycle.with_rider": 305,
    "cycle.without_rider": 434,
    "pedestrian.moving": 3875,
    "pedestrian.standing": 1029,
    "pedestrian.sitting_lying_down": 111,
}
SOURCES = {
    "boxes_per_frame": "training set, Zhu et al. 2019 (arXiv 1908.09492), table 1",
    "attributes": "v1.0-mini, tutorial of nuscenes-devkit (`list_attributes`)",
}


def published_statistics() -> dict[str, Any]:
    """What nuScenes says of itself, with sources."""
    return {
        "boxes_per_frame": TRAIN_BOXES_PER_FRAME,
        "attributes": MINI_ATTRIBUTES,
        "sources": SOURCES,
    }


def read_voxel_counts(folder: Path) -> Tensor:
    """Voxels of each of the 6,019 validation frames, [6019] float64."""
    with (folder / "nuscenes_val_voxel_counts.csv").open() as file:
        counts = [float(row["num_voxels"]) for row in csv.DictReader(file)]
    return torch.tensor(counts, dtype=torch.float64)


def measure_real_frames(folder: Path) -> dict[str, FrameFigures]:
    """The three real frames; each has only some of the measures."""
    cloud, key, beams = read_cloud(folder)
    coords = np.load(folder / "nuscenes_voxels_79745.npz")["coords_bzyx"]
    return {
        CLOUD: measure_cloud(cloud).update(measure_key_frame(key, beams)),
        KEY_FRAME: measure_key_frame(*read_key_frame(folder)),
        VOXELS: measure_voxels(torch.from_numpy(coords[:, 1:].astype(np.int32))),
    }


def real_intensity_over_range(folder: Path) -> Tensor:
    """Returns of both key frames by range and intensity, [ranges, 256] float64."""
    _, key, _ = read_cloud(folder)
    return intensity_over_range(key) + intensity_over_range(read_key_frame(folder)[0])


def read_cloud(folder: Path) -> tuple[Tensor, Tensor, Tensor]:
    """Ten sweeps, the key frame among them, and the beams of the key frame's points.

    The sensor reports all its beams of a firing in turn, also those without an answer.
    """
    points = np.load(folder / "nuscenes_10sweeps_271156.npz")["points"].astype(np.float32)
    cloud = torch.from_numpy(points)
    key = cloud[cloud[:, 4] == 0]
    beams = torch.arange(len(key)) % RINGS
    far = key[:, :2].double().norm(dim=1) > OWN_RETURNS_M
    return without_own_returns(cloud), key[far], beams[far]


def read_key_frame(folder: Path) -> tuple[Tensor, Tensor]:
    """The labelled key frame and the beams of its points."""
    points = torch.from_numpy(np.load(folder / "nuscenes_keyframe_scene0061.npz")["points"])
    points = without_own_returns(points)
    return points, points[:, 4].long()


def real_boxes(folder: Path) -> tuple[dict[str, Any], Tensor]:
    """Of the labelled key frame: figures of its boxes, intensities in them [classes, 256]."""
    truth = json.loads((folder / "nuscenes_keyframe_scene0061_gt.json").read_text())
    chosen = [row for row, name in enumerate(truth["names"]) if name in CLASS_NAMES]
    boxes = read_boxes(truth)[chosen]
    labels = torch.tensor([CLASS_NAMES.index(truth["names"][row]) for row in chosen])
    key = read_key_frame(folder)[0]
    figures = describe_boxes(measure_boxes(boxes, labels, key), frames=1)
    return figures, intensity_in_boxes(boxes, labels, key)


def read_boxes(truth: dict[str, Any]) -> Tensor:
    """Boxes as det3d vectors, [n, 9] float32."""
    boxes = torch.tensor(truth["boxes_xyzlwh_yaw"])
    x, y, z, length, width, height, theta = boxes.unbind(1)
    vx, vy = torch.tensor(truth["velocity_xy"]).unbind(1)
    return torch.stack([x, y, z, width, length, height, vx, vy, theta_to_yaw_det3d(theta)], dim=1)
