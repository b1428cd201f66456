"""`voxelquant bench`: how long the sparse backbone takes, after a gate, beside its peer.

Nothing is timed that has not computed what the reference backend computes on the same frame, and
nothing is written where a gate fails.
"""

from __future__ import annotations

import torch

from voxelquant.detection.config import load_config
from voxelquant.detection.detector import CenterPoint
from voxelquant.errors import BadInputError, GateError
from voxelquant.recipes.artifacts import make_work_dir, write_json_atomic
from voxelquant.recipes.bench_measure import Profiling
from voxelquant.recipes.bench_networks import (
    RECIPES,
    Planner,
    make_backbone,
    plan_on_gpu,
    require_gpu_engine,
    unavailable_recipe,
)
from voxelquant.recipes.bench_peer import PeerBench
from voxelquant.recipes.bench_plans import PlanBench
from voxelquant.recipes.bench_reference import plan_reference
from voxelquant.recipes.bench_request import BenchRequest, choose_frames
from voxelquant.recipes.bench_result import PEER, RESULT_FILE, BenchResult, EngineResult
from voxelquant.recipes.device import choose_device
from voxelquant.recipes.progress import StageReporter
from voxelquant.recipes.spconv_peer import require_spconv


def run_bench(
    request: BenchRequest, reporter: StageReporter, planner: Planner | None = None
) -> BenchResult:
    """Gate, measure, and write `result.json`.

    Args:
        request: what to measure.
        reporter: progress.
        planner: makes the plans; default: the GPU engine, on a CPU the reference backend.

    Raises:
        BadInputError: no GPU, no such config, unusable files, or a frame beyond the bound.
        GateError: an engine computes something else than the reference; nothing is written.
        MissingDependencyError: the peer was asked for and is not installed.
    """
    device = _choose_device(request, planner)
    if request.against is not None:
        require_spconv()
    if device != "cpu":  # clocks and the planned graph are those of the current device
        torch.cuda.set_device(torch.device(device).index or 0)
    make_work_dir(request.work_dir)
    result = _measure(request, device, reporter, planner)
    write_json_atomic(request.work_dir / RESULT_FILE, result.to_json())
    return result


def _measure(
    request: BenchRequest, device: str, reporter: StageReporter, planner: Planner | None
) -> BenchResult:
    detector = CenterPoint(load_config(request.config))
    with reporter.stage("frames", "reading and making frames"):
        frames = choose_frames(request, detector, device)
    profiling = Profiling()
    bench = PlanBench(
        make_backbone(detector.config, request.seed, device),
        frames,
        planner or (plan_on_gpu if request.on_gpu else plan_reference),
        request.effort,
        request.max_voxels,
        "stages" in request.chosen_parts,
        profiling,
        reporter,
    )
    engines, unavailable = _measure_precisions(bench, request)
    peer = PeerBench(
        bench.fp16.fake, frames, bench.expected_fp16, request.effort, profiling, reporter
    )
    if request.against is not None:
        engines[PEER] = peer.measure()
    with reporter.stage("busy", "profiling what was timed"):
        profiling.run()
    return BenchResult(
        device=device,
        frame=(frames.single.name, len(frames.single)),
        engines=engines,
        unavailable=unavailable,
        gate=(*bench.checks, *peer.checks),
        tried=peer.tried,
        max_voxels=request.max_voxels,
        settings=request.public_settings(),
        seed=request.seed,
        commit=request.commit,
    )


def _choose_device(request: BenchRequest, planner: Planner | None) -> str:
    unknown = set(request.precisions) - RECIPES.keys()
    if unknown or not request.precisions:
        raise BadInputError(
            f"got precisions {sorted(request.precisions)}, need some of {list(RECIPES)}"
        )
    if request.on_gpu and planner is None and request.device.startswith("cuda"):
        require_gpu_engine()
    device = choose_device(request.device)
    if device == "cpu" and request.against is not None:
        raise BadInputError(
            "got --against spconv on a CPU, where its results are wrong with more than one thread; "
            "compare on a GPU"
        )
    return device


def _measure_precisions(
    bench: PlanBench, request: BenchRequest
) -> tuple[dict[str, EngineResult], dict[str, str]]:
    engines: dict[str, EngineResult] = {}
    unavailable: dict[str, str] = {}
    for precision in request.precisions:
        reason = unavailable_recipe(precision)
        if reason is not None:
            unavailable[precision] = reason
            continue
        try:
            engines[precision] = bench.measure(precision)
        except GateError:
            raise
        except BadInputError as error:
            # fp16 and int8 run on every chip; fp8 does not.
            if precision != "fp8":
                raise
            unavailable[precision] = str(error)
    if not engines:
        raise BadInputError(f"got nothing to measure: {unavailable}")
    return engines, unavailable
