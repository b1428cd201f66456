import math
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from nuscenes.utils.data_classes import Box
from pyquaternion import Quaternion
from torch import Tensor

from nuscenes_world import CLASS_NAMES
from voxelquant.data.nuscenes import NuScenesDataset
from voxelquant.errors import BadInputError
from voxelquant.evaluation.nuscenes import sample_results


@dataclass
class Found:
    boxes_det3d: Tensor
    scores: Tensor
    labels: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.int64))


def random_detections(count: int, seed: int = 0) -> Found:
    generator = torch.Generator().manual_seed(seed)
    boxes = torch.randn(count, 9, generator=generator) * 10
    boxes[:, 3:6] = boxes[:, 3:6].abs() + 0.1
    return Found(
        boxes,
        torch.rand(count, generator=generator),
        torch.randint(10, (count,), generator=generator),
    )


def test_boxes_travel_as_the_devkits(tilted: NuScenesDataset) -> None:
    """Position, size, rotation and velocity against devkit Boxes turned step by step."""
    nusc, token = tilted.nusc, tilted.sample_tokens[1]
    found = random_detections(64)
    key_frame = nusc.get("sample_data", nusc.get("sample", token)["data"]["LIDAR_TOP"])
    sensor = nusc.get("calibrated_sensor", key_frame["calibrated_sensor_token"])
    ego = nusc.get("ego_pose", key_frame["ego_pose_token"])
    records = sample_results(nusc, token, found, CLASS_NAMES)
    assert len(records) == 64
    for record, row, score, label in zip(
        records, found.boxes_det3d.double().tolist(), found.scores, found.labels, strict=True
    ):
        box = Box(
            row[:3],
            row[3:6],
            Quaternion(axis=[0, 0, 1], radians=-row[8] - math.pi / 2),
            velocity=(*row[6:8], 0.0),
        )
        for pose in (sensor, ego):
            box.rotate(Quaternion(pose["rotation"]))
            box.translate(np.array(pose["translation"]))
        np.testing.assert_allclose(record["translation"], box.center, rtol=0, atol=1e-9)
        assert record["size"] == box.wlh.tolist()
        np.testing.assert_allclose(record["velocity"], box.velocity[:2], rtol=0, atol=1e-9)
        # q and -q are one rotation.
        overlap = abs(np.dot(record["rotation"], box.orientation.elements))
        assert overlap == pytest.approx(1, abs=1e-12)
        assert np.linalg.norm(record["rotation"]) == pytest.approx(1, abs=1e-12)
        assert record["detection_score"] == score.item()
        assert record["detection_name"] == CLASS_NAMES[label]
        assert record["sample_token"] == token


def test_attribute_follows_the_speed_over_ground(dataset: NuScenesDataset) -> None:
    boxes = torch.zeros(3, 9)
    boxes[:, 3:6] = 1
    boxes[:, 6] = torch.tensor([0.19, 0.21, 0.15])
    boxes[:, 7] = torch.tensor([0.0, 0.0, 0.15])
    found = Found(boxes, torch.ones(3), torch.zeros(3, dtype=torch.int64))
    token = dataset.sample_tokens[0]
    records = sample_results(dataset.nusc, token, found, CLASS_NAMES)
    assert [record["attribute_name"] for record in records] == [
        "vehicle.parked",
        "vehicle.moving",
        "vehicle.moving",
    ]


def test_the_best_500_boxes_in_their_order(dataset: NuScenesDataset) -> None:
    found = random_detections(640)
    token = dataset.sample_tokens[0]
    scores = [
        record["detection_score"]
        for record in sample_results(dataset.nusc, token, found, CLASS_NAMES)
    ]
    threshold = found.scores.sort(descending=True).values[499]
    assert scores == found.scores[found.scores >= threshold].double().tolist()
    assert len(scores) == 500


def test_the_range_of_the_metric_is_left_to_the_metric(dataset: NuScenesDataset) -> None:
    found = random_detections(3)
    found.boxes_det3d[:, 0] = torch.tensor([29.0, 51.0, 500.0])
    found.labels[:] = CLASS_NAMES.index("traffic_cone")
    records = sample_results(dataset.nusc, dataset.sample_tokens[0], found, CLASS_NAMES)
    assert len(records) == 3


def test_broken_detections_are_refused(dataset: NuScenesDataset) -> None:
    token = dataset.sample_tokens[0]

    def refused(found: Found, match: str, names: tuple[str, ...] = CLASS_NAMES) -> None:
        with pytest.raises(BadInputError, match=match):
            sample_results(dataset.nusc, token, found, names)

    found = random_detections(4)
    found.boxes_det3d[2, 7] = math.nan
    refused(found, "scene-b-s0: 1 of 4 detections are not finite")
    found = random_detections(4)
    found.scores[:2] = math.inf
    refused(found, "2 of 4 detections are not finite")
    found = random_detections(4)
    found.labels[0] = 10
    refused(found, r"need 0 to 9 for 10 classes")
    refused(random_detections(4), "class VEHICLE", ("VEHICLE",))
    found = random_detections(4)
    refused(Found(found.boxes_det3d[:, :7], found.scores, found.labels), r"need \[k, 9\]")
    refused(Found(found.boxes_det3d, found.scores, found.labels[:3]), r"need \[k, 9\]")


def test_inputs_are_left_alone(dataset: NuScenesDataset) -> None:
    found = random_detections(8)
    before = found.boxes_det3d.clone()
    sample_results(dataset.nusc, dataset.sample_tokens[0], found, CLASS_NAMES)
    assert torch.equal(found.boxes_det3d, before)
