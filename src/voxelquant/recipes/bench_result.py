"""What a benchmark found, and its form as JSON."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch

from voxelquant.recipes.artifacts import provenance
from voxelquant.recipes.bench_gate import GateCheck
from voxelquant.recipes.bench_measure import CallTiming, PlanMemory, StageBreakdown
from voxelquant.recipes.machine import package_version

RESULT_FILE = "result.json"
PEER = "spconv_fp16"
PEER_PACKAGES = ("spconv", "spconv-cu126", "cumm", "cumm-cu126")
METHOD = {
    "wall": "from voxels on the device to the dense map [b, c * z, y, x], kernel maps included, "
    "with the host's work, the check that the frame fitted, and until its stream is done; "
    "median of single calls",
    "gpu": "by CUDA events around a call that is queued in advance; of our own engine its replay",
    "busy": "time during which a kernel, copy or memset ran, by torch's profiler",
    "caches": "`wall`, `gpu`, `busy` and stages repeat one frame and find the second-level cache "
    "as the call before left it; before `wall_cold` it is filled with other data",
    "weights": "fresh and seeded, batch norms with statistics; ranges from the frame itself",
    "batch": "the frame and its mirrored copies",
    "growth": "the frame cut to a sector, or grown by mirrored copies of itself",
}


@dataclass(frozen=True)
class Point:
    """One engine on one frame or batch.

    Attributes:
        what: the frame, in words.
        voxels: in all.
        batch_size: frames.
        timing: of a call.
    """

    what: str
    voxels: int
    batch_size: int
    timing: CallTiming

    @property
    def wall_ms_per_frame(self) -> float:
        """Median wall time divided by the frames."""
        return self.timing.wall.median_ms / self.batch_size

    @property
    def busy_ms(self) -> float | None:
        """Time during which the GPU was busy, of the whole call."""
        return None if self.timing.busy is None else self.timing.busy.busy_ms


@dataclass(frozen=True)
class EngineResult:
    """What was measured of one engine.

    Attributes:
        how: recipe of our own engine, or variant of the peer.
        latency: one frame.
        throughput: a batch, or None.
        growth: over the number of voxels.
        cloud: a cloud voxelized by this package, or None.
        stages: where the time of one frame goes, of our own engine.
        memory: of our own engine.
        batch_stages: as `stages`, of a batch.
    """

    how: str
    latency: Point
    throughput: Point | None = None
    growth: tuple[Point, ...] = ()
    cloud: Point | None = None
    stages: StageBreakdown | None = None
    memory: PlanMemory | None = None
    batch_stages: StageBreakdown | None = None


@dataclass(frozen=True)
class BenchResult:
    """All engines, and what they were measured on.

    Attributes:
        device: where.
        frame: name and number of voxels of the frame of `latency`.
        engines: by precision, and `spconv_fp16`.
        unavailable: what was asked for and not measured, with the reason.
        gate: comparisons that held before anything was timed.
        tried: wall time in ms of every variant of the peer, or why it was not taken.
        max_voxels: bound that plans of one frame were made for.
        settings: what the command line asked for.
        seed: of the weights.
        commit: of this code; by default what git says of the checkout.
    """

    device: str
    frame: tuple[str, int]
    engines: Mapping[str, EngineResult]
    unavailable: Mapping[str, str]
    gate: tuple[GateCheck, ...]
    tried: Mapping[str, float | str]
    max_voxels: int
    settings: Mapping[str, Any]
    seed: int
    commit: str | None = None

    def to_json(self) -> dict[str, Any]:
        """The result with everything that is needed to get its numbers again."""
        name, voxels = self.frame
        origin = provenance(config=self.settings, seed=self.seed)
        return {
            "device": self.device,
            "frame": {"name": name, "voxels": voxels},
            "max_voxels": self.max_voxels,
            "backbone_ms": self._each(lambda e: e.latency.timing.wall.median_ms),
            "busy_ms": self._each(lambda e: e.latency.busy_ms),
            "throughput_b8_ms_per_frame": self._each(
                lambda e: e.throughput and e.throughput.wall_ms_per_frame
            ),
            "memory": self._each(lambda e: e.memory and asdict(e.memory)),
            "stages": self._each(lambda e: e.stages and _stages(e.stages)),
            "batch_stages": self._each(lambda e: e.batch_stages and _stages(e.batch_stages)),
            "latency": self._each(lambda e: asdict(e.latency)),
            "throughput": self._each(lambda e: e.throughput and asdict(e.throughput)),
            "scaling": self._each(lambda e: [asdict(point) for point in e.growth]),
            "cloud": self._each(lambda e: e.cloud and asdict(e.cloud)),
            "how": self._each(lambda e: e.how),
            "unavailable": dict(self.unavailable),
            "gate": [asdict(check) for check in self.gate],
            "peer_variants_ms": dict(self.tried),
            "method": METHOD,
            "gpu": gpu_facts(self.device),
            "peer_versions": {name: package_version(name) for name in PEER_PACKAGES},
            **origin,
            "commit": self.commit or origin["commit"],
        }

    def _each(self, of: Callable[[EngineResult], Any]) -> dict[str, Any]:
        absent = dict.fromkeys(self.unavailable)
        return {name: of(engine) for name, engine in self.engines.items()} | absent


def gpu_facts(device: str) -> dict[str, Any] | None:
    """What the GPU is and which driver runs it; None on a CPU."""
    if torch.device(device).type != "cuda":
        return None
    properties = torch.cuda.get_device_properties(device)
    return {
        "name": properties.name,
        "compute_capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "memory_bytes": properties.total_memory,
        "l2_bytes": getattr(properties, "L2_cache_size", None),
        "cuda": torch.version.cuda,
        "driver": _driver_version(),
    }


def _driver_version() -> str | None:
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    query = [program, "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    lines = answer.stdout.split()
    return lines[0] if answer.returncode == 0 and lines else None


def _stages(stages: StageBreakdown) -> dict[str, Any]:
    return {
        "by_kind_ms": stages.by_kind,
        "gap_ms": stages.gap_ms,
        "replay_ms": stages.replay_ms,
        "each": [asdict(stage) for stage in stages.stages],
    }
