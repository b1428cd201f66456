"""Sensitivity profile: what quantizing each layer costs, all else being equal.

The outer loop is over frames, the inner one over layers: a frame is read, voxelized and run in
float once, and for each layer only what depends on it runs again. What every variant found is kept
in chunks of frames, so that a broken off profile goes on where it stopped.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal

from voxelquant import __version__
from voxelquant.data.records import FrameDataset
from voxelquant.detection.checkpoint import load_weights
from voxelquant.detection.config import DetectorConfig, load_config
from voxelquant.detection.detector import CenterPoint
from voxelquant.errors import BadInputError
from voxelquant.evaluation.frame_matcher import FrameMatcher
from voxelquant.quant.layer_forms import Mode, with_ranges_of
from voxelquant.quant.recipe import load_recipe
from voxelquant.quant.spec import Method
from voxelquant.quant.state import QuantState
from voxelquant.recipes.artifacts import make_work_dir
from voxelquant.recipes.datasets import Purpose, open_dataset
from voxelquant.recipes.detect import Engine, is_quant_state, naming, open_detector
from voxelquant.recipes.distributed import World, join_world
from voxelquant.recipes.progress import StageReporter
from voxelquant.recipes.ptq import calibration_batches, quantize_detector
from voxelquant.recipes.sensitivity_frames import VariantRunner
from voxelquant.recipes.sensitivity_result import (
    SensitivityResult,
    SuggestionRule,
    conclude,
    write_result,
)
from voxelquant.recipes.sensitivity_scores import (
    MetricScore,
    VariantScore,
    score_metrics,
    score_proxies,
)
from voxelquant.recipes.sensitivity_store import ProfileStore

Metric = Literal["map", "proxy"]
DEFAULT_RECIPE = "int8"


@dataclass(frozen=True)
class SensitivityRequest:
    """What the command line asks for.

    Attributes:
        config: detector.
        data: data root; None is the config's.
        weights: float weights, which are calibrated here, or a QuantState, whose ranges are taken.
        work_dir: results, and what a broken off profile needs to go on.
        metric: `map`: the official metric, and the proxy beside it; `proxy`: needs no labels.
        mode: `one` layer quantized at a time, or `all-but-one`.
        float_weights: what the QuantState in `weights` was made from. Without them its stored
            weights, which are rounded to their codes already, serve as the float ones, so that
            only the rounding of activations is seen.
        recipe: None is `int8`: all but the convolution on the raw input, which `every_layer`
            quantizes too; a QuantState has its own.
        method: how ranges are chosen; None is the recipe's.
        calibrate_batches: batches that ranges are chosen from.
        batch_size: frames of a calibration batch.
        frames: so many, evenly spaced over the split; None is all of them.
        rule: which layers the suggested recipe keeps in fp16.
        resamples: of the bootstrap behind the intervals.
        save_every: frames in a chunk: at most so many are lost when a process is killed.
        split: of the frames; default: the one for validation.
        calibration_split: default: the one for training.
        version: version folder of the tables.
        device: where it runs.
    """

    config: str
    data: str | None
    weights: Path
    work_dir: Path
    metric: Metric = "map"
    mode: Mode = "one"
    float_weights: Path | None = None
    recipe: str | None = None
    method: Method | None = None
    calibrate_batches: int = 400
    batch_size: int = 1
    frames: int | None = None
    rule: SuggestionRule = field(default_factory=SuggestionRule)
    resamples: int = 500
    save_every: int = 10
    split: str | None = None
    calibration_split: str | None = None
    version: str | None = None
    device: str = "auto"


def run_sensitivity(
    request: SensitivityRequest, reporter: StageReporter
) -> SensitivityResult | None:
    """Profile, or finish the profile in the work dir; writes its results there.

    Writes `sensitivity.json`, `sensitivity.png` and `suggested.yaml`, a recipe for `ptq`.

    Returns:
        The result; None in processes other than the first.

    Raises:
        BadInputError: config, dataset, weights or recipe cannot be used, or the work dir holds the
            profile of another request.
        MissingDependencyError: matplotlib is not installed, or nuscenes-devkit for metric `map`.
    """
    with join_world(request.device) as world:
        reporter = reporter if world.is_main else StageReporter.silent()
        return _Profile(request, reporter, world).run()


class _Profile:
    """One call of `run_sensitivity` in one process."""

    def __init__(self, request: SensitivityRequest, reporter: StageReporter, world: World) -> None:
        self.request = request
        self.reporter = reporter
        self.world = world
        self.config = load_config(request.config)
        self.dataset = open_dataset(self.config, request.data, request.split, request.version)
        self.indices = spaced_indices(len(self.dataset), request.frames)
        self.store = ProfileStore(request.work_dir)
        self.from_state = is_quant_state(request.weights)
        _check_combination(request, self.from_state)

    def run(self) -> SensitivityResult | None:
        matcher = self._matcher()  # before the work: labels may be missing
        if self.world.is_main:
            make_work_dir(self.request.work_dir)
            self.store.open(_identity(self.request, self.config, self.dataset, self.indices))
            self.store.sweep()
            if not self.from_state and not self.store.ranges.exists():
                self._calibrate()
        self.world.barrier()
        runner = self._runner()
        self._run_frames(runner)
        self.world.barrier()
        return self._conclude(runner, matcher)

    def _matcher(self) -> FrameMatcher | None:
        if self.request.metric == "proxy":
            return None
        tokens = [self.dataset.sample_tokens[index] for index in self.indices]
        return FrameMatcher(self.dataset.nusc, tokens, self.config.class_names)

    def _calibrate(self) -> None:
        request = self.request
        recipe = load_recipe(request.recipe or DEFAULT_RECIPE)
        dataset = open_dataset(
            self.config,
            request.data,
            request.calibration_split,
            request.version,
            purpose=Purpose.TRAIN,
        )
        detector = open_detector(self.config, request.weights, Engine.FLOAT, self.world.device)
        batches = min(request.calibrate_batches, len(dataset) // request.batch_size)
        title = f"calibrating on {batches} batches"
        with self.reporter.stage("calibrate", title) as advance:
            read = calibration_batches(detector, dataset, batches, request.batch_size)
            calibrated = quantize_detector(
                detector, read, recipe=recipe, method=request.method, progress=advance
            )
        calibrated.state.save(self.store.ranges)

    def _runner(self) -> VariantRunner:
        request, network = self.request, CenterPoint(self.config)
        weights = request.float_weights if self.from_state else request.weights
        state = QuantState.load(request.weights if self.from_state else self.store.ranges)
        if weights is None:
            qmodel = state.apply(network)
        else:
            load_weights(network, weights)
            qmodel = with_ranges_of(state, network)
        qmodel = qmodel.eval().to(self.world.device)
        assert isinstance(qmodel, CenterPoint)
        self.state = state
        return VariantRunner(qmodel, self.config, self.world.device, request.mode)

    def _run_frames(self, runner: VariantRunner) -> None:
        done = self.store.done()
        self.world.barrier()  # nobody writes before everybody has looked
        todo = [place for place in range(len(self.indices)) if place not in done]
        own = todo[self.world.shard.rank :: self.world.shard.world_size]
        if done:
            self.reporter.say(f"continuing: {len(done)} of {len(self.indices)} frames are done")
        title = f"profiling {len(runner.layers)} layers on {len(todo)} frames of {self.dataset}"
        outcomes = {}
        with self.reporter.stage("profile", title) as advance:
            for count, place in enumerate(own, 1):
                frame = self.dataset[self.indices[place]]
                with naming(frame):
                    outcomes[place] = runner.run(frame.points)
                if len(outcomes) == self.request.save_every or count == len(own):
                    self.store.save(outcomes)
                    outcomes = {}
                advance(count, len(own))

    def _conclude(
        self, runner: VariantRunner, matcher: FrameMatcher | None
    ) -> SensitivityResult | None:
        outcomes = self.store.load(len(runner.layers) + 2)
        missing = len(self.indices) - len(outcomes)
        if missing:
            raise BadInputError(
                f"{self.request.work_dir}: {missing} of {len(self.indices)} frames are not here, "
                "need a work dir that all processes share; run again with one"
            )
        metrics: list[MetricScore | None] = [None] * (len(runner.layers) + 2)
        if matcher is not None:
            found = [
                {
                    self.dataset.sample_tokens[self.indices[place]]: outcome.detections[variant]
                    for place, outcome in outcomes.items()
                }
                for variant in range(len(metrics))
            ]
            with self.reporter.stage("score", f"scoring {len(metrics)} variants") as advance:
                metrics = [
                    *score_metrics(
                        matcher,
                        found,
                        self.request.mode,
                        resamples=self.request.resamples,
                        world=self.world,
                        progress=advance,
                    )
                ]
        if not self.world.is_main:
            return None
        proxies = score_proxies(outcomes)
        scores = [VariantScore(*pair) for pair in zip(proxies, metrics, strict=True)]
        result = conclude(runner, scores, self.request.mode, self.state.recipe, self.request.rule)
        origin = {
            "request": self.request,
            "split": self.dataset.split,
            "frames": len(self.indices),
            "data": str(self.dataset),
        }
        write_result(result, self.request.work_dir, origin, self.config)
        return result


def spaced_indices(total: int, wanted: int | None) -> list[int]:
    """So many of the frames, evenly spaced; all of them for None or more than there are.

    >>> spaced_indices(10, 4)
    [0, 2, 5, 7]
    """
    count = total if wanted is None else min(wanted, total)
    return [place * total // count for place in range(count)]


def _check_combination(request: SensitivityRequest, from_state: bool) -> None:
    if from_state:
        for flag, value in (("--recipe", request.recipe), ("--method", request.method)):
            if value is not None:
                raise BadInputError(
                    f"{request.weights}: got {flag} for a quantized state, which has its own "
                    f"recipe and ranges; leave {flag} away, or give float weights"
                )
    elif request.float_weights is not None:
        raise BadInputError(
            f"{request.weights}: got --float-weights beside float weights, need them only for a "
            "quantized state; leave them away"
        )


def _identity(
    request: SensitivityRequest, config: DetectorConfig, dataset: FrameDataset, indices: list[int]
) -> dict[str, Any]:
    """Everything that the frames' outcome depends on; metric, rule and processes are none of it."""
    tokens = [dataset.sample_tokens[index] for index in indices]
    identity: dict[str, Any] = {
        "voxelquant": __version__,
        "config": config,
        "weights": _digest(request.weights),
        "float_weights": None if request.float_weights is None else _digest(request.float_weights),
        "mode": request.mode,
        "data": Path(dataset.root).resolve(),
        "version": dataset.version,
        "split": dataset.split,
        "frames": sha256(" ".join(tokens).encode()).hexdigest(),
    }
    if is_quant_state(request.weights):
        return identity
    return identity | {
        "recipe": load_recipe(request.recipe or DEFAULT_RECIPE),
        "method": request.method,
        "calibrate_batches": request.calibrate_batches,
        "batch_size": request.batch_size,
        "calibration_split": request.calibration_split,
    }


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        digest = sha256()
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
