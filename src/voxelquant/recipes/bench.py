"""`voxelquant bench`: how long the sparse backbone takes, after a gate, beside its peer.

Nothing is timed that has not computed what the reference backend computes on the same frame, and
nothing is written where a gate fails.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from voxelquant.detection.config import load_config
from voxelquant.detection.detector import CenterPoint
from voxelquant.errors import BadInputError, GateError
from voxelquant.recipes.artifacts import make_work_dir, write_json_atomic
from voxelquant.recipes.bench_frames import (
    BenchFrame,
    batch_of,
    read_voxel_counts,
    read_voxel_frame,
    resize_frame,
    voxelize_frame,
)
from voxelquant.recipes.bench_measure import Effort
from voxelquant.recipes.bench_networks import (
    RECIPES,
    Planner,
    make_backbone,
    plan_on_gpu,
    require_gpu_engine,
    unavailable_recipe,
)
from voxelquant.recipes.bench_peer import PeerBench
from voxelquant.recipes.bench_plans import BenchFrames, PlanBench
from voxelquant.recipes.bench_reference import plan_reference
from voxelquant.recipes.bench_result import PEER, RESULT_FILE, BenchResult, EngineResult
from voxelquant.recipes.device import choose_device
from voxelquant.recipes.frame_files import FrameChoice, choose_cloud, read_frame_file
from voxelquant.recipes.progress import StageReporter
from voxelquant.recipes.spconv_peer import require_spconv

PARTS = ("throughput", "stages", "scaling", "cloud")
BATCH_SIZE = 8
# Of the made frame; the first as many as the benchmark frame has.
GPU_VOXELS, CPU_VOXELS = 79_745, 20_000
GPU_EFFORT, CPU_EFFORT = Effort(20, 200), Effort(1, 5)
SMALLEST_GROWTH = 10_000
# Without counts of a dataset: what nuScenes' validation frames span, in round numbers.
ROUND_GROWTH = (10_000, 40_000, 80_000, 110_000, 135_000)
# A made frame is not grown beyond: its mirrored copies overlap ever more.
_MOST_GROWTH = 2


@dataclass(frozen=True)
class BenchRequest:
    """What the command line asks for.

    Attributes:
        work_dir: where `result.json` goes.
        config: of the detector whose backbone is measured.
        against: `spconv`, or None.
        frame: `.npz` with `features` and `coords_bzyx`; None: a frame of the synthetic world.
        cloud: points to voxelize; None: those of the synthetic world.
        counts: CSV with a column `num_voxels`; None: round numbers.
        voxels: to cut the frame to, or grow it to; None: as it is, a made one as the device suits.
        precisions: which of `fp16`, `int8`, `fp8`.
        parts: which of `PARTS`; None: all on a GPU, `stages` on a CPU.
        max_voxels: bound of a plan for one frame.
        repeats: timed calls; None: as the device suits.
        device: `cuda`, `cuda:N` or `cpu`.
        seed: of the weights.
        commit: of this code, recorded where it is no checkout.
    """

    work_dir: Path
    config: str = "centerpoint_voxel0075"
    against: str | None = None
    frame: Path | None = None
    cloud: Path | None = None
    counts: Path | None = None
    voxels: int | None = None
    precisions: tuple[str, ...] = tuple(RECIPES)
    parts: tuple[str, ...] | None = None
    max_voxels: int = 160_000
    repeats: int | None = None
    device: str = "cuda"
    seed: int = 0
    commit: str | None = None

    @property
    def on_gpu(self) -> bool:
        """Whether the GPU engine is asked for."""
        return self.device != "cpu"


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
    make_work_dir(request.work_dir)
    request = _with_defaults(request, device)
    detector = CenterPoint(load_config(request.config))
    with reporter.stage("frames", "reading and making frames"):
        frames = choose_frames(request, detector, device)
    if planner is None:
        planner = plan_on_gpu if request.on_gpu else plan_reference
    assert request.parts is not None
    assert request.repeats is not None
    effort = Effort((GPU_EFFORT if request.on_gpu else CPU_EFFORT).warmup, request.repeats)
    backbone = make_backbone(detector.config, request.seed, device)
    bench = PlanBench(
        backbone, frames, planner, effort, request.max_voxels, "stages" in request.parts, reporter
    )
    engines, unavailable = _measure_precisions(bench, request)
    peer = PeerBench(bench.fp16.fake, frames, bench.expected_fp16, effort, reporter)
    if request.against is not None:
        engines[PEER] = peer.measure()
    result = BenchResult(
        device=device,
        frame=(frames.single.name, len(frames.single)),
        engines=engines,
        unavailable=unavailable,
        gate=(*bench.checks, *peer.checks),
        tried=peer.tried,
        max_voxels=request.max_voxels,
        settings=_public_settings(request),
        seed=request.seed,
        commit=request.commit,
    )
    write_json_atomic(request.work_dir / RESULT_FILE, result.to_json())
    return result


def choose_frames(request: BenchRequest, detector: CenterPoint, device: str) -> BenchFrames:
    """Everything that is measured on, on the device.

    Raises:
        BadInputError: a file is unusable, or a frame cannot be made as large as wanted.
    """
    parts = request.parts or ()
    cloud = _voxelized_cloud(request, detector)
    whole = _whole_frame(request, detector, cloud)
    single = _single_frame(request, whole)
    batch = batch_of(single, BATCH_SIZE).to(device) if "throughput" in parts else None
    growth = {}
    if "scaling" in parts:
        for name, count in _growth_counts(request, len(whole)).items():
            growth[name] = resize_frame(whole, count).to(device)
    keep_cloud = cloud.to(device) if "cloud" in parts else None
    frames = BenchFrames(single.to(device), batch, growth, keep_cloud)
    for name, frame in frames.of_one.items():
        if request.on_gpu and len(frame) > request.max_voxels:
            raise BadInputError(
                f"{name}: got {len(frame)} voxels for plans of at most {request.max_voxels}; "
                f"ask for --max-voxels {len(frame)}"
            )
    return frames


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


def _with_defaults(request: BenchRequest, device: str) -> BenchRequest:
    on_gpu = device != "cpu"
    effort = GPU_EFFORT if on_gpu else CPU_EFFORT
    return replace(
        request,
        parts=request.parts if request.parts is not None else (PARTS if on_gpu else ("stages",)),
        repeats=request.repeats or effort.repeats,
    )


def _voxelized_cloud(request: BenchRequest, detector: CenterPoint) -> BenchFrame:
    if request.cloud is not None:
        points = read_frame_file(request.cloud, detector.config.n_point_columns)
        return voxelize_frame(detector, points, request.cloud.name)
    points = choose_cloud(detector.config, FrameChoice())
    return voxelize_frame(detector, points, "synthetic cloud")


def _whole_frame(request: BenchRequest, detector: CenterPoint, cloud: BenchFrame) -> BenchFrame:
    if request.frame is not None:
        channels = detector.config.backbone.in_channels
        return read_voxel_frame(request.frame, channels, cloud.spatial_shape)
    if request.cloud is not None:
        points = choose_cloud(detector.config, FrameChoice())
        return voxelize_frame(detector, points, "synthetic frame")
    return replace(cloud, name="synthetic frame")


def _single_frame(request: BenchRequest, whole: BenchFrame) -> BenchFrame:
    if request.voxels is not None:
        return resize_frame(whole, request.voxels)
    if request.frame is not None:
        return whole
    wanted = GPU_VOXELS if request.on_gpu else CPU_VOXELS
    return resize_frame(whole, min(wanted, _MOST_GROWTH * len(whole)))


def _growth_counts(request: BenchRequest, voxels: int) -> dict[str, int]:
    if request.counts is not None:
        return {"10 k": SMALLEST_GROWTH, **read_voxel_counts(request.counts)}
    reachable = [count for count in ROUND_GROWTH if count <= _MOST_GROWTH * voxels]
    return {f"{count:,}": count for count in reachable or [max(1, voxels // 2), voxels]}


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


def _public_settings(request: BenchRequest) -> dict[str, object]:
    """The request without folders: names of files are enough to find them again."""
    files = {
        name: None if path is None else path.name
        for name, path in (
            ("frame", request.frame),
            ("cloud", request.cloud),
            ("counts", request.counts),
        )
    }
    kept = ("config", "against", "voxels", "precisions", "parts", "max_voxels", "repeats", "device")
    return {**{name: getattr(request, name) for name in kept}, **files}


__all__ = ["PARTS", "BenchRequest", "choose_frames", "run_bench"]
