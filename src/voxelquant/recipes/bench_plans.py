"""Our own engine under measurement: planned, gated, then timed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from voxelquant.quant import lower
from voxelquant.recipes.bench_frames import BenchFrame
from voxelquant.recipes.bench_gate import (
    GateCheck,
    require_equal,
    require_fp16,
    require_quantized,
)
from voxelquant.recipes.bench_measure import (
    Effort,
    Profiling,
    StageBreakdown,
    call_of,
    measure_call,
    measure_stages,
    measured_plan,
)
from voxelquant.recipes.bench_networks import (
    RECIPES,
    Networks,
    Plan,
    Planner,
    lower_network,
    on_lattice,
)
from voxelquant.recipes.bench_result import EngineResult, Point
from voxelquant.recipes.progress import StageReporter


@dataclass(frozen=True)
class BenchFrames:
    """What is measured on.

    Attributes:
        single: the frame of the latency.
        batch: for the throughput, or None.
        growth: of other sizes, by name.
        cloud: a voxelized cloud, or None.
    """

    single: BenchFrame
    batch: BenchFrame | None = None
    growth: Mapping[str, BenchFrame] = field(default_factory=dict)
    cloud: BenchFrame | None = None

    @property
    def of_one(self) -> dict[str, BenchFrame]:
        """All that a plan for one frame runs, by name."""
        cloud = {} if self.cloud is None else {self.cloud.name: self.cloud}
        return {self.single.name: self.single, **self.growth, **cloud}


@dataclass
class PlanBench:
    """Measures planned networks of one backbone.

    Attributes:
        backbone: float, on the device.
        frames: on the device.
        planner: makes plans.
        effort: of the main numbers; growth takes a quarter.
        max_voxels: bound of a plan for one frame.
        with_stages: whether stages are timed one by one.
        profiling: of what is timed.
        reporter: progress.
        checks: what held so far.
    """

    backbone: nn.Module
    frames: BenchFrames
    planner: Planner
    effort: Effort
    max_voxels: int
    with_stages: bool
    profiling: Profiling
    reporter: StageReporter
    checks: list[GateCheck] = field(default_factory=list)
    _in_fp16: dict[int, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.fp16 = lower_network(self.backbone, "fp16", self.frames.single)

    def measure(self, precision: str) -> EngineResult:
        """Gate one precision on every frame, then time it.

        Raises:
            GateError: the plan computes something else than the reference backend.
            BadInputError: the network, the chip or a frame is beyond the engine.
        """
        frames = self.frames
        networks = self._networks(precision)
        with self.reporter.stage(f"gate_{precision}", f"{precision}: planning, checking"):
            if precision == "int8":
                self._check_exact()
            plan, memory = measured_plan(
                lambda: self._plan(networks, frames.single, self.max_voxels), frames.single
            )
            for name, frame in frames.of_one.items():
                self._check(precision, name, plan, networks, frame)
        with self.reporter.stage(f"time_{precision}", f"{precision}: timing"):
            latency = self._time(plan, frames.single, self.effort)
            stages = self._stages(plan, frames.single)
            less = Effort(self.effort.warmup, max(2, self.effort.repeats // 4))
            growth = tuple(
                self._time(plan, frame, less, name) for name, frame in frames.growth.items()
            )
            cloud = None if frames.cloud is None else self._time(plan, frames.cloud, less)
        del plan
        throughput, batch_stages = self._throughput(precision, networks)
        return EngineResult(
            how=f"recipe {RECIPES[precision]}",
            latency=latency,
            throughput=throughput,
            growth=growth,
            cloud=cloud,
            stages=stages,
            batch_stages=batch_stages,
            memory=memory,
        )

    def expected_fp16(self, frame: BenchFrame) -> Tensor:
        """Dense map of the fp16 network on the reference backend, kept."""
        if id(frame) not in self._in_fp16:
            self._in_fp16[id(frame)] = self.fp16.expected(frame)
        return self._in_fp16[id(frame)]

    def _networks(self, precision: str) -> Networks:
        if precision == "fp16":
            return self.fp16
        return lower_network(self.backbone, precision, self.frames.single)

    def _plan(self, networks: Networks, frame: BenchFrame, max_voxels: int) -> Plan:
        with torch.no_grad():
            return self.planner(lower(networks.fake), frame, max_voxels)

    def _check_exact(self) -> None:
        """Int8 layers bit by bit, on a frame on which the fp16 layers before them are exact."""
        network, frame = on_lattice(self.backbone, self.frames.single)
        networks = lower_network(network, "int8", frame)
        found = call_of(self._plan(networks, frame, self.max_voxels), frame)()
        what = f"int8 on {frame.name}, {len(frame)} voxels"
        self.checks.append(require_equal(what, found, networks.expected(frame)))

    def _check(
        self, precision: str, name: str, plan: Plan, networks: Networks, frame: BenchFrame
    ) -> None:
        what = f"{precision} on {name}, {len(frame)} voxels"
        found, in_fp16 = call_of(plan, frame)(), self.expected_fp16(frame)
        if precision == "fp16":
            check = require_fp16(what, found, in_fp16)
        else:
            check = require_quantized(what, found, networks.expected(frame), in_fp16)
        self.checks.append(check)

    def _stages(self, plan: Plan, frame: BenchFrame) -> StageBreakdown | None:
        return measure_stages(plan, frame, self.effort) if self.with_stages else None

    def _throughput(
        self, precision: str, networks: Networks
    ) -> tuple[Point | None, StageBreakdown | None]:
        batch = self.frames.batch
        if batch is None:
            return None, None
        # Frames of a batch are not all at their bound at once.
        bound = max(len(batch), 3 * batch.batch_size * self.max_voxels // 4)
        description = f"{precision}: batch of {batch.batch_size}"
        with self.reporter.stage(f"batch_{precision}", description):
            plan = self._plan(networks, batch, bound)
            self._check(precision, f"batch of {batch.batch_size}", plan, networks, batch)
            return self._time(plan, batch, self.effort), self._stages(plan, batch)

    def _time(
        self, plan: Plan, frame: BenchFrame, effort: Effort, name: str | None = None
    ) -> Point:
        run = call_of(plan, frame)
        run()  # what a replay repeats
        device = frame.features.device
        timing = measure_call(run, effort, device, self.profiling, replay=plan.replay)
        return Point(name or frame.name, len(frame), frame.batch_size, timing)
