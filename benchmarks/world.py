"""How fast the synthetic world makes key frames, and how its frames compare with nuScenes.

    python benchmarks/world.py --real REAL_LIDAR --out benchmarks/results/world_cpu.json
    python benchmarks/world_report.py

Every frame has ten sweeps, boxes included. CPU frames are made one at a time, GPU frames in
batches; only the making of frames is timed. Of real points nothing but histograms, quantiles and
sums is written. REAL_LIDAR holds a ten-sweep cloud (nuscenes_10sweeps_271156.npz), a labelled key
frame (nuscenes_keyframe_scene0061.npz and _gt.json), a voxelized frame (nuscenes_voxels_79745.npz)
and the voxel counts of the validation set (nuscenes_val_voxel_counts.csv); it is no part of the
project. Without it the result holds the synthetic figures alone, of which no page can be written.
"""

import argparse
import json
import os
import re
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from world_boxes import (
    DISTANCE_STEP_M,
    FEW_BOXES,
    POINT_EDGES,
    QUANTILES,
    SPEED_STEP_MPS,
    Boxes,
    count_attributes,
    describe_boxes,
    measure_boxes,
)
from world_measures import (
    MEASURES,
    FrameFigures,
    beams_of,
    intensity_over_range,
    measure_cloud,
    measure_key_frame,
)
from world_nuscenes import (
    measure_real_frames,
    published_statistics,
    read_voxel_counts,
    real_boxes,
    real_intensity_over_range,
)
from world_summary import (
    describe_voxel_counts,
    summarize_intensity,
    summarize_real,
    summarize_world,
)

from voxelquant.data.frame import Frame
from voxelquant.data.synthetic import (
    WORLD_VERSION,
    SceneSpec,
    WorldConfig,
    generate_frames,
    write_dataset,
)
from voxelquant.data.synthetic.taxonomy import KINDS, N_CLASSES

SEED = 31  # of no training, calibration or validation scene
WORLD = WorldConfig()


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cpu", help="where frames are made (default: cpu)")
    parser.add_argument(
        "--threads", type=int, default=2, help="of torch while a frame is made (default: 2)"
    )
    parser.add_argument("--frames", type=int, default=200, help="one a scene (default: 200)")
    parser.add_argument(
        "--batch", type=int, default=0, help="scenes a call; 0: 1 on CPU, 64 on GPU"
    )
    parser.add_argument("--seed", type=int, default=SEED, help=f"of the world (default: {SEED})")
    parser.add_argument("--timed-only", action="store_true", help="make frames, measure nothing")
    parser.add_argument("--real", type=Path, help="folder of real nuScenes LiDAR to compare with")
    parser.add_argument("--commit", help="of this code, where it is no checkout")
    parser.add_argument("--out", type=Path, help="JSON to write (default: print it)")
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    batch = arguments.batch or (1 if arguments.device == "cpu" else 64)
    seconds: list[float] = []
    frames = make_frames(arguments, batch, seconds)
    if arguments.timed_only:
        measured = {"frames": sum(1 for _ in frames)}
    else:
        measured = measure_world(frames, arguments)
    result = {
        "machine": describe_machine(arguments.device, arguments.threads),
        "commit": arguments.commit or git_commit(),
        "world_version": WORLD_VERSION,
        "seed": arguments.seed,
        "batch": batch,
        "seconds_per_frame": spread_of_times(seconds),
        **measured,
    }
    text = dump(result)
    if arguments.out is None:
        print(text)
    else:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(text + "\n")


def make_frames(arguments: argparse.Namespace, batch: int, seconds: list[float]) -> Iterator[Frame]:
    """One key frame of each scene, on the CPU; `seconds` takes the time a frame of each call."""
    device = torch.device(arguments.device)

    def make(start: int) -> list[Frame]:
        scenes = range(start, start + batch)
        return generate_frames(arguments.seed, scenes, key_frames=1, device=device, config=WORLD)

    def synchronize() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize()

    torch.set_num_threads(arguments.threads)
    make(0)  # warm-up
    for start in range(0, arguments.frames, batch):
        torch.set_num_threads(arguments.threads)
        synchronize()
        begin = time.perf_counter()
        made = make(start)
        synchronize()
        seconds.append((time.perf_counter() - begin) / batch)
        torch.set_num_threads(1)  # to measure: two threads wait for each other on a busy machine
        yield from (frame.to("cpu") for frame in made)


def measure_world(frames: Iterator[Frame], arguments: argparse.Namespace) -> dict[str, Any]:
    """All figures of the frames, beside those of nuScenes where there is a folder of it."""
    figures: list[FrameFigures] = []
    boxes: list[Boxes] = []
    intensity: Tensor | None = None
    for frame in frames:
        key = frame.points[frame.points[:, 4] == 0]
        beams = beams_of(key, WORLD.lidar.elevations_rad())
        figures.append(measure_cloud(frame.points).update(measure_key_frame(key, beams)))
        assert frame.boxes_det3d is not None
        assert frame.labels is not None
        boxes.append(measure_boxes(frame.boxes_det3d, frame.labels, key))
        counts = intensity_over_range(key)
        intensity = counts if intensity is None else intensity + counts
    assert intensity is not None
    measured: dict[str, Any] = {
        "frames": len(figures),
        "measures": describe_measures(),
        "firings": WORLD.lidar.columns,
        "synthetic": {
            **summarize_world(figures, WORLD.lidar.columns),
            "intensity_over_range": summarize_intensity(intensity),
            "boxes": describe_boxes(Boxes.join(boxes), len(figures)),
            "attributes": attributes_of(arguments.seed, len(figures)),
        },
    }
    if arguments.real is not None:
        measured["nuscenes"] = describe_nuscenes(arguments.real)
        voxels = torch.tensor([frame.scalars["voxels"] for frame in figures]).double()
        measured["voxel_counts"] = describe_voxel_counts(voxels, read_voxel_counts(arguments.real))
    return measured


def describe_measures() -> dict[str, Any]:
    """What the histograms count and where their bins are."""
    histograms = {name: asdict(measure) for name, measure in MEASURES.items()}
    boxes = {
        "distance_step_m": DISTANCE_STEP_M,
        "point_edges": POINT_EDGES,
        "speed_step_mps": SPEED_STEP_MPS,
        "quantiles": QUANTILES,
        "few_boxes": FEW_BOXES,
        "ranges_m": {kind.name: kind.range_m for kind in KINDS[:N_CLASSES]},
    }
    return {"histograms": histograms, "boxes": boxes}


def describe_nuscenes(folder: Path) -> dict[str, Any]:
    return {
        "frames": summarize_real(measure_real_frames(folder)),
        "intensity_over_range": summarize_intensity(real_intensity_over_range(folder)),
        "boxes": real_boxes(folder),
        "published": published_statistics(),
    }


def attributes_of(seed: int, scenes: int) -> dict[str, int]:
    """Annotations of each attribute in the same scenes, by their tables; one sweep is enough."""
    config = WorldConfig(sweeps=1)
    specs = [SceneSpec(seed, scene, key_frames=1) for scene in range(scenes)]
    with tempfile.TemporaryDirectory() as folder:
        root = write_dataset(Path(folder) / "world", {"val": specs}, config=config)
        return count_attributes(root)


def spread_of_times(seconds: list[float]) -> dict[str, float]:
    deciles = statistics.quantiles(seconds, n=10) if len(seconds) > 1 else seconds * 9
    return {"median": statistics.median(seconds), "p20": deciles[1], "p80": deciles[7]}


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


def dump(result: dict[str, Any]) -> str:
    """JSON with five significant digits and every list of numbers on one line."""
    text = json.dumps(round_numbers(result), indent=1)
    return re.sub(r"\[[^\[\]{}\"]*\]", lambda found: " ".join(found[0].split()), text)


def round_numbers(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.5g}")
    if isinstance(value, dict):
        return {name: round_numbers(part) for name, part in value.items()}
    return [round_numbers(part) for part in value] if isinstance(value, (list, tuple)) else value


if __name__ == "__main__":
    main()
