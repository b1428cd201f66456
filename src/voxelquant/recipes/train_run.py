"""The whole of `voxelquant train`: frames in, weights, log and metrics in a work dir."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from voxelquant.atomic_file import remove_unfinished
from voxelquant.data.records import FrameDataset
from voxelquant.data.sampling import class_balanced_order
from voxelquant.data.synthetic import WORLD_VERSION, ClassMix, WorldConfig
from voxelquant.detection.checkpoint import check_shard_size, load_weights, save_weights
from voxelquant.detection.config import DetectorConfig, config_to_yaml, load_config
from voxelquant.detection.detector import CenterPoint
from voxelquant.detection.file_kinds import INDEX_SUFFIX
from voxelquant.digest import file_digest, text_digest
from voxelquant.errors import BadInputError, CheckpointError, DatasetError
from voxelquant.plural import counted
from voxelquant.recipes.artifacts import (
    make_work_dir,
    provenance,
    write_json_atomic,
    write_text_atomic,
)
from voxelquant.recipes.data_parallel import NO_SYNC_ON_CPU, synchronise_batchnorms
from voxelquant.recipes.datasets import (
    SYNTHETIC,
    Purpose,
    open_dataset,
    refuse_unused,
    require_lidar_reader,
)
from voxelquant.recipes.distributed import World, join_world
from voxelquant.recipes.pasted_objects import (
    PastingOptions,
    dataset_object_sampler,
    synthetic_object_sampler,
)
from voxelquant.recipes.progress import StageReporter
from voxelquant.recipes.train import DetectorTrainee
from voxelquant.recipes.training_log import TrainingLog
from voxelquant.recipes.training_loop import CHECKPOINT_FILE, Trainee, TrainingRun, run_steps
from voxelquant.recipes.training_source import (
    DatasetSource,
    PoolOptions,
    SyntheticSource,
    TrainingSource,
    training_transforms,
)
from voxelquant.recipes.training_state import load_training_state, refuse_to_lose

SHOWN_DIGITS = 12


@dataclass(frozen=True)
class TrainRequest:
    """What the command line asks for; None means the config's own value.

    Attributes:
        config: bundled name or path.
        data: root of a nuScenes-format dataset, or `synthetic`; default: the config's.
        work_dir: where weights, checkpoint, log and metrics go.
        weights: float weights to start from; default: fresh ones.
        split: split to train on, for a dataset on disk; default: its split for training.
        version: version folder of the dataset; default: the only one.
        steps: optimisation steps of the whole schedule; default: `epochs`.
        epochs: passes over the data; default: those of the config.
        lr_max: highest learning rate of the schedule.
        batch_size: frames a step, of each process.
        seed: seed of initialisation, order, augmentation and of the synthetic world.
        device: `cuda`, `cpu`, or `auto`.
        amp: bfloat16 autocast.
        graphs: on one GPU, launch what follows the backbone as CUDA graphs.
        resume: continue from the work dir's checkpoint.
        checkpoint_every: steps between checkpoints.
        stop_after_s: leave with a checkpoint after so many seconds.
        pool_size: synthetic frames held on the device; default here and below: `PoolOptions`.
        turnover: synthetic frames replaced before each step.
        class_mix: of the synthetic world.
        num_workers: processes that read a dataset on disk ahead of the training.
        shard_mb: write the weights in shards of at most so many MB, 10^6 bytes each.
    """

    config: str
    data: str | None
    work_dir: Path
    weights: Path | None = None
    split: str | None = None
    version: str | None = None
    steps: int | None = None
    epochs: int | None = None
    lr_max: float | None = None
    batch_size: int | None = None
    seed: int = 0
    device: str = "auto"
    amp: bool = False
    graphs: bool = True
    resume: bool = False
    checkpoint_every: int = 500
    stop_after_s: float | None = None
    pool_size: int | None = None
    turnover: int | None = None
    class_mix: ClassMix | None = None
    num_workers: int = 0
    shard_mb: float | None = None

    @property
    def shard_bytes(self) -> int | None:
        """Most bytes of a shard."""
        return None if self.shard_mb is None else int(self.shard_mb * 1e6)

    @property
    def weights_file(self) -> Path:
        """The trained weights, or their index."""
        suffix = ".safetensors" if self.shard_mb is None else INDEX_SUFFIX
        return self.work_dir / f"weights{suffix}"

    @property
    def given_pool_options(self) -> dict[str, Any]:
        """What is asked for of the pool of synthetic frames."""
        options = {name: getattr(self, name) for name in PoolOptions.__dataclass_fields__}
        return {name: value for name, value in options.items() if value is not None}

    @property
    def pool_options(self) -> PoolOptions:
        """The same, and the defaults."""
        return PoolOptions(**self.given_pool_options)


@dataclass(frozen=True)
class TrainingSession:
    """A request made concrete: config, frames, length, and the processes that share the work."""

    request: TrainRequest
    config: DetectorConfig
    source: TrainingSource
    run: TrainingRun
    world: World
    reporter: StageReporter = field(repr=False)


def run_training(request: TrainRequest, reporter: StageReporter) -> Path | None:
    """Train and write `weights.safetensors`, `config.yaml`, `log.jsonl` and `metrics.json`.

    Returns:
        Path of the weights or of their index; of the checkpoint if time ran out before the schedule
        ended; None in every process but the first, which alone writes.

    Raises:
        BadInputError: config, dataset, checkpoint or loss cannot be used.
    """
    with join_world(request.device) as world:
        session = open_session(request, world, reporter)
        torch.manual_seed(request.seed)
        model = CenterPoint(session.config)
        if request.weights is not None:
            load_weights(model, request.weights)
        if request.shard_bytes is not None:
            check_shard_size(model, request.weights_file, request.shard_bytes, half=True)
        open_work_dir(session)
        model.to(world.device)
        if not synchronise_batchnorms(model, world):
            session.reporter.say(NO_SYNC_ON_CPU)
        trainee = DetectorTrainee(model, session.config, amp=request.amp, graphed=request.graphs)
        steps_done = train_session(session, trainee, f"training {session.config.name}")
        if not world.is_main:
            return None
        write_training_metrics(session, steps_done, {})
        if steps_done < session.run.total_steps:
            return session.run.checkpoint
        weights = request.weights_file
        save_weights(model, weights, half=True, shard_bytes=request.shard_bytes)
        return weights


def open_session(
    request: TrainRequest, world: World, reporter: StageReporter, **settings: Any
) -> TrainingSession:
    """Config, frames and length of a training; nothing is written.

    Args:
        request: what the command line asks for.
        world: the processes that train together.
        reporter: speaks for the first of them.
        settings: what a resumed run must share with this one, beside what every training has.

    Raises:
        BadInputError: config or dataset cannot be used, or there is nothing to resume.
    """
    if request.steps is not None and request.epochs is not None:
        raise BadInputError("got --steps and --epochs, need one of them: each is the length")
    refuse_unused(
        request.data,
        of_synthetic=request.given_pool_options,
        of_dataset={
            "split": request.split,
            "version": request.version,
            "num_workers": request.num_workers or None,
        },
    )
    config = load_config(request.config)
    if request.lr_max is not None:
        schedule = config.train.schedule.model_copy(update={"lr_max": request.lr_max})
        train = config.train.model_copy(update={"schedule": schedule})
        config = config.model_copy(update={"train": train})
    checkpoint = request.work_dir / CHECKPOINT_FILE
    if request.resume and not checkpoint.is_file():
        raise CheckpointError(f"{checkpoint}: nothing to resume; start without --resume")
    if not request.resume:
        refuse_to_lose(checkpoint)
    reporter = reporter if world.is_main else StageReporter.silent()
    source = _open_source(request, config, world, reporter)
    run = _plan_run(request, config, source, world, settings)
    return TrainingSession(request, config, source, run, world, reporter)


def _plan_run(
    request: TrainRequest,
    config: DetectorConfig,
    source: TrainingSource,
    world: World,
    settings: dict[str, Any],
) -> TrainingRun:
    batch_size = request.batch_size or config.train.batch_size
    epochs = request.epochs or config.train.schedule.epochs
    if isinstance(source, DatasetSource) and source.frames_per_epoch < batch_size:
        raise DatasetError(
            f"got {counted(source.frames_per_epoch, 'frame')} for batches of {batch_size} (each "
            "process has its own); lower --batch-size, or train on more frames"
        )
    steps = request.steps or epochs * max(1, source.frames_per_epoch // batch_size)
    shared: dict[str, Any] = {
        "steps": steps,
        "batch size": batch_size,
        "seed": request.seed,
        "lr_max": config.train.schedule.lr_max,
        "amp": request.amp,
        "processes": world.shard.world_size,
    }
    if request.data == SYNTHETIC:
        pool = request.pool_options
        shared |= {"pool size": pool.pool_size, "turnover": pool.turnover}
        shared |= {"class mix": pool.class_mix, "world version": WORLD_VERSION}
    if isinstance(source, DatasetSource) and isinstance(source.dataset, FrameDataset):
        shared["frames"] = shown_digest(" ".join(source.dataset.sample_tokens))
    shared["weights"] = shown_digest(request.weights)
    shared["config"] = shown_digest(config_to_yaml(config))
    return TrainingRun(
        total_steps=steps,
        batch_size=batch_size,
        seed=request.seed,
        work_dir=request.work_dir,
        amp=request.amp,
        checkpoint_every=request.checkpoint_every,
        stop_after_s=request.stop_after_s,
        settings=shared | settings,
    )


def shown_digest(source: Path | str | None) -> str | None:
    """Tells the files or texts of two runs apart; short, since it is shown.

    None for no file, of which whoever reads it says more.
    """
    if isinstance(source, str):
        return text_digest(source)[:SHOWN_DIGITS]
    return file_digest(source)[:SHOWN_DIGITS] if source is not None and source.is_file() else None


def _open_source(
    request: TrainRequest, config: DetectorConfig, world: World, reporter: StageReporter
) -> TrainingSource:
    require_lidar_reader(config)
    if request.data == SYNTHETIC:
        pool = request.pool_options
        world_config = WorldConfig(class_mix=pool.class_mix)
        pasting = synthetic_object_sampler(
            config,
            request.seed,
            pool.pool_size,
            world_config=world_config,
            device=world.device,
            reporter=reporter,
        )
        return SyntheticSource(
            seed=request.seed,
            pool_size=pool.pool_size,
            turnover=pool.turnover,
            device=world.device,
            transforms=training_transforms(config, pasting),
            shard=world.shard,
            world_config=world_config,
        )
    dataset = open_dataset(
        config, request.data, request.split, request.version, purpose=Purpose.TRAIN
    )
    pasting = dataset_object_sampler(
        config,
        dataset,
        PastingOptions(request.work_dir, request.split is not None, request.num_workers),
        reporter=reporter,
        world=world,
    )
    return DatasetSource(
        dataset,
        epoch_order(dataset, config, request.seed),
        seed=request.seed,
        device=world.device,
        transforms=training_transforms(config, pasting),
        num_workers=request.num_workers,
        shard=world.shard,
    )


def epoch_order(dataset: FrameDataset, config: DetectorConfig, seed: int) -> list[int]:
    """Dataset indices of one epoch, resampled by class if the config says so.

    Raises:
        DatasetError: class-balanced, and no frame shows any class.
    """
    if not config.train.class_balanced:
        return list(range(len(dataset)))
    classes = [dataset.classes_in(index) for index in range(len(dataset))]
    return class_balanced_order(classes, len(config.class_names), seed=seed)


def open_work_dir(session: TrainingSession) -> None:
    """Make the folder, and keep the resolved config in it."""
    if not session.world.is_main:
        return
    make_work_dir(session.request.work_dir)
    remove_unfinished(session.run.checkpoint)  # as large as a checkpoint, one for each kill
    if not session.request.resume:
        path = session.request.work_dir / "config.yaml"
        write_text_atomic(path, config_to_yaml(session.config))


def train_session(session: TrainingSession, trainee: Trainee, title: str) -> int:
    """Train from scratch or from the last checkpoint, with a log; returns the steps done.

    Raises:
        BadInputError: a gradient is not finite.
        CheckpointError: the checkpoint to resume from is of another model or run.
    """
    run, request = session.run, session.request
    first = 0
    if request.resume:
        first = load_training_state(run.checkpoint, trainee.model, trainee.optimizer, run.settings)
    log = TrainingLog(request.work_dir / "log.jsonl", first) if session.world.is_main else None
    title = f"{title} for {counted(run.total_steps, 'step')}"
    with session.reporter.stage("train", title) as advance:
        done = run_steps(
            trainee,
            session.source,
            run,
            first_step=first,
            world=session.world,
            log=None if log is None else log.append,
            progress=advance,
        )
    if done < run.total_steps:
        steps = counted(run.total_steps, "step")
        session.reporter.say(f"stopped after {done} of {steps}; --resume continues")
    return done


def write_training_metrics(session: TrainingSession, steps_done: int, more: dict[str, Any]) -> None:
    """Keep what was done, and everything needed to do it again, in `metrics.json`."""
    request, run = session.request, session.run
    pool = asdict(request.pool_options) if request.data == SYNTHETIC else None
    metrics = {
        "steps": steps_done,
        "total_steps": run.total_steps,
        "batch_size": run.batch_size,
        "processes": session.world.shard.world_size,
        "lr_max": session.config.train.schedule.lr_max,
        "amp": run.amp,
        "seconds": session.reporter.seconds["train"],
        "data": request.data or session.config.data.root,
        "frames": str(session.source),
        "pool": pool,
        "weights": request.weights,
        **more,
        "provenance": provenance(config=session.config, seed=request.seed),
    }
    write_json_atomic(request.work_dir / "metrics.json", metrics)
