"""What the verbs leave in several processes beside what they leave in one, and the time.

    python benchmarks/many_processes.py [--processes 2] [--device auto] [--frames 96]

A synthetic dataset and the shipped weights; on a machine with two GPUs this takes about four
minutes. Exits with 1 where `ptq`, `eval` or `sensitivity` leaves anything else than in one process,
or where the mean loss of ten steps of `qat`, on the same frames, is a tenth off.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from voxelquant.recipes.demo import tiny_weights

CONFIG = "centerpoint_tiny"
BALANCED = ("--class-mix", "balanced")  # few frames must hold every class
ONE = (sys.executable,)
KEY_FRAMES = 4  # of a scene; one scene in four validates
MORE = {
    "ptq": ("--num-workers", 2),
    "eval": ("--num-workers", 2),
    "sensitivity": ("--frames", 6, "--calibrate-batches", 8, "--metric", "proxy"),
}


def left_by(verb: str, work_dir: Path) -> object:
    """What has to be the same however many processes there were."""
    if verb == "ptq":
        return (work_dir / "ptq.safetensors").read_bytes()
    if verb == "eval":
        return (work_dir / "submission.json").read_bytes()
    return json.loads((work_dir / "sensitivity.json").read_text())["layers"]


def several(processes: int) -> tuple[str, ...]:
    return (*ONE, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}")


def run(launcher: tuple[str, ...], *arguments: object) -> float:
    """Seconds of a verb, its start included."""
    started = time.perf_counter()
    command = [*launcher, "-m", "voxelquant", *map(str, arguments)]
    # As torchrun does for each of several: threads change the order of sums.
    subprocess.run(command, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    return time.perf_counter() - started


def compare(folder: Path, processes: int, device: str, frames: int) -> bool:
    data = folder / "data"
    scenes = max(4, frames // KEY_FRAMES)
    run(ONE, "synth", "--out", data, "--scenes", scenes, "--key-frames", KEY_FRAMES, *BALANCED)
    common = (CONFIG, "--data", data, "--weights", tiny_weights(), "--device", device)
    equal = True
    launchers = {"one": ONE, "one again": ONE, "several": several(processes)}
    for verb, more in MORE.items():
        left = {}
        for name, launcher in launchers.items():
            work_dir = folder / f"{verb} {name}"
            seconds = run(launcher, verb, *common, *more, "--work-dir", work_dir)
            left[name] = left_by(verb, work_dir)
            same = left[name] == left["one"]
            equal &= same
            print(f"{verb:12}{name:10}{seconds:6.1f} s  {'equal' if same else 'DIFFERS'}")
    return equal


def compare_training(folder: Path, processes: int, device: str) -> bool:
    """QAT on the same frames in all; near, since each process divides by its own objects."""
    batch_size = 4 * processes
    common = ("qat", CONFIG, "--data", folder / "data", "--device", device)
    common += ("--weights", folder / "ptq one/ptq.safetensors", "--steps", 10, "--freeze-bn")
    losses = {}
    launchers = {"one": (ONE, batch_size), "several": (several(processes), 4)}
    for name, (launcher, size) in launchers.items():
        work_dir = folder / f"qat {name}"
        seconds = run(launcher, *common, "--batch-size", size, "--work-dir", work_dir)
        (line,) = (work_dir / "log.jsonl").read_text().splitlines()
        losses[name] = json.loads(line)["loss"]
        print(f"{'qat':12}{name:10}{seconds:6.1f} s  loss {losses[name]:.4f}")
    return abs(losses["one"] - losses["several"]) <= 0.1 * losses["one"]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--frames", type=int, default=96)
    options = parser.parse_args()
    names = {torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())}
    print(f"torch {torch.__version__}, {torch.cuda.device_count()} GPUs {sorted(names)}")
    with tempfile.TemporaryDirectory() as folder:
        equal = compare(Path(folder), options.processes, options.device, options.frames)
        near = compare_training(Path(folder), options.processes, options.device)
    sys.exit(0 if equal and near else 1)


if __name__ == "__main__":
    main()
