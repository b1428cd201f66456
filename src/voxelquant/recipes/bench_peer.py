"""The peer under measurement: every way to run spconv, gated, warmed, the fastest then timed."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from voxelquant.errors import GateError
from voxelquant.evaluation.gpu_memory import measure_memory
from voxelquant.evaluation.latency import measure_latency
from voxelquant.recipes.bench_frames import BenchFrame
from voxelquant.recipes.bench_gate import GateCheck, require_peer
from voxelquant.recipes.bench_measure import Effort, PlanMemory, measure_call
from voxelquant.recipes.bench_plans import BenchFrames
from voxelquant.recipes.bench_result import EngineResult, Point
from voxelquant.recipes.progress import StageReporter
from voxelquant.recipes.spconv_peer import VARIANTS, PeerVariant, SpconvPeer, sorting

# Run-time compilation and tuning are over when so many calls in a row take about equally long.
_STEADY_CALLS = 4
_STEADY_RATIO = 1.3
_MOST_CALLS = 60


@dataclass
class PeerBench:
    """Measures spconv on one network.

    Attributes:
        fake: fake-quant model of recipe `fp16`.
        frames: on the device.
        expected: dense map that our reference backend gives for a frame, in fp16.
        effort: of the main numbers; the choice of a variant and growth take a quarter.
        reporter: progress.
        dtype: of the peer.
        checks: what held so far.
        tried: wall time of every variant, or why it was not taken.
    """

    fake: nn.Module
    frames: BenchFrames
    expected: Callable[[BenchFrame], Tensor]
    effort: Effort
    reporter: StageReporter
    dtype: torch.dtype = torch.float16
    checks: list[GateCheck] = field(default_factory=list)
    tried: dict[str, float | str] = field(default_factory=dict)

    def measure(self, variants: Iterable[PeerVariant] = VARIANTS) -> EngineResult:
        """Choose the fastest variant by wall time of one frame, then time it.

        Raises:
            GateError: no variant runs and agrees with our reference.
        """
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what spconv warns of is its own
            return self._measure(variants)

    def _measure(self, variants: Iterable[PeerVariant]) -> EngineResult:
        frames = self.frames
        with self.reporter.stage("peer", "spconv: checking and comparing its algorithms"):
            best = self._choose(variants)
        with (
            self.reporter.stage("time_peer", f"spconv: timing {best}"),
            sorting(best.sort),
        ):
            peer = self._peer(best)
            latency = self._time(peer, frames.single, self.effort)
            throughput = None
            if frames.batch is not None:
                throughput = self._time(peer, frames.batch, self.effort)
            less = self._less
            growth = tuple(
                self._time(peer, frame, less, name) for name, frame in frames.growth.items()
            )
            cloud = None if frames.cloud is None else self._time(peer, frames.cloud, less)
            memory = self._memory(peer)
        return EngineResult(str(best), latency, throughput, growth, cloud, memory=memory)

    def _memory(self, peer: SpconvPeer) -> PlanMemory:
        """Weights, and on a GPU what a call on the frame of the latency takes."""
        frame = self.frames.single
        weights = sum(p.numel() * p.element_size() for p in peer.parameters())
        if frame.features.device.type != "cuda":
            return PlanMemory({"weights": weights})
        _, calling = measure_memory(peer.call(frame), frame.features.device)
        return PlanMemory({"weights": weights}, weights, weights + calling.peak)

    @property
    def _less(self) -> Effort:
        return Effort(self.effort.warmup, max(2, self.effort.repeats // 4))

    def _choose(self, variants: Iterable[PeerVariant]) -> PeerVariant:
        times = {variant: ms for variant in variants if (ms := self._try(variant)) is not None}
        if not times:
            reasons = "; ".join(f"{name}: {why}" for name, why in self.tried.items())
            raise GateError(
                f"got no variant of spconv that runs and agrees with our reference ({reasons}), "
                "need one to compare with; leave --against out"
            )
        best = min(times, key=lambda variant: times[variant])
        if best.algorithm != "Native":
            fused = best.with_fused_relu
            fused_ms = self._try(fused)
            if fused_ms is not None and fused_ms < times[best]:
                return fused
        return best

    def _try(self, variant: PeerVariant) -> float | None:
        """Wall time of a variant on the frame of the latency; None, with the reason kept."""
        frame = self.frames.single
        try:
            with sorting(variant.sort):
                run = self._peer(variant).call(frame)
                what = f"spconv {variant} on {frame.name}, {len(frame)} voxels"
                self.checks.append(require_peer(what, run().half(), self.expected(frame)))
                warm_until_steady(run, frame.features.device)
                wall = measure_latency(
                    run, device=frame.features.device, warmup=1, repeats=self._less.repeats
                )
        except Exception as error:  # whatever a foreign library raises where it cannot run
            self.tried[str(variant)] = " ".join(f"{type(error).__name__}: {error}".split())[:300]
            return None
        self.tried[str(variant)] = wall.median_ms
        return wall.median_ms

    def _peer(self, variant: PeerVariant) -> SpconvPeer:
        return SpconvPeer(self.fake, self.frames.single, variant, self.dtype)

    def _time(
        self, peer: SpconvPeer, frame: BenchFrame, effort: Effort, name: str | None = None
    ) -> Point:
        run = peer.call(frame)
        what = f"spconv on {name or frame.name}, batch {frame.batch_size}, {len(frame)} voxels"
        self.checks.append(require_peer(what, run().half(), self.expected(frame)))
        warm_until_steady(run, frame.features.device)
        timing = measure_call(run, effort, frame.features.device)
        return Point(name or frame.name, len(frame), frame.batch_size, timing)


def warm_until_steady(run: Callable[[], object], device: torch.device) -> int:
    """Call until calls take equally long; returns how many it took."""
    times: list[float] = []
    while len(times) < _MOST_CALLS:
        started = time.perf_counter()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - started)
        last = times[-_STEADY_CALLS:]
        if len(last) == _STEADY_CALLS and max(last) <= _STEADY_RATIO * min(last):
            break
    return len(times)
