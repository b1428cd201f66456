"""How fast the synthetic world makes key frames, and how its frames compare with nuScenes.

    python benchmarks/world.py --frames 60 --real REAL_LIDAR --out benchmarks/results/world_cpu.json

Every frame has 10 sweeps, boxes included. CPU frames are made one at a time, GPU frames in batches.
"""

import argparse
import csv
import itertools
import json
import os
import statistics
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from voxelquant.data.frame import Frame
from voxelquant.data.synthetic import CLASS_NAMES, WORLD_VERSION, generate_frames
from voxelquant.data.synthetic.taxonomy import KINDS

SEED = 31  # of no training, calibration or validation scene
VOXEL_M = (0.075, 0.075, 0.2)
RANGE_M = (-54.0, -54.0, -5.0, 54.0, 54.0, 3.0)
DISTANCES_M = (0, 10, 20, 30, 40, 50)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--frames", type=int, default=40)
    parser.add_argument(
        "--batch", type=int, default=0, help="scenes a call; 0: 1 on CPU, 64 on GPU"
    )
    parser.add_argument("--real", type=Path, help="folder of real nuScenes LiDAR to compare with")
    parser.add_argument("--commit", help="of this code, where it is no checkout")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    batch = arguments.batch or (1 if arguments.device == "cpu" else 64)
    seconds, frames = time_frames(arguments.device, arguments.frames, batch)
    result: dict[str, Any] = {
        "machine": describe_machine(arguments.device, arguments.threads),
        "commit": arguments.commit or git_commit(),
        "world_version": WORLD_VERSION,
        "seed": SEED,
        "frames": len(frames),
        "batch": batch,
        "seconds_per_frame": seconds,
        "frame": describe_frames(frames),
    }
    if arguments.real:
        result["nuscenes"] = describe_nuscenes(arguments.real)
    text = json.dumps(result, indent=1)
    print(text)
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(text + "\n")


def time_frames(device: str, count: int, batch: int) -> tuple[dict[str, float], list[Frame]]:
    synchronize: Callable[[], None] = (
        torch.cuda.synchronize if torch.device(device).type == "cuda" else lambda: None
    )
    generate_frames(SEED, range(batch), key_frames=1, device=device)  # warm-up
    frames: list[Frame] = []
    seconds = []
    for start in range(0, count, batch):
        synchronize()
        begin = time.perf_counter()
        made = generate_frames(SEED, range(start, start + batch), key_frames=1, device=device)
        synchronize()
        seconds.append((time.perf_counter() - begin) / batch)
        frames.extend(frame.to("cpu") for frame in made)
    deciles = statistics.quantiles(seconds, n=10) if len(seconds) > 1 else seconds * 9
    return {"median": statistics.median(seconds), "p20": deciles[1], "p80": deciles[7]}, frames


def describe_frames(frames: list[Frame]) -> dict[str, object]:
    voxels = torch.tensor([count_voxels(frame.points) for frame in frames]).double()
    points = torch.cat([frame.points for frame in frames])
    levels = torch.tensor([0.05, 0.25, 0.5, 0.75, 0.95], dtype=torch.float64)
    return {
        "voxels": spread_of(voxels, levels),
        "points": len(points) / len(frames),
        "key_frame_points": float((points[:, 4] == 0).sum()) / len(frames),
        "intensity": spread_of(points[:, 3].double(), levels),
        "range_shares": range_shares(points),
        "classes": {name: describe_class(frames, label) for label, name in enumerate(CLASS_NAMES)},
    }


def describe_nuscenes(folder: Path) -> dict[str, object]:
    """The same figures for what there is of nuScenes: sums and quantiles, no data."""
    levels = torch.tensor([0.05, 0.25, 0.5, 0.75, 0.95], dtype=torch.float64)
    with (folder / "nuscenes_val_voxel_counts.csv").open() as file:
        voxels = torch.tensor([float(row["num_voxels"]) for row in csv.DictReader(file)])
    cloud = np.load(folder / "nuscenes_10sweeps_271156.npz")["points"].astype(np.float32)
    key = np.load(folder / "nuscenes_keyframe_scene0061.npz")["points"]
    key, cloud = key[np.hypot(key[:, 0], key[:, 1]) > 1.5], cloud[np.hypot(*cloud[:, :2].T) > 1.5]
    truth = json.loads((folder / "nuscenes_keyframe_scene0061_gt.json").read_text())
    boxes = torch.tensor(truth["boxes_xyzlwh_yaw"])
    hits, names = torch.tensor(truth["num_lidar_pts"]), truth["names"]
    classes = {
        name: describe_boxes(boxes[chosen, :2].norm(dim=1), hits[chosen], KINDS[label].range_m)
        for label, name in enumerate(CLASS_NAMES)
        if (chosen := torch.tensor([found == name for found in names])).any()
    }
    return {
        "voxels": spread_of(voxels.double(), levels),
        "key_frame_points": len(key),
        "points": len(cloud),
        "intensity": spread_of(torch.from_numpy(cloud[:, 3]).double(), levels),
        "range_shares": range_shares(torch.from_numpy(cloud)),
        "classes": classes,
    }


def range_shares(points: torch.Tensor) -> dict[str, float]:
    range_m = points[:, :2].double().norm(dim=1)
    return {
        f"{near}-{far} m": float(((range_m >= near) & (range_m < far)).double().mean())
        for near, far in itertools.pairwise((0, 5, 10, 15, 20, 30, 40, 50, 110))
    }


def count_voxels(points: torch.Tensor) -> int:
    low, size = torch.tensor(RANGE_M[:3]), torch.tensor(VOXEL_M)
    cells = torch.floor((points[:, :3] - low) / size).long()
    grid = torch.round((torch.tensor(RANGE_M[3:]) - low) / size).long()
    cells = cells[((cells >= 0) & (cells < grid)).all(1)]
    return len(torch.unique((cells[:, 2] * grid[1] + cells[:, 1]) * grid[0] + cells[:, 0]))


def spread_of(values: torch.Tensor, levels: torch.Tensor) -> dict[str, float]:
    ranked = values.sort().values
    picks = ranked[(levels * (len(ranked) - 1)).round().long()].tolist()
    named = {
        f"p{round(100 * level)}": pick for level, pick in zip(levels.tolist(), picks, strict=True)
    }
    return {"mean": float(values.mean()), **named}


def describe_class(frames: list[Frame], label: int) -> dict[str, object]:
    chosen = [frame.labels == label for frame in frames]
    distance = [f.boxes_det3d[mine, :2].norm(dim=1) for f, mine in zip(frames, chosen, strict=True)]
    hits = [f.num_lidar_pts[mine] for f, mine in zip(frames, chosen, strict=True)]
    figures = describe_boxes(torch.cat(distance), torch.cat(hits), KINDS[label].range_m)
    return {
        **figures,
        "boxes_per_frame": figures["boxes"] / len(frames),
        "visible_per_frame": figures["visible"] / len(frames),
    }


def describe_boxes(distance: torch.Tensor, hits: torch.Tensor, limit_m: float) -> dict[str, Any]:
    within = distance < limit_m
    by_distance = {}
    for near, far in itertools.pairwise(DISTANCES_M):
        ring = within & (distance >= near) & (distance < far)
        if ring.any():
            by_distance[f"{near}-{far} m"] = {
                "boxes": int(ring.sum()),
                "median_points": float(hits[ring].double().median()),
                "without_points": float((hits[ring] == 0).double().mean()),
            }
    return {
        "boxes": int(within.sum()),
        "visible": int((within & (hits > 0)).sum()),
        "by_distance": by_distance,
    }


def describe_machine(device: str, threads: int) -> dict[str, object]:
    machine: dict[str, object] = {"torch": torch.__version__, "device": device}
    if torch.device(device).type == "cuda":
        machine["gpu"] = torch.cuda.get_device_name()
    else:
        machine["threads"], machine["cores"] = threads, os.cpu_count()
        machine["load_average"] = os.getloadavg()[0]  # others' work slows two threads down
    return machine


def git_commit() -> str:
    folder = Path(__file__).parent
    command = ["git", "-C", str(folder), "rev-parse", "--short", "HEAD"]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    return found.stdout.strip() or "unknown"


if __name__ == "__main__":
    main()
