"""Where a training step of the whole detector goes, on frames of the synthetic world.

    python benchmarks/training_profile.py --config centerpoint_voxel0075 --out profile.json

Parts of a step are timed one by one, in order, the device idle before and after each (`parts_ms`);
`host_ms` of a part ends when the call returns: launches, and what they wait for. Then a run of
whole steps as `voxelquant train` makes them: on a GPU with the next batches made ahead, in a thread
of their own. `busy` is the time of a step during which the GPU computes, `launches` what it does
then, and `calls` what the host has to launch for it, a graph being one call (torch's profiler;
under it a run with two threads that launch has crashed: these steps make their batches themselves).
Frames are generated apart from that, 64 at once as the training source makes them.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

import torch
from torch.profiler import ProfilerActivity, profile

from voxelquant.data.frame import Frame
from voxelquant.data.synthetic import ClassMix, WorldConfig, generate_frames
from voxelquant.detection.config import DetectorConfig, load_config
from voxelquant.detection.dense_graph import GraphedDetector, LossGraph
from voxelquant.detection.detector import CenterPoint
from voxelquant.evaluation.gpu_timing import measure_busy
from voxelquant.recipes.artifacts import provenance, write_json_atomic
from voxelquant.recipes.distributed import World, join_world
from voxelquant.recipes.pasted_objects import synthetic_object_sampler
from voxelquant.recipes.progress import StageReporter
from voxelquant.recipes.read_ahead import read_ahead
from voxelquant.recipes.train import DetectorTrainee
from voxelquant.recipes.training_batch import TrainingBatch
from voxelquant.recipes.training_loop import Outcome, Predict, launch_step
from voxelquant.recipes.training_source import SyntheticSource, training_transforms

SEED = 41  # of no training, calibration or validation scene
GENERATED_AT_ONCE = 64
PROFILED_STEPS = 32  # with two new frames a step, frames are generated once
# Calls of the CUDA runtime and driver that give a GPU something to do.
_LAUNCHING = ("cudaLaunch", "cuLaunch", "cudaGraphLaunch", "cudaMemcpy", "cudaMemset")


@dataclass(frozen=True)
class Setting:
    """What is measured."""

    config: DetectorConfig
    batch_size: int
    amp: bool
    graphed: bool
    joined: bool
    class_mix: ClassMix
    pool_size: int
    turnover: int
    warmup: int
    repeats: int


@dataclass(frozen=True)
class PartTimes:
    """Medians: until the call returned, and until the device was done."""

    host_ms: float
    done_ms: float


class StepParts:
    """One training step, part by part; each part leaves what the next one needs."""

    def __init__(self, setting: Setting, world: World) -> None:
        config = setting.config
        torch.manual_seed(SEED)
        self.setting, self.world = setting, world
        model = CenterPoint(config).to(world.device)
        self.trainee = DetectorTrainee(model, config, amp=setting.amp, graphed=setting.graphed)
        world_config = WorldConfig(class_mix=setting.class_mix)
        pasting = synthetic_object_sampler(
            config,
            seed=SEED,
            pool_size=setting.pool_size,
            world_config=world_config,
            device=world.device,
            reporter=StageReporter.silent(),
        )
        self.source = SyntheticSource(
            seed=SEED,
            pool_size=setting.pool_size,
            turnover=setting.turnover,
            device=world.device,
            transforms=training_transforms(config, pasting),
            world_config=world_config,
        )
        self._batches = self.source.batches(0, setting.batch_size)
        self._ahead: Generator[TrainingBatch, None, None] | None = None
        self._outcome: Outcome | None = None  # of the whole step before
        self.frames: list[Frame] = []
        self.predict = self._predictor()
        self.batch: TrainingBatch | None = None
        self.loss = torch.zeros(())
        self.step = 0

    def _predictor(self) -> Predict:
        if self.setting.joined or not self.setting.graphed:
            return self.trainee.predictor(self.world, self.setting.batch_size)
        self.trainee.set_mode()
        detector = self.trainee.detector
        graph = LossGraph(
            detector, self.setting.batch_size, amp=self.setting.amp, join_branches=False
        )
        return GraphedDetector(detector, graph)

    def parts(self) -> dict[str, Callable[[], object]]:
        """The parts by name, in order."""
        return {
            "frames": self.draw,
            "prepare": self.read,
            "forward": self.forward,
            "backward": self.backward,
            "update": self.update,
        }

    def draw(self) -> None:
        """Frames of a batch: generated, pasted into, augmented."""
        self.frames = next(self._batches)

    def read(self) -> None:
        """Voxels, kernel maps and targets of the batch."""
        self.batch = self.trainee.prepare(self.frames)

    def forward(self) -> None:
        """Maps and their loss."""
        assert self.batch is not None
        self.trainee.set_mode()
        self.trainee.optimizer.zero_grad(set_to_none=True)
        self.loss = self.trainee.loss(self.predict, self.batch)

    def backward(self) -> None:
        """Gradients."""
        self.loss.backward()

    def update(self) -> None:
        """Clipped gradients to the optimiser."""
        limit = self.trainee.schedule.grad_clip_norm
        torch.nn.utils.clip_grad_norm_(self.trainee.parameters, limit, foreach=True)
        self.trainee.optimizer.step()

    def whole(self) -> None:
        """A step as the training loop makes it."""
        if self._ahead is None:
            prepared = map(self.trainee.prepare, self._batches)
            self._ahead = read_ahead(prepared, self.world.device)
        self._train_on(next(self._ahead))

    def stop(self) -> None:
        """End the thread that makes batches ahead."""
        if self._ahead is not None:
            self._ahead.close()

    def alone(self) -> None:
        """The same work in one thread; the other has to have ended."""
        self._train_on(self.trainee.prepare(next(self._batches)))

    def _train_on(self, batch: TrainingBatch) -> None:
        outcome = launch_step(self.trainee, self.predict, batch, self.step, self.world)
        if self._outcome is not None:
            self._outcome.require_finite()
        self._outcome = outcome
        self.step += 1


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--config", default="centerpoint_voxel0075")
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--pool-size", type=int, default=256)
    parser.add_argument("--turnover", type=int, default=2, help="frames generated for each step")
    parser.add_argument("--class-mix", choices=get_args(ClassMix), default="nuscenes")
    parser.add_argument("--no-amp", action="store_true", help="train in fp32")
    parser.add_argument("--no-graph", action="store_true", help="launch neck and head one by one")
    parser.add_argument(
        "--branches-apart",
        action="store_true",
        help="in the graph, branches of the head one by one",
    )
    parser.add_argument("--warmup", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=100)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--commit", help="of this code, where it is no checkout")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args(argv)
    setting = Setting(
        config=load_config(arguments.config),
        batch_size=arguments.batch_size,
        amp=not arguments.no_amp,
        graphed=not arguments.no_graph,
        joined=not arguments.branches_apart,
        class_mix=arguments.class_mix,
        pool_size=arguments.pool_size,
        turnover=arguments.turnover,
        warmup=arguments.warmup,
        repeats=arguments.repeats,
    )
    with join_world(arguments.device) as world:
        result = profile_training(setting, world)
    from_checkout = provenance(config=setting.config, seed=SEED)
    result |= from_checkout | {"commit": arguments.commit or from_checkout["commit"]}
    for name, value in result["measured"].items():
        print(f"{name:24} {value}")
    if arguments.out:
        print(f"Written: {write_json_atomic(arguments.out, result)}")


def profile_training(setting: Setting, world: World) -> dict[str, Any]:
    """Times in ms: of generation, of the parts of a step, of whole steps."""
    generated = time_generation(setting, world)
    parts = StepParts(setting, world)
    by_part = time_each(parts.parts(), setting, world)
    parts_ms = {name: times.done_ms for name, times in by_part.items()}
    measured: dict[str, Any] = {
        "generate_ms_a_frame": generated / GENERATED_AT_ONCE,
        "parts_ms": parts_ms,
        "sum_of_parts_ms": sum(parts_ms.values()),
        "host_ms": {name: times.host_ms for name, times in by_part.items()},
    }
    on_gpu = torch.device(world.device).type == "cuda"
    if on_gpu:
        measured["calls_by_part"] = {n: count_calls(part) for n, part in parts.parts().items()}
        torch.cuda.reset_peak_memory_stats()
    wall = time_run(parts.whole, setting, world)
    parts.stop()
    measured |= {"step_ms": wall, "frames_per_s": 1e3 * setting.batch_size / wall}
    if on_gpu:
        measured["peak_gib"] = torch.cuda.max_memory_allocated() / 2**30
        measured["calls_of_a_step"] = count_calls(parts.alone, repeats=PROFILED_STEPS)
        busy = measure_busy(parts.alone, repeats=PROFILED_STEPS)
        if busy is not None:
            measured |= {"busy_ms": busy.busy_ms, "launches": busy.launches}
    shown = ("batch_size", "amp", "graphed", "joined", "class_mix", "pool_size", "turnover")
    return {"setting": {n: getattr(setting, n) for n in shown}, "measured": measured}


def count_calls(part: Callable[[], object], repeats: int = 1) -> float:
    """Kernels, graphs, copies and memsets that the host launches: a graph is one call."""
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        for _ in range(repeats):
            part()
        torch.cuda.synchronize()
    launched = [event for event in profiler.events() or () if event.name.startswith(_LAUNCHING)]
    return len(launched) / repeats


def time_generation(setting: Setting, world: World) -> float:
    """Median of a call in ms."""
    few = replace(setting, warmup=min(3, setting.warmup), repeats=min(20, setting.repeats))
    return time_each({"generate": generation(setting, world)}, few, world)["generate"].done_ms


def generation(setting: Setting, world: World) -> Callable[[], object]:
    first = iter(range(0, 2**31, GENERATED_AT_ONCE))
    world_config = WorldConfig(class_mix=setting.class_mix)

    def generate() -> object:
        start = next(first)
        scenes = range(start, start + GENERATED_AT_ONCE)
        return generate_frames(SEED, scenes, key_frames=1, device=world.device, config=world_config)

    return generate


def time_run(step: Callable[[], object], setting: Setting, world: World) -> float:
    """Mean of a step in ms, of a run in which nothing waits between them."""
    for _ in range(setting.warmup):
        step()
    wait_for(world)
    started = time.perf_counter()
    for _ in range(setting.repeats):
        step()
    wait_for(world)
    return 1e3 * (time.perf_counter() - started) / setting.repeats


def time_each(
    parts: dict[str, Callable[[], object]], setting: Setting, world: World
) -> dict[str, PartTimes]:
    """Times of each part, all of them in turn."""
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in parts}
    for number in range(setting.warmup + setting.repeats):
        for name, part in parts.items():
            wait_for(world)
            started = time.perf_counter()
            part()
            returned = time.perf_counter()
            wait_for(world)
            done = time.perf_counter()
            if number >= setting.warmup:
                times[name].append((1e3 * (returned - started), 1e3 * (done - started)))
    return {
        name: PartTimes(*map(statistics.median, zip(*of_part, strict=True)))
        for name, of_part in times.items()
    }


def wait_for(world: World) -> None:
    """Until the device is idle."""
    if torch.device(world.device).type == "cuda":
        torch.cuda.synchronize()


if __name__ == "__main__":
    main()
