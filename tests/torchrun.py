"""A verb in several processes on this machine's CPU, as `torchrun -m voxelquant VERB` starts it."""

import os
import subprocess
import sys
from pathlib import Path

SOURCES = Path(__file__).parents[1] / "src"


def torchrun(*arguments: object, processes: int = 2) -> subprocess.CompletedProcess[str]:
    """Run a verb in processes that talk over gloo; five minutes without an end fail.

    torchrun itself exits with 1 when a process does not exit with 0. Launching costs seconds, so
    a test asks much of each launch.
    """
    launcher = ("torch.distributed.run", "--standalone", "--nproc-per-node", str(processes))
    return subprocess.run(
        [sys.executable, "-m", *launcher, "-m", "voxelquant", *map(str, arguments)],
        env=one_thread(),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def one_thread() -> dict[str, str]:
    """Environment of a process with our sources, one thread and no GPU."""
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(SOURCES), os.environ.get("PYTHONPATH", "")]),
        "OMP_NUM_THREADS": "1",  # several processes share the cores, and sums keep their order
        "CUDA_VISIBLE_DEVICES": "",
    }
