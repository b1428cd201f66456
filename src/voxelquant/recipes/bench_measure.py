"""Times, stages and memory of one plan on one frame."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from voxelquant.evaluation.gpu_memory import measure_memory
from voxelquant.evaluation.gpu_timing import (
    BusyTime,
    cache_evictor,
    measure_busy,
    measure_events,
    measure_in_order,
)
from voxelquant.evaluation.latency import Latency, measure_latency
from voxelquant.recipes.bench_frames import BenchFrame
from voxelquant.recipes.bench_networks import Plan


@dataclass(frozen=True)
class Effort:
    """How often things are run: calls before the first timed one, and timed calls."""

    warmup: int
    repeats: int


@dataclass
class CallTiming:
    """One call from voxels on the device to the dense map.

    Attributes:
        wall: with the host's work, until its stream is done; caches are warm.
        wall_cold: the same with the second-level cache evicted before every call.
        gpu: by events on the device, without waiting for the host.
        busy: during which something ran; None until `Profiling` ran it, on a CPU, or where the
            profiler sees nothing.
    """

    wall: Latency
    wall_cold: Latency | None = None
    gpu: Latency | None = None
    busy: BusyTime | None = None


class Profiling:
    """Calls that wait for torch's profiler until nothing else is to be timed.

    Once it has run, launches take longer for the rest of the process.
    """

    def __init__(self) -> None:
        self._pending: list[tuple[CallTiming, Callable[[], object], int]] = []

    def later(self, timing: CallTiming, run: Callable[[], object], repeats: int) -> None:
        """Have `run` profiled, which is kept until then, and `timing.busy` set."""
        self._pending.append((timing, run, repeats))

    def run(self) -> None:
        """Profile what is pending."""
        while self._pending:
            timing, run, repeats = self._pending.pop(0)
            timing.busy = measure_busy(run, repeats=repeats)


@dataclass(frozen=True)
class StageTiming:
    """Median time of one stage, caches as the stage before leaves them."""

    name: str
    kind: str
    median_ms: float


@dataclass(frozen=True)
class StageBreakdown:
    """Where the time of a replay goes.

    Attributes:
        stages: in order.
        replay_ms: a whole replay on the device.
        gap_ms: replay less the sum of the stages: launches between kernels; negative where the
            graph runs stages side by side.
    """

    stages: tuple[StageTiming, ...]
    replay_ms: float
    gap_ms: float

    @property
    def by_kind(self) -> dict[str, float]:
        """Sum of the medians of each kind of stage, in order of appearance."""
        sums: dict[str, float] = {}
        for stage in self.stages:
            sums[stage.kind] = sums.get(stage.kind, 0.0) + stage.median_ms
        return sums


@dataclass(frozen=True)
class PlanMemory:
    """Memory of a plan alone, in bytes.

    Attributes:
        by_purpose: as the plan tells it.
        held: of live tensors, once planned.
        peak: of live tensors at worst in a call, those held included.
        peak_planning: the same while it was planned and tuned.
    """

    by_purpose: dict[str, int]
    held: int | None = None
    peak: int | None = None
    peak_planning: int | None = None


def measure_call(
    run: Callable[[], object],
    effort: Effort,
    device: torch.device | str,
    profiling: Profiling,
    *,
    replay: Callable[[], object] | None = None,
) -> CallTiming:
    """Time a call; on a GPU in four ways.

    Args:
        run: From voxels on the device to the dense map.
        effort: How often.
        device: Where.
        profiling: Will set the time that the GPU is busy.
        replay: The part of it without host work, for the time by events; default: `run`.
    """
    device = torch.device(device)
    how = {"device": device, "warmup": effort.warmup, "repeats": effort.repeats}
    wall = measure_latency(run, **how)  # type: ignore[arg-type]
    if device.type != "cuda":
        return CallTiming(wall)
    cold = measure_latency(run, before=cache_evictor(device), **how)  # type: ignore[arg-type]
    gpu = measure_events(replay or run, warmup=effort.warmup, repeats=effort.repeats)
    timing = CallTiming(wall, cold, gpu)
    profiling.later(timing, run, min(effort.repeats, 20))
    return timing


def call_of(plan: Plan, frame: BenchFrame) -> Callable[[], Tensor]:
    """A call of the plan on a frame of its device; features are handed over in fp16."""
    features = frame.features.half()
    return lambda: plan(features, frame.coords_bzyx)


def measure_stages(plan: Plan, frame: BenchFrame, effort: Effort) -> StageBreakdown:
    """Times of the stages of a plan on a frame, run in order, and of a whole replay."""
    device = frame.features.device
    call_of(plan, frame)()
    stages = plan.stages
    medians = measure_in_order(
        [stage.run for stage in stages],
        device=device,
        warmup=effort.warmup,
        repeats=effort.repeats,
    )
    timed = tuple(
        StageTiming(stage.name, stage.kind, median)
        for stage, median in zip(stages, medians, strict=True)
    )
    if device.type == "cuda":
        replay = measure_events(plan.replay, warmup=effort.warmup, repeats=effort.repeats)
    else:
        replay = measure_latency(plan.replay, warmup=effort.warmup, repeats=effort.repeats)
    return StageBreakdown(timed, replay.median_ms, replay.median_ms - sum(medians))


def measured_plan(make: Callable[[], Plan], frame: BenchFrame) -> tuple[Plan, PlanMemory]:
    """A new plan, and what it and a call of it take.

    Args:
        make: Makes the plan, and the modules that only it needs.
        frame: A frame on its device.
    """
    device = frame.features.device
    if device.type != "cuda":
        plan = make()
        return plan, PlanMemory(dict(plan.memory_bytes))
    plan, planning = measure_memory(make, device)
    run = call_of(plan, frame)
    _, calling = measure_memory(run, device)
    return plan, PlanMemory(
        by_purpose=dict(plan.memory_bytes),
        held=planning.held,
        peak=planning.held + calling.peak,
        peak_planning=planning.peak,
    )
