"""What ptq and eval leave in several processes beside what they leave in one, and the time.

    python benchmarks/many_processes.py [--processes 2] [--device auto] [--frames 96]

A synthetic dataset and the shipped weights; on a machine with two GPUs this takes about two
minutes. Exits with 1 where several processes leave anything else than one does.
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
ONE = (sys.executable,)
KEY_FRAMES = 4  # of a scene; one scene in four validates


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
    run(ONE, "synth", "--out", data, "--scenes", scenes, "--key-frames", KEY_FRAMES)
    common = (CONFIG, "--data", data, "--weights", tiny_weights(), "--device", device)
    common += ("--num-workers", 2)
    equal = True
    launchers = {"one": ONE, "one again": ONE, "several": several(processes)}
    for verb, file in (("ptq", "ptq.safetensors"), ("eval", "submission.json")):
        left = {}
        for name, launcher in launchers.items():
            work_dir = folder / f"{verb} {name}"
            seconds = run(launcher, verb, *common, "--work-dir", work_dir)
            left[name] = (work_dir / file).read_bytes()
            metrics = json.loads((work_dir / "metrics.json").read_text())
            same = left[name] == left["one"]
            equal &= same
            print(
                f"{verb:5}{metrics['processes']} processes  {seconds:6.1f} s  {file} "
                f"{'equal' if same else 'DIFFERS'}",
                flush=True,
            )
    return equal


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
    sys.exit(0 if equal else 1)


if __name__ == "__main__":
    main()
