"""Quantization-aware training: float weights or a QuantState in, a better QuantState out."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from voxelquant.data.frame import Frame
from voxelquant.detection.config import DetectorConfig
from voxelquant.detection.detector import CenterPoint
from voxelquant.errors import BadInputError, ConfigError
from voxelquant.plural import counted
from voxelquant.quant.insert import quantization_of
from voxelquant.quant.range_trainer import RangeTrainer
from voxelquant.quant.recipe import (
    ActivationRanges,
    RangeTraining,
    Recipe,
    WeightRanges,
    load_recipe,
)
from voxelquant.quant.spec import Method
from voxelquant.quant.state import QuantState
from voxelquant.recipes.artifacts import make_work_dir
from voxelquant.recipes.calibrated import (
    STAGE,
    CalibrationRequest,
    calibrate_together,
    calibration_batches,
    quantize_detector,
)
from voxelquant.recipes.calibrated import STATE_FILE as PTQ_FILE
from voxelquant.recipes.data_parallel import NO_SYNC_ON_CPU, synchronise_batchnorms
from voxelquant.recipes.datasets import Purpose, open_dataset
from voxelquant.recipes.detect import Detector, Engine, open_detector
from voxelquant.recipes.distributed import join_world
from voxelquant.recipes.progress import Advance, StageReporter
from voxelquant.recipes.qat_trainee import QatOptions, QatTrainee
from voxelquant.recipes.quant_states import is_quant_state
from voxelquant.recipes.train_run import (
    TrainingSession,
    TrainRequest,
    open_session,
    open_work_dir,
    shown_digest,
    train_session,
    write_training_metrics,
)
from voxelquant.recipes.training_source import SyntheticSource
from voxelquant.recipes.training_state import save_training_state

STATE_FILE = "qat.safetensors"
LR_MAX = 1e-4  # of the reference's QAT, a tenth of its training's


@dataclass(frozen=True, kw_only=True)
class QatRequest(TrainRequest):
    """What the command line asks for, beside what every training takes.

    Attributes:
        weights: float weights, which are calibrated first, a QuantState, or NVIDIA's checkpoint.
        lr_max: highest learning rate; default: the reference's.
        recipe: precisions and ranges; for float weights alone, a QuantState brings its own.
        method: how ranges are chosen; default: the recipe's.
        calibrate_batches: batches of one frame to calibrate on; default: 400.
        activation_ranges: in place of the recipe's `qat.activation_ranges`.
        weight_ranges: in place of the recipe's `qat.weight_ranges`.
        freeze_bn: neck and head keep the statistics of their batch norms.
        task_weight: factor on the loss of the labels; 0 needs none.
        distill: factor on the distance to the teacher.
        teacher: float weights of the teacher; default: `weights` where they are float.
    """

    weights: Path
    lr_max: float | None = LR_MAX
    recipe: str | None = None
    method: Method | None = None
    calibrate_batches: int | None = None
    activation_ranges: ActivationRanges | None = None
    weight_ranges: WeightRanges | None = None
    freeze_bn: bool = False
    task_weight: float = 1.0
    distill: float = 0.0
    teacher: Path | None = None


def run_qat(request: QatRequest, reporter: StageReporter) -> Path | None:
    """Train and write `qat.safetensors`, `config.yaml`, `log.jsonl` and `metrics.json`.

    From float weights, the calibrated state that the training starts from is kept as
    `ptq.safetensors`.

    Returns:
        Path of the state; of the checkpoint if time ran out before the schedule ended; None in
        every process but the first, which alone writes.

    Raises:
        BadInputError: config, dataset, weights, recipe, checkpoint or loss cannot be used.
    """
    with join_world(request.device) as world:
        teacher_path = _check(request)
        session = open_session(request, world, reporter, **_settings(request, teacher_path))
        start = _start_state(session, request)
        detector = open_detector(session.config, start, Engine.FAKE, world.device)
        session.reporter.say_all(detector.notes)
        model = detector.network
        policy = _choose_ranges(model, request)
        options = QatOptions(
            amp=request.amp,
            graphs=request.graphs,
            freeze_bn=request.freeze_bn,
            task_weight=request.task_weight,
            distill=request.distill,
            teacher=_open_teacher(session.config, teacher_path, world.device),
        )
        open_work_dir(session)
        if not request.freeze_bn and not synchronise_batchnorms(model, world):
            session.reporter.say(NO_SYNC_ON_CPU)
        ranges = RangeTrainer(model, policy, session.run.total_steps)
        trainee = QatTrainee(model, session.config, ranges, options)
        if world.is_main and not request.resume:  # a kill from here on costs no calibration
            run = session.run
            save_training_state(run.checkpoint, model, trainee.optimizer, 0, run.settings)
        title = f"training {session.config.name} with fake quantization"
        steps_done = train_session(session, trainee, title)
        if not world.is_main:
            return None
        finished = steps_done == session.run.total_steps
        state = QuantState.of(model, {"config": session.config.name}) if finished else None
        write_training_metrics(session, steps_done, _metrics(request, policy, state))
        if state is None:
            return session.run.checkpoint
        state.save(request.work_dir / STATE_FILE)
        return request.work_dir / STATE_FILE


def _check(request: QatRequest) -> Path | None:
    """Refuse what contradicts itself, before any work; the path of the teacher's weights, if any.

    Raises:
        BadInputError: see above.
    """
    quantized = is_quant_state(request.weights)
    for name in ("recipe", "method", "calibrate_batches"):
        if quantized and getattr(request, name) is not None:
            flag = name.replace("_", "-")
            raise BadInputError(
                f"got --{flag} with {request.weights}, a quantized state, which brings its own; "
                "give float weights, or make another state with `voxelquant ptq`"
            )
    if request.distill == 0.0:
        if request.task_weight == 0.0:
            raise BadInputError(
                "got --task-weight 0 without a teacher: nothing to learn; give --distill"
            )
        if request.teacher is not None:
            raise BadInputError("got --teacher without --distill; give the weight of its loss")
        return None
    teacher = request.teacher or request.weights
    if is_quant_state(teacher):
        raise BadInputError(
            f"got {teacher}, a quantized state, as the teacher; give --teacher the float weights"
        )
    return teacher


def _settings(request: QatRequest, teacher: Path | None) -> dict[str, Any]:
    names = (
        "activation_ranges", "weight_ranges", "freeze_bn", "task_weight", "distill",
        "method", "calibrate_batches",
    )  # fmt: skip
    shared = {name.replace("_", " "): getattr(request, name) for name in names}
    recipe = load_recipe(request.recipe or "reference").model_dump_json()
    return {**shared, "recipe": shown_digest(recipe), "teacher": shown_digest(teacher)}


def _start_state(session: TrainingSession, request: QatRequest) -> Path:
    """The QuantState to start from; float weights are calibrated."""
    if is_quant_state(request.weights):
        return request.weights
    path = request.work_dir / PTQ_FILE
    if not session.world.in_main(lambda: request.resume and path.is_file()):
        _calibrate(session, request, path)
    return path


def _calibrate(session: TrainingSession, request: QatRequest, path: Path) -> None:
    """On frames without augmentation: of the synthetic pool, or of the training split."""
    recipe = load_recipe(request.recipe or "reference")
    wanted = request.calibrate_batches or CalibrationRequest.batches
    world, source, reporter = session.world, session.source, session.reporter
    detector = open_detector(session.config, request.weights, Engine.FLOAT, world.device)

    if isinstance(source, SyntheticSource):  # every process has frames of its own
        frames = source.first_frames()[:wanted]
        batches = counted(len(frames), "batch", "batches")
        with reporter.stage(STAGE, f"calibrating on {batches}") as advance:
            world.in_main(
                lambda: _calibrate_on(frames, detector, recipe, request, advance).save(path)
            )
        return
    split, version = request.split, request.version
    dataset = open_dataset(session.config, request.data, split, version, purpose=Purpose.TRAIN)
    make_work_dir(request.work_dir)
    calibration = CalibrationRequest(
        weights=request.weights,
        dataset=dataset,
        work_dir=request.work_dir,
        recipe=recipe,
        method=request.method,
        batches=wanted,
        num_workers=request.num_workers,
    )
    calibrate_together(
        detector,
        calibration,
        lambda calibrated: calibrated.state.save(path),
        world=world,
        reporter=reporter,
    )


def _calibrate_on(
    frames: list[Frame],
    detector: Detector,
    recipe: Recipe,
    request: QatRequest,
    advance: Advance,
) -> QuantState:
    return quantize_detector(
        detector,
        calibration_batches(detector, frames, len(frames), 1),
        recipe=recipe,
        method=request.method,
        progress=lambda done, _: advance(done, len(frames)),
    ).state


def _choose_ranges(model: CenterPoint, request: QatRequest) -> RangeTraining:
    """The recipe's policy, or what the command line puts in its place; the model keeps it."""
    quantization = quantization_of(model)
    given = {
        "activation_ranges": request.activation_ranges,
        "weight_ranges": request.weight_ranges,
    }
    chosen = {name: value for name, value in given.items() if value is not None}
    try:
        policy = RangeTraining(**{**quantization.recipe.qat.model_dump(), **chosen})
    except ValidationError as error:
        raise ConfigError(
            f"recipe {quantization.recipe.name}: {error.errors()[0]['msg']}"
        ) from None
    quantization.recipe = quantization.recipe.model_copy(update={"qat": policy})
    return policy


def _open_teacher(config: DetectorConfig, path: Path | None, device: str) -> CenterPoint | None:
    if path is None:
        return None
    teacher = open_detector(config, path, Engine.FLOAT, device).network
    return teacher.requires_grad_(False)


def _metrics(
    request: QatRequest, policy: RangeTraining, state: QuantState | None
) -> dict[str, Any]:
    own = {k: v for k, v in asdict(request).items() if k not in ("work_dir", "data")}
    amax = {}
    if state is not None:
        amax = {name: state.activation_amax(name) for name in state.plan.range_names}
    return {"ranges": policy, "amax": amax, "request": own}
