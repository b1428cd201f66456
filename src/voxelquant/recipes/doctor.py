"""What this machine can run, and what to install so that it can run more."""

import shutil
import sys
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from voxelquant import __version__
from voxelquant.recipes.machine import describe_machine, package_version

OLDEST_PYTHON = (3, 10)
NEWEST_PYTHON_OF_DEVKIT = (3, 12)
ROOM_FOR_A_RUN_GIB = 1.0


@dataclass(frozen=True)
class Finding:
    """One line of the diagnosis: what was looked at, what was found, what would mend it."""

    subject: str
    found: str
    fine: bool = True
    advice: str | None = None


def examine_machine(folder: Path | None = None) -> list[Finding]:
    """Look at the interpreter, torch, the GPU, the optional packages and the disk of `folder`."""
    return [
        Finding("voxelquant", __version__),
        *_python(),
        *_torch(),
        _triton(),
        _spconv(),
        _devkit(),
        _pictures(),
        *_hardware(folder if folder is not None else Path.cwd()),
    ]


def _python() -> list[Finding]:
    version = ".".join(map(str, sys.version_info[:3]))
    fine = OLDEST_PYTHON <= sys.version_info[:2] <= NEWEST_PYTHON_OF_DEVKIT
    advice = None if fine else "use Python 3.10, 3.11 or 3.12: nuscenes-devkit has no other"
    return [Finding("python", version, fine, advice)]


def _torch() -> list[Finding]:
    try:
        import torch
    except (ImportError, OSError) as error:  # OSError: a shared library of another CUDA is missing
        reason = str(error).splitlines()[0]
        advice = "install torch >= 2.8, see pytorch.org"
        return [Finding("torch", f"cannot be imported: {reason}", False, advice)]
    build = f"CUDA {torch.version.cuda}" if torch.version.cuda else "CPU build"
    findings = [Finding("torch", f"{torch.__version__} ({build})")]
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            properties = torch.cuda.get_device_properties(index)
            findings.append(
                Finding(
                    f"cuda:{index}",
                    f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB, "
                    f"sm_{properties.major}{properties.minor}",
                )
            )
    elif torch.version.cuda is None:
        findings.append(Finding("cuda", "none: everything runs on the CPU"))
    else:
        advice = "check the driver with nvidia-smi, or take the CPU build of torch"
        findings.append(Finding("cuda", "this build of torch finds no GPU", False, advice))
    return findings


def _triton() -> Finding:
    version = package_version("triton")
    if version is None:
        return Finding("triton", "none: it comes with the CUDA build of torch")
    return Finding("triton", version)


def _spconv() -> Finding:
    flavours = sorted(
        f"{name} {distribution.version}"
        for distribution in metadata.distributions()
        if (name := (distribution.metadata["Name"] or "").lower()).startswith("spconv")
    )
    if not flavours:
        return Finding("spconv", "none: needed only for models already built on it")
    if len(flavours) > 1:
        advice = "they overwrite each other's files: uninstall all of them, then install one"
        return Finding("spconv", ", ".join(flavours), False, advice)
    return Finding("spconv", flavours[0])


def _devkit() -> Finding:
    version = package_version("nuscenes-devkit")
    advice = "pip install 'voxelquant[nuscenes]'"
    if version is None:
        return Finding("nuscenes-devkit", "none: no datasets, no official metric", False, advice)
    if not version.startswith("1.2."):
        return Finding("nuscenes-devkit", f"{version}, need 1.2", False, advice)
    return Finding("nuscenes-devkit", version)


def _pictures() -> Finding:
    version = package_version("matplotlib")
    if version is None:
        return Finding("pictures", "no matplotlib", False, "pip install 'voxelquant[viz]'")
    return Finding("pictures", f"matplotlib {version}")


def _hardware(folder: Path) -> list[Finding]:
    machine = describe_machine()
    memory = "" if machine.memory_gib is None else f", {machine.memory_gib:.0f} GiB of memory"
    free_gib = shutil.disk_usage(folder).free / 2**30
    fine = free_gib >= ROOM_FOR_A_RUN_GIB
    advice = None if fine else f"make room: a run wants {ROOM_FOR_A_RUN_GIB:.0f} GiB"
    return [
        Finding("machine", f"{machine.cpu_model}, {machine.cores} cores{memory}"),
        Finding("disk", f"{free_gib:.1f} GiB free in {folder}", fine, advice),
    ]
