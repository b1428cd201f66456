"""Detections as a nuScenes submission: boxes in the global frame, by name, with attributes."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from voxelquant.errors import BadInputError
from voxelquant.evaluation.attributes import DETECTION_CLASSES, attribute_name
from voxelquant.geometry import transform_points, yaw_det3d_to_theta

MAX_BOXES_PER_SAMPLE = 500  # the devkit refuses more
META = {
    "use_camera": False,
    "use_lidar": True,
    "use_radar": False,
    "use_map": False,
    "use_external": False,
}


class Detections(Protocol):
    """Decoded boxes of one key frame, in its LiDAR frame."""

    @property
    def boxes_det3d(self) -> Tensor:
        """[k, 9] x, y, z, w, l, h, vx, vy, yaw'."""
        ...

    @property
    def scores(self) -> Tensor:
        """[k] in 0..1."""
        ...

    @property
    def labels(self) -> Tensor:
        """[k] index into the class names."""
        ...


def submission_boxes(
    sample_token: str,
    detections: Detections,
    class_names: Sequence[str],
    *,
    ref_to_ego: tuple[Tensor, Tensor],
    ego_to_global: tuple[Tensor, Tensor],
) -> list[dict[str, Any]]:
    """Boxes of one key frame as records of a nuScenes submission.

    Args:
        sample_token: Token of the key frame.
        detections: Boxes in its LiDAR frame; any device.
        class_names: Detection class of every label.
        ref_to_ego: Pose of the LiDAR in the vehicle: matrix [4, 4] and quaternion [4] w, x, y, z,
            both float64.
        ego_to_global: Pose of the vehicle, likewise.

    Returns:
        At most 500 records; of more boxes those with the highest scores.

    Raises:
        BadInputError: Boxes that are not finite or not [k, 9], or a class nuScenes does not have.
    """
    boxes, scores, labels = _require_usable(sample_token, detections, class_names)
    best = scores.argsort(descending=True, stable=True)[:MAX_BOXES_PER_SAMPLE].sort().values
    boxes, scores, labels = boxes[best], scores[best], labels[best]
    pose = ego_to_global[0] @ ref_to_ego[0]
    centers = transform_points(boxes[:, :3], pose)
    velocities = (torch.nn.functional.pad(boxes[:, 6:8], (0, 1)) @ pose[:3, :3].T)[:, :2]
    half = yaw_det3d_to_theta(boxes[:, 8]) / 2
    zero = torch.zeros_like(half)
    rotations = torch.stack((half.cos(), zero, zero, half.sin()), dim=1)
    for quaternion in (ref_to_ego[1], ego_to_global[1]):
        rotations = _rotate(quaternion, rotations)
    names = [class_names[label] for label in labels.tolist()]
    speeds = velocities.norm(dim=1).tolist()
    return [
        {
            "sample_token": sample_token,
            "translation": center,
            "size": size,
            "rotation": rotation,
            "velocity": velocity,
            "detection_name": name,
            "detection_score": score,
            "attribute_name": attribute_name(name, speed),
        }
        for center, size, rotation, velocity, name, score, speed in zip(
            centers.tolist(),
            boxes[:, 3:6].tolist(),  # w, l, h in both conventions
            rotations.tolist(),
            velocities.tolist(),
            names,
            scores.tolist(),
            speeds,
            strict=True,
        )
    ]


def read_submission(path: Path) -> dict[str, list[Any]]:
    """Records of every sample in a submission file.

    Raises:
        BadInputError: The file is missing, or no submission.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return {str(token): list(records) for token, records in content["results"].items()}
    except OSError as error:
        raise BadInputError(
            f"{path}: cannot be read ({error.strerror}); need the submission of an earlier eval"
        ) from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadInputError(f"{path}: not a nuScenes submission ({error})") from None


def _require_usable(
    sample_token: str, detections: Detections, class_names: Sequence[str]
) -> tuple[Tensor, Tensor, Tensor]:
    """Boxes and scores as float64 and labels on the CPU, once they are known to be sound."""
    foreign = [name for name in class_names if name not in DETECTION_CLASSES]
    if foreign:
        raise BadInputError(
            f"got class {foreign[0]}, which the nuScenes metric does not have; need some of "
            f"{', '.join(DETECTION_CLASSES)}"
        )
    boxes = detections.boxes_det3d.detach().to("cpu", torch.float64)
    scores = detections.scores.detach().to("cpu", torch.float64)
    labels = detections.labels.to("cpu")
    if boxes.ndim != 2 or boxes.shape[1] != 9 or not len(boxes) == len(scores) == len(labels):
        raise BadInputError(
            f"sample {sample_token}: got boxes {tuple(boxes.shape)}, scores {tuple(scores.shape)} "
            f"and labels {tuple(labels.shape)}; need [k, 9], [k] and [k] (with velocity)"
        )
    broken = ~(boxes.isfinite().all(dim=1) & scores.isfinite())
    if broken.any():
        raise BadInputError(
            f"sample {sample_token}: {int(broken.sum())} of {len(boxes)} detections are not "
            "finite; the weights or the ranges of the model are broken"
        )
    if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < len(class_names):
        raise BadInputError(
            f"sample {sample_token}: got labels {int(labels.min())} to {int(labels.max())}, need "
            f"0 to {len(class_names) - 1} for {len(class_names)} classes"
        )
    return boxes, scores, labels


def _rotate(by: Tensor, rotations: Tensor) -> Tensor:
    """Hamilton product `by * rotation` of a unit quaternion [4] with each of [k, 4]."""
    w, x, y, z = (by / by.norm()).unbind()
    product = torch.stack(
        (
            torch.stack((w, -x, -y, -z)),
            torch.stack((x, w, -z, y)),
            torch.stack((y, z, w, -x)),
            torch.stack((z, -y, x, w)),
        )
    )
    return rotations @ product.T
