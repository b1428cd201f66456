"""A result as a GPU would leave it, with invented figures: for tests of what reads one."""

from typing import Any

from voxelquant.evaluation.gpu_timing import BusyTime
from voxelquant.evaluation.latency import Latency
from voxelquant.recipes.artifacts import to_jsonable
from voxelquant.recipes.bench_gate import GateCheck
from voxelquant.recipes.bench_measure import CallTiming, PlanMemory, StageBreakdown, StageTiming
from voxelquant.recipes.bench_result import PEER, BenchResult, EngineResult, Point

VOXELS = 79_745


def make_latency(ms: float) -> Latency:
    return Latency(ms, 0.9 * ms, 1.1 * ms, 200)


def make_point(what: str, voxels: int, ms: float, batch_size: int = 1) -> Point:
    timing = CallTiming(
        make_latency(ms), make_latency(1.2 * ms), make_latency(0.9 * ms), BusyTime(0.8 * ms, 60)
    )
    return Point(what, voxels, batch_size, timing)


def make_engine(ms: float, how: str, *, ours: bool) -> EngineResult:
    stages = StageBreakdown(
        (
            StageTiming("inputs", "copy", 0.05 * ms),
            StageTiming("maps", "maps", 0.2 * ms),
            StageTiming("conv_input.0", "conv", 0.3 * ms),
            StageTiming("conv4.3.conv1", "conv", 0.25 * ms),
            StageTiming("dense", "densify", 0.1 * ms),
        ),
        0.95 * ms,
        0.05 * ms,
    )
    memory = PlanMemory({"buffers": 2**27, "weights": 2**23}, 2**28, 2**28, 2**29)
    return EngineResult(
        how,
        make_point("voxels.npz", VOXELS, ms),
        make_point("voxels.npz", 8 * VOXELS, 4 * ms, 8),
        tuple(
            make_point(name, n, ms * n / VOXELS) for name, n in (("10 k", 10_000), ("p50", 91_090))
        ),
        make_point("cloud.npz", 105_086, 1.3 * ms),
        stages if ours else None,
        memory if ours else None,
        stages if ours else None,
    )


def make_result() -> dict[str, Any]:
    """As `result.json` holds it."""
    result = BenchResult(
        device="cpu",
        frame=("voxels.npz", VOXELS),
        engines={
            "fp16": make_engine(0.44, "recipe fp16", ours=True),
            "int8": make_engine(0.42, "recipe reference", ours=True),
            PEER: make_engine(9.5, "MaskImplicitGemm, sorted", ours=False),
        },
        unavailable={"fp8": "no recipe 'fp8' in this version"},
        gate=(GateCheck("fp16", "near", 70.0, 1e-4, 0.01),),
        tried={"MaskImplicitGemm, sorted": 9.5, "Native": "did not run"},
        max_voxels=160_000,
        settings={
            "config": "centerpoint_voxel0075", "frame": "voxels.npz", "cloud": None,
            "counts": "counts.csv",
        },
        seed=0,
        commit="0" * 40,
    )  # fmt: skip
    content = to_jsonable(result.to_json())
    content["gpu"] = {"name": "Invented GPU", "driver": "1.0"}
    content["commit"] = "0" * 40
    content["versions"] |= {"torch": "2.11", "triton": "3.6.0"}
    return content
