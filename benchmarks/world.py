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
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from world_comparison import compare_world
from world_summary import quantiles

from voxelquant.data.frame import Frame
from voxelquant.data.synthetic import WORLD_VERSION, WorldConfig, generate_frames

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
        measured = compare_world(frames, arguments.seed, WORLD, arguments.real)
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
        print(f"Written: {arguments.out}")


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


def spread_of_times(seconds: list[float]) -> dict[str, float]:
    low, median, high = quantiles(torch.tensor(seconds), (0.2, 0.5, 0.8)).tolist()
    return {"median": median, "p20": low, "p80": high}


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
