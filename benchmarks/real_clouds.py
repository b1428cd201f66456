"""What a detector that was trained on the synthetic world finds in two real nuScenes clouds.

    python benchmarks/real_clouds.py --real REAL_LIDAR --weights W --state ptq.safetensors

Writes benchmarks/results/real_clouds.json and a picture of each cloud under docs/pictures.
REAL_LIDAR holds a ten-sweep cloud without labels (nuscenes_10sweeps_271156.npz) and a labelled key
frame (nuscenes_keyframe_scene0061.npz and _gt.json, a single sweep); it is no part of the project.
Of its points nothing is kept but which cells of a metre hold any, as the ground of the pictures.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from world_nuscenes import read_boxes, read_cloud, read_key_frame

from voxelquant.atomic_file import atomic_path
from voxelquant.detection.config import DetectorConfig, load_config
from voxelquant.detection.decode import Detections
from voxelquant.recipes.artifacts import provenance, write_json_atomic
from voxelquant.recipes.detect import Engine, open_detector
from voxelquant.report.bev import draw_bev
from voxelquant.report.model import FramePicture

REPOSITORY = Path(__file__).resolve().parents[1]
SHOWN_SCORE = 0.3
MATCHED_M = 2.0  # between centres, seen from above: the widest of the nuScenes metric
SAME_M = 0.5  # float and int8 mean the same object
CELL_M = 1.0
NO_BOXES = torch.zeros(0, 9)


@dataclass(frozen=True)
class Cloud:
    """A real cloud with what is annotated in it.

    Attributes:
        name: of the picture.
        points: [p, 5] x_m, y_m, z_m, intensity, dt_s.
        boxes: [n, 9] annotated det3d boxes of the detector's classes; none where nothing is known.
        labels: [n] int64.
        labelled: whether it is known what there is.
    """

    name: str
    points: Tensor
    boxes: Tensor
    labels: Tensor
    labelled: bool


def read_clouds(folder: Path, class_names: Sequence[str]) -> list[Cloud]:
    """The cloud of ten sweeps, and the labelled key frame as a cloud of one."""
    sweeps, _, _ = read_cloud(folder)
    key_points, _ = read_key_frame(folder)
    key_points = torch.cat([key_points[:, :4], torch.zeros(len(key_points), 1)], dim=1)
    truth = json.loads((folder / "nuscenes_keyframe_scene0061_gt.json").read_text())
    rows = [row for row, name in enumerate(truth["names"]) if name in class_names]
    labels = torch.tensor([class_names.index(truth["names"][row]) for row in rows])
    none = torch.zeros(0, dtype=torch.int64)
    return [
        Cloud("sweeps", sweeps, NO_BOXES, none, labelled=False),
        Cloud("key_frame", key_points, read_boxes(truth)[rows], labels, labelled=True),
    ]


def shown(found: Detections) -> Detections:
    """Those with a score that is worth a look."""
    kept = found.scores > SHOWN_SCORE
    return Detections(found.boxes_det3d[kept], found.scores[kept], found.labels[kept])


def pair_up(
    centres: Tensor, labels: Tensor, others: Tensor, other_labels: Tensor, most_m: float
) -> list[tuple[int, int]]:
    """Pairs of one class, nearest first, each box in one pair at most."""
    distance = torch.cdist(centres.double(), others.double())
    distance[labels[:, None] != other_labels[None, :]] = torch.inf
    pairs: list[tuple[int, int]] = []
    for flat in distance.flatten().argsort().tolist():
        row, column = divmod(flat, len(others))
        if distance[row, column] > most_m:
            break
        if all(row != a and column != b for a, b in pairs):
            pairs.append((row, column))
    return pairs


def compare(cloud: Cloud, of_float: Detections, of_int8: Detections) -> dict[str, Any]:
    """Counts of what was found, of what was right where that is known, and of what both found."""
    engines = {"float": shown(of_float), "int8": shown(of_int8)}
    same = pair_up(*_places(engines["float"]), *_places(engines["int8"]), SAME_M)
    gaps = [abs(float(engines["float"].scores[a] - engines["int8"].scores[b])) for a, b in same]
    result: dict[str, Any] = {
        "points": len(cloud.points),
        "found": {name: len(found) for name, found in engines.items()},
        "found_by_both": len(same),
        "largest_score_gap": max(gaps, default=0.0),
    }
    if cloud.labelled:
        result["annotated"] = len(cloud.boxes)
        truth = cloud.boxes[:, :2], cloud.labels
        result["right"] = {
            name: len(pair_up(*_places(found), *truth, MATCHED_M))
            for name, found in engines.items()
        }
    return result


def _places(found: Detections) -> tuple[Tensor, Tensor]:
    return found.boxes_det3d[:, :2], found.labels


def occupied_cells(points: Tensor) -> Tensor:
    """Centres and mean heights of the cells that hold a point, [cells, 3]."""
    cells, member = torch.unique(
        (points[:, :2] / CELL_M).floor().long(), dim=0, return_inverse=True
    )
    count = torch.bincount(member, minlength=len(cells))
    height = torch.bincount(member, points[:, 2].double(), minlength=len(cells)) / count
    return torch.cat([(cells + 0.5) * CELL_M, height[:, None]], dim=1).float()


def draw(cloud: Cloud, of_float: Detections, of_int8: Detections, half_width_m: float) -> bytes:
    """The cells of a cloud from above, with the boxes."""
    boxes = [shown(found).boxes_det3d.numpy().astype(np.float32) for found in (of_float, of_int8)]
    ground = occupied_cells(cloud.points).numpy()
    return draw_bev(
        FramePicture("", ground, cloud.boxes.numpy(), boxes[0], boxes[1]),
        half_width_m=half_width_m,
    )


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--real", type=Path, required=True, help="folder of real nuScenes LiDAR")
    parser.add_argument("--weights", type=Path, required=True, help="float weights")
    parser.add_argument("--state", type=Path, required=True, help="the same, quantized")
    parser.add_argument("--config", default="centerpoint_voxel0075")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--pictures", type=Path, default=REPOSITORY / "docs" / "pictures")
    parser.add_argument(
        "--out", type=Path, default=REPOSITORY / "benchmarks" / "results" / "real_clouds.json"
    )
    arguments = parser.parse_args(argv)
    config = load_config(arguments.config)
    result = detect_in(read_clouds(arguments.real, config.class_names), config, arguments)
    print(f"Written: {write_json_atomic(arguments.out, result)}")


def detect_in(
    clouds: list[Cloud], config: DetectorConfig, arguments: argparse.Namespace
) -> dict[str, Any]:
    """The figures of every cloud; its picture is drawn on the way."""
    detectors = [
        open_detector(config, weights, engine, arguments.device)
        for weights, engine in ((arguments.weights, Engine.FLOAT), (arguments.state, Engine.INT8))
    ]
    half_width_m = float(config.point_range[3])
    figures: dict[str, Any] = {}
    for cloud in clouds:
        of_float, of_int8 = (detector.detect([cloud.points])[0] for detector in detectors)
        figures[cloud.name] = compare(cloud, of_float, of_int8)
        print(cloud.name, figures[cloud.name])
        with atomic_path(arguments.pictures / f"real_{cloud.name}.png") as temporary:
            temporary.write_bytes(draw(cloud, of_float, of_int8, half_width_m))
        print(f"Written: {arguments.pictures / f'real_{cloud.name}.png'}")
    limits = {"shown_score": SHOWN_SCORE, "matched_m": MATCHED_M, "same_m": SAME_M}
    return {"clouds": figures, "limits": limits, **provenance(config=config)}


if __name__ == "__main__":
    main()
