"""Sensitivity profile: what quantizing each layer costs, all else being equal.

The outer loop is over frames, the inner one over layers: a frame is read, voxelized and run in
float once, and for each layer only what depends on it runs again. What every variant found is kept
in chunks of frames, so that a broken off profile goes on where it stopped.
"""

from __future__ import annotations

from voxelquant.detection.checkpoint import load_weights
from voxelquant.detection.config import load_config
from voxelquant.detection.detector import CenterPoint
from voxelquant.errors import BadInputError
from voxelquant.evaluation.frame_matcher import FrameMatcher
from voxelquant.plural import counted
from voxelquant.quant.layer_forms import with_ranges_of
from voxelquant.recipes.artifacts import make_work_dir
from voxelquant.recipes.calibrated import CalibrationRequest, calibrate_together
from voxelquant.recipes.datasets import Purpose, open_dataset
from voxelquant.recipes.detect import Engine, naming, open_detector
from voxelquant.recipes.distributed import World, join_world
from voxelquant.recipes.progress import StageReporter
from voxelquant.recipes.quant_states import is_quant_state, load_quant_state
from voxelquant.recipes.sensitivity_frames import VariantRunner
from voxelquant.recipes.sensitivity_request import (
    SensitivityRequest,
    check_combination,
    profile_identity,
    recipe_of,
    spaced_indices,
)
from voxelquant.recipes.sensitivity_result import SensitivityResult, conclude, write_result
from voxelquant.recipes.sensitivity_scores import (
    MetricScore,
    VariantScore,
    score_metrics,
    score_proxies,
)
from voxelquant.recipes.sensitivity_store import ProfileStore


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
        check_combination(request, self.from_state)

    def run(self) -> SensitivityResult | None:
        matcher = self._matcher()  # before the work: labels may be missing
        if self.world.in_main(self._open):
            self._calibrate()
        runner = self._runner()
        self._run_frames(runner)
        self.world.barrier()
        return self._conclude(runner, matcher)

    def _open(self) -> bool:
        """Open the work dir; whether ranges have to be found first."""
        make_work_dir(self.request.work_dir)
        self.store.open(profile_identity(self.request, self.config, self.dataset, self.indices))
        self.store.sweep()
        return not self.from_state and not self.store.ranges.exists()

    def _matcher(self) -> FrameMatcher | None:
        if self.request.metric == "proxy":
            return None
        tokens = [self.dataset.sample_tokens[index] for index in self.indices]
        return FrameMatcher(self.dataset.nusc, tokens, self.config.class_names)

    def _calibrate(self) -> None:
        request = self.request
        split, version = request.calibration_split, request.version
        dataset = open_dataset(self.config, request.data, split, version, purpose=Purpose.TRAIN)
        detector = open_detector(self.config, request.weights, Engine.FLOAT, self.world.device)
        calibrate_together(
            detector,
            CalibrationRequest(
                weights=request.weights,
                dataset=dataset,
                work_dir=request.work_dir,
                recipe=recipe_of(request),
                method=request.method,
                batches=request.calibrate_batches,
                batch_size=request.batch_size,
            ),
            lambda calibrated: calibrated.state.save(self.store.ranges),
            world=self.world,
            reporter=self.reporter,
        )

    def _runner(self) -> VariantRunner:
        request, network = self.request, CenterPoint(self.config)
        state_file = request.weights if self.from_state else self.store.ranges
        self.state = load_quant_state(state_file, self.config).state
        weights = request.float_weights if self.from_state else request.weights
        if weights is None:
            qmodel = self.state.apply(network)
        else:
            load_weights(network, weights)
            qmodel = with_ranges_of(self.state, network)
        qmodel = qmodel.eval().to(self.world.device)
        assert isinstance(qmodel, CenterPoint)
        return VariantRunner(qmodel, self.config, self.world.device, request.mode)

    def _run_frames(self, runner: VariantRunner) -> None:
        done = self.store.done()
        self.world.barrier()  # nobody writes before everybody has looked
        todo = [place for place in range(len(self.indices)) if place not in done]
        own = todo[self.world.shard.rank :: self.world.shard.world_size]
        if done:
            wanted = counted(len(self.indices), "frame")
            self.reporter.say(f"continuing: {len(done)} of {wanted} done")
        layers, frames = counted(len(runner.layers), "layer"), counted(len(todo), "frame")
        title = f"profiling {layers} on {frames} of {self.dataset}"
        outcomes = {}
        with self.reporter.stage("profile", title) as advance:
            for count, place in enumerate(self.world.while_none_failed(own), 1):
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
        if len(outcomes) < len(self.indices):
            raise BadInputError(
                f"{self.request.work_dir}: got {len(outcomes)} of "
                f"{counted(len(self.indices), 'frame')}, need a work dir that all "
                "processes share; run again with one"
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
