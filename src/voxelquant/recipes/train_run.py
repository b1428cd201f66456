"""The whole of `voxelquant train`: frames in, weights, log and metrics in a work dir."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path

from voxelquant.data.records import FrameDataset
from voxelquant.data.sampling import class_balanced_order
from voxelquant.detection.checkpoint import save_weights
from voxelquant.detection.config import DetectorConfig, config_to_yaml, load_config
from voxelquant.recipes.artifacts import (
    make_work_dir,
    provenance,
    write_json_atomic,
    write_text_atomic,
)
from voxelquant.recipes.datasets import Purpose, open_dataset
from voxelquant.recipes.device import choose_device
from voxelquant.recipes.pasted_objects import (
    PastingOptions,
    dataset_object_sampler,
    synthetic_object_sampler,
)
from voxelquant.recipes.progress import StageReporter
from voxelquant.recipes.train import TrainingRun, train
from voxelquant.recipes.training_source import (
    DatasetSource,
    SyntheticSource,
    TrainingSource,
    training_transforms,
)

# `--data synthetic`: frames are generated as training goes, nothing is read from disk.
SYNTHETIC = "synthetic"


@dataclass(frozen=True)
class TrainRequest:
    """What the command line asks for; None means the config's own value.

    Attributes:
        config: bundled name or path.
        data: root of a nuScenes-format dataset, or `synthetic`; default: the config's.
        work_dir: where weights, checkpoint, log and metrics go.
        split: split to train on, for a dataset on disk; default: its split for training.
        version: version folder of the dataset; default: the only one.
        steps: optimisation steps of the whole schedule; default: the config's epochs.
        batch_size: frames a step.
        seed: seed of initialisation, order, augmentation and of the synthetic world.
        device: `cuda`, `cpu`, or `auto`.
        amp: bfloat16 autocast.
        resume: continue from the work dir's checkpoint.
        stop_after_s: leave with a checkpoint after so many seconds.
        pool_size: synthetic frames held on the device.
        turnover: synthetic frames replaced before each step.
        num_workers: processes that read a dataset on disk ahead of the training.
    """

    config: str
    data: str | None
    work_dir: Path
    split: str | None = None
    version: str | None = None
    steps: int | None = None
    batch_size: int | None = None
    seed: int = 0
    device: str = "auto"
    amp: bool = False
    resume: bool = False
    stop_after_s: float | None = None
    pool_size: int = 1024
    turnover: int = 2
    num_workers: int = 0


def run_training(request: TrainRequest, reporter: StageReporter) -> Path:
    """Train and write `weights.safetensors`, `config.yaml`, `log.jsonl` and `metrics.json`.

    Returns:
        Path of the weights; of the checkpoint if time ran out before the schedule ended.

    Raises:
        BadInputError: config, dataset, checkpoint or loss cannot be used.
    """
    config = load_config(request.config)
    device = choose_device(request.device)
    source = _open_source(request, config, device, reporter)
    batch_size = request.batch_size or config.train.batch_size
    epochs = config.train.schedule.epochs
    steps = request.steps or epochs * max(1, source.frames_per_epoch // batch_size)
    run = TrainingRun(
        total_steps=steps,
        batch_size=batch_size,
        seed=request.seed,
        device=device,
        work_dir=request.work_dir,
        amp=request.amp,
        stop_after_s=request.stop_after_s,
    )
    make_work_dir(request.work_dir)
    if not request.resume:
        write_text_atomic(request.work_dir / "config.yaml", config_to_yaml(config))
    return _train_and_save(config, source, run, request, reporter)


def _open_source(
    request: TrainRequest, config: DetectorConfig, device: str, reporter: StageReporter
) -> TrainingSource:
    if request.data == SYNTHETIC:
        pasting = synthetic_object_sampler(
            config, request.seed, request.pool_size, device=device, reporter=reporter
        )
        return SyntheticSource(
            seed=request.seed,
            pool_size=request.pool_size,
            turnover=request.turnover,
            device=device,
            transforms=training_transforms(config, pasting),
        )
    dataset = open_dataset(
        config, request.data, request.split, request.version, purpose=Purpose.TRAIN
    )
    pasting = dataset_object_sampler(
        config,
        dataset,
        PastingOptions(request.work_dir, request.split is not None, request.num_workers),
        reporter=reporter,
    )
    return DatasetSource(
        dataset,
        epoch_order(dataset, config, request.seed),
        seed=request.seed,
        device=device,
        transforms=training_transforms(config, pasting),
        num_workers=request.num_workers,
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


def _train_and_save(
    config: DetectorConfig,
    source: TrainingSource,
    run: TrainingRun,
    request: TrainRequest,
    reporter: StageReporter,
) -> Path:
    log_path = request.work_dir / "log.jsonl"
    if not request.resume:
        log_path.unlink(missing_ok=True)
    started = time.perf_counter()
    with reporter.stage("train", f"training {config.name} for {run.total_steps} steps") as advance:

        def log(record: dict[str, object]) -> None:
            with log_path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")
            advance(int(str(record["step"])), run.total_steps)

        model, steps_done = train(config, source, run, resume=request.resume, log=log)
    metrics = {
        "steps": steps_done,
        "total_steps": run.total_steps,
        "batch_size": run.batch_size,
        "seconds": time.perf_counter() - started,
        "data": request.data or config.data.root,
        "provenance": provenance(config=config, seed=request.seed),
    }
    write_json_atomic(request.work_dir / "metrics.json", metrics)
    if steps_done < run.total_steps:
        reporter.say(f"stopped after {steps_done} of {run.total_steps} steps; --resume continues")
        return request.work_dir / "checkpoint.safetensors"
    weights = request.work_dir / "weights.safetensors"
    save_weights(model, weights, half=True)
    return weights
