"""What is measured of the boxes of frames: how many, how far, how fast, and points in each."""

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from world_summary import quantiles

from voxelquant.data.synthetic import CLASS_NAMES, TABLE_VERSION
from voxelquant.data.synthetic.taxonomy import KINDS
from voxelquant.geometry import points_in_boxes

DISTANCE_STEP_M, DISTANCE_RINGS = 5, 15
# 0, 1, 2, 3-4, 5-8, ... points.
POINT_EDGES = (0, 1, 2, 3, *(2**power + 1 for power in range(2, 15)))
MOVING_MPS = 0.2  # nuScenes calls faster objects moving where it asks for a default attribute
SPEED_STEP_MPS, SPEED_BINS = 1, 20
FEW_BOXES = 3  # fewer say nothing about a distribution
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


@dataclass(frozen=True)
class Boxes:
    """Annotated boxes of some frames, [n] each."""

    labels: Tensor  # int64
    distance_m: Tensor  # float64, from the sensor to the centre, in the plane
    points: Tensor  # int64, of the key frame, whatever they belong to
    speed_mps: Tensor  # float64; NaN where unknown

    @staticmethod
    def join(parts: list["Boxes"]) -> "Boxes":
        """Boxes of several frames as one."""
        names = Boxes.__dataclass_fields__
        return Boxes(**{name: torch.cat([getattr(part, name) for part in parts]) for name in names})


def measure_boxes(boxes_det3d: Tensor, labels: Tensor, key_points: Tensor) -> Boxes:
    """Boxes [n, 9] of one frame, and how many points of the key frame lie in each."""
    return Boxes(
        labels=labels,
        distance_m=boxes_det3d[:, :2].double().norm(dim=1),
        points=points_in_boxes(key_points[:, :3], boxes_det3d).sum(0),
        speed_mps=boxes_det3d[:, 6:8].double().norm(dim=1),
    )


def intensity_in_boxes(boxes_det3d: Tensor, labels: Tensor, key_points: Tensor) -> Tensor:
    """Points of the key frame in boxes [n, 9], by class and intensity, [classes, 256] float64."""
    point, box = points_in_boxes(key_points[:, :3], boxes_det3d).nonzero().unbind(1)
    cells = labels[box] * 256 + key_points[point, 3].round().clamp(0, 255).long()
    count = len(CLASS_NAMES)
    return torch.bincount(cells, minlength=count * 256).double().view(count, 256)


def describe_boxes(boxes: Boxes, frames: int) -> dict[str, Any]:
    """Figures of each class."""
    return {name: describe_class(boxes, label, frames) for label, name in enumerate(CLASS_NAMES)}


def describe_class(boxes: Boxes, label: int, frames: int) -> dict[str, Any]:
    """Counts a frame, points over distance, and speeds of one class."""
    mine = boxes.labels == label
    distance, points = boxes.distance_m[mine], boxes.points[mine]
    speed = boxes.speed_mps[mine]
    within = distance < KINDS[label].range_m
    known = speed[~speed.isnan()]
    moving = known[known > MOVING_MPS]
    return {
        "per_frame": len(distance) / frames,
        "visible_per_frame": int((points > 0).sum()) / frames,
        "scored_per_frame": int((within & (points > 0)).sum()) / frames,
        "points_by_distance": count_points(distance, points).long().tolist(),
        "point_quantiles": point_quantiles(distance[points > 0], points[points > 0]),
        "moving": len(moving) / max(1, len(known)),
        "speed_counts": count_speeds(moving).long().tolist(),
        "speed_quantiles": quantiles_of(moving),
    }


def count_points(distance_m: Tensor, points: Tensor) -> Tensor:
    """Boxes by distance and points, [rings, bins of points]; what is farther is left out."""
    ring = torch.div(distance_m, DISTANCE_STEP_M, rounding_mode="floor").long()
    near = ring < DISTANCE_RINGS
    edges = torch.tensor(POINT_EDGES)
    bins = len(edges)
    place = torch.bucketize(points[near], edges, right=True) - 1
    cells = torch.bincount(ring[near] * bins + place, minlength=DISTANCE_RINGS * bins)
    return cells.view(DISTANCE_RINGS, bins)


def point_quantiles(distance_m: Tensor, points: Tensor) -> list[list[float] | None]:
    """Quantiles of the points in a box for each ring of distance; None for too few boxes."""
    ring = torch.div(distance_m, DISTANCE_STEP_M, rounding_mode="floor").long()
    found = [points[ring == number] for number in range(DISTANCE_RINGS)]
    return [quantiles_of(values) if len(values) >= FEW_BOXES else None for values in found]


def quantiles_of(values: Tensor) -> list[float] | None:
    """The quantiles `QUANTILES` of some values; None where there are none."""
    if not len(values):
        return None
    return quantiles(values, QUANTILES).tolist()


def count_speeds(speed_mps: Tensor) -> Tensor:
    """Objects by speed in steps of 1 m/s; the last bin holds what is faster."""
    place = torch.div(speed_mps, SPEED_STEP_MPS, rounding_mode="floor").long()
    return torch.bincount(place.clamp(max=SPEED_BINS - 1), minlength=SPEED_BINS)


def count_attributes(root: Path) -> dict[str, int]:
    """Annotations of each attribute in a written data set."""
    tables = root / TABLE_VERSION
    attributes = json.loads((tables / "attribute.json").read_text())
    names = {record["token"]: record["name"] for record in attributes}
    found: Counter[str] = Counter()
    for record in json.loads((tables / "sample_annotation.json").read_text()):
        found.update(names[token] for token in record["attribute_tokens"])
    return {name: found[name] for name in names.values()}
