"""What this machine is: for provenance beside every result, and for `voxelquant doctor`."""

import os
import platform
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path


@dataclass(frozen=True)
class MachineFacts:
    """The hardware that a number was measured on."""

    system: str
    cpu_model: str
    cores: int
    memory_gib: float | None
    gpus: tuple[str, ...]


def package_version(distribution: str) -> str | None:
    """Version of an installed distribution, None where it is absent; imports nothing."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def usable_cores() -> int:
    """Cores that this process may run on, which in a container is fewer than the machine has."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def describe_machine() -> MachineFacts:
    """Look at CPU, memory and GPUs; initialises CUDA where there is a GPU to name."""
    return MachineFacts(
        system=f"{platform.system()} {platform.machine()}",
        cpu_model=_cpu_model(),
        cores=usable_cores(),
        memory_gib=_memory_gib(),
        gpus=_gpu_names(),
    )


def _cpu_model() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _memory_gib() -> float | None:
    try:
        total_bytes = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):  # not a POSIX system
        return None
    return round(total_bytes / 2**30, 1)


def _gpu_names() -> tuple[str, ...]:
    import torch

    if not torch.cuda.is_available():
        return ()
    return tuple(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))
