"""What pasting objects (GT-AUG) costs: building the database, and each training frame.

    python benchmarks/object_pasting.py --out benchmarks/results/object_pasting_cpu.json
    python benchmarks/object_pasting.py --device cuda --out object_pasting.json

On a CPU a synthetic dataset is written, its database built as `voxelquant train` builds it, and
objects are pasted from the memory-mapped file; on a GPU they are pasted from the device's memory,
as into synthetic frames. Frames have 10 sweeps; objects are drawn as `centerpoint_voxel0075` says.
"""

import argparse
import os
import resource
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from voxelquant.data import Frame, NuScenesDataset
from voxelquant.data.object_database import ObjectDatabase, build_database, database_name
from voxelquant.data.object_sampler import ObjectSampler
from voxelquant.data.objects import ObjectsInMemory, ObjectSource
from voxelquant.data.sampling import seeded_generator
from voxelquant.data.synthetic import TABLE_VERSION, generate_frames
from voxelquant.detection.config import load_config
from voxelquant.recipes.artifacts import provenance, write_json_atomic
from voxelquant.recipes.progress import StageReporter
from voxelquant.recipes.synth import SynthRequest, run_synth
from voxelquant.recipes.training_source import keep_seen_boxes

SEED = 41
CONFIG = load_config("centerpoint_voxel0075")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--frames", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=10, help="objects pasted into each frame")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    figures = {"device": arguments.device, "threads": arguments.threads}
    figures |= {"load_average": os.getloadavg()[0]}  # others' work slows a thread down
    if arguments.device == "cpu":
        figures |= measure_on_disk(arguments.frames, arguments.rounds)
    else:
        frames = [
            keep_seen_boxes(frame)
            for frame in generate_frames(
                SEED, range(arguments.frames), key_frames=1, device=arguments.device
            )
        ]
        begin = time.perf_counter()
        source = ObjectsInMemory(frames, CONFIG.class_names)
        torch.cuda.synchronize()
        figures["cut_ms_per_frame"] = 1e3 * (time.perf_counter() - begin) / len(frames)
        figures |= measure_pasting(source, frames, arguments.rounds)
    write_json_atomic(arguments.out, {**figures, **provenance(seed=SEED)})
    print(arguments.out.read_text())


def measure_on_disk(n_frames: int, rounds: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "data"
        request = SynthRequest(root, seed=SEED, splits=(f"fit={n_frames // 2}",))
        run_synth(request, StageReporter())
        dataset = NuScenesDataset(root, TABLE_VERSION, "fit", CONFIG.class_names)
        frame = time_call(lambda: dataset[0])
        path = root / database_name(dataset)
        before = peak_mb()
        build_s = time_call(lambda: build_database(dataset, path))
        source = ObjectDatabase(path)
        return {
            "frames": len(dataset),
            "read_ms_per_frame": 1e3 * frame,
            "build_ms_per_frame": 1e3 * build_s / len(dataset),
            "build_peak_memory_growth_mb": peak_mb() - before,
            "file_mb": path.stat().st_size / 1e6,
            **measure_pasting(source, list(dataset), rounds),
        }


def measure_pasting(source: ObjectSource, frames: Sequence[Frame], rounds: int) -> dict[str, Any]:
    assert CONFIG.train.object_sampler is not None
    paste = ObjectSampler(source, CONFIG.class_names, CONFIG.train.object_sampler)
    synchronize = torch.cuda.synchronize if frames[0].points.is_cuda else lambda: None
    seconds, pasted = [], 0
    for number in range(rounds * len(frames)):
        frame, generator = frames[number % len(frames)], seeded_generator(number)
        synchronize()
        begin = time.perf_counter()
        result = paste(frame, generator)
        synchronize()
        seconds.append(time.perf_counter() - begin)
        pasted += len(result.labels) - len(frame.labels)  # type: ignore[arg-type]
    deciles = [1e3 * value for value in statistics.quantiles(seconds[len(frames) :], n=10)]
    return {
        "objects": len(source.index),
        "points_per_frame": sum(len(frame.points) for frame in frames) / len(frames),
        "pasted_per_frame": pasted / (rounds * len(frames)),
        "paste_ms_per_frame": {"median": deciles[4], "p20": deciles[1], "p80": deciles[7]},
    }


def time_call(act: Any) -> float:
    begin = time.perf_counter()
    act()
    return time.perf_counter() - begin


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    main()
