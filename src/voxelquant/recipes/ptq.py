"""Post-training quantization: float weights and calibration frames in, a QuantState out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import nn

from voxelquant.data.loader import Frames, LoaderOptions
from voxelquant.detection.config import load_config
from voxelquant.quant import MagnitudeHistogram, TensorStatistics, observe, quantize, set_ranges
from voxelquant.quant.recipe import Recipe, load_recipe
from voxelquant.quant.spec import Method
from voxelquant.quant.state import QuantState
from voxelquant.recipes.artifacts import make_work_dir, provenance, write_json_atomic
from voxelquant.recipes.calibration import (
    Calibration,
    CalibrationJob,
    read_batches,
    require_batches,
    weights_digest,
)
from voxelquant.recipes.datasets import Purpose, open_dataset
from voxelquant.recipes.detect import Detector, Engine, open_detector
from voxelquant.recipes.distributed import World, join_world
from voxelquant.recipes.progress import Advance, StageReporter
from voxelquant.recipes.rank import process_count
from voxelquant.sparse import SparseTensor

STATE_FILE = "ptq.safetensors"


@dataclass(frozen=True)
class PtqRequest:
    """What the command line asks for; None is the config's data root or the recipe's method."""

    config: str
    data: str | None
    weights: Path
    work_dir: Path
    calibrate_batches: int = 400
    batch_size: int = 1
    method: Method | None = None
    recipe: str = "reference"
    split: str | None = None
    version: str | None = None
    device: str = "auto"
    num_workers: int = 0


@dataclass(frozen=True)
class Calibrated:
    """A quantized model as data, and what calibration saw."""

    state: QuantState
    statistics: dict[str, TensorStatistics]


def run_ptq(request: PtqRequest, reporter: StageReporter) -> Path:
    """Quantize and write `ptq.safetensors` and `metrics.json`; returns the state's path.

    Several processes share the batches out, and the ranges are those of one process. What was
    observed is kept in the work dir while it goes on, so a run that was killed continues when it
    is started again.

    Raises:
        BadInputError: config, dataset, weights or recipe cannot be used.
    """
    with join_world(request.device) as world:
        speaker = reporter if world.is_main else StageReporter.silent()
        return _quantize(request, speaker, world)


def _quantize(request: PtqRequest, reporter: StageReporter, world: World) -> Path:
    config = load_config(request.config)
    policy = load_recipe(request.recipe)
    dataset = open_dataset(
        config, request.data, request.split, request.version, purpose=Purpose.TRAIN
    )
    detector = open_detector(config, request.weights, Engine.FLOAT, world.device)
    batches = min(request.calibrate_batches, len(dataset) // request.batch_size)
    job = CalibrationJob(dataset, batches, request.batch_size, request.num_workers)
    make_work_dir(request.work_dir)
    calibration = Calibration(detector, policy, job, world)
    line = calibration.begin(request.work_dir, weights_digest(request.weights))
    if line:
        reporter.say(f"ptq: {line}")
    title = f"calibrating{world.in_words} on {batches} batches"
    if batches < request.calibrate_batches:
        title += f", not {request.calibrate_batches}: {dataset.split} has {len(dataset)} frames"
    with reporter.stage("ptq", title) as advance:
        histograms = calibration.run(advance)

        def finish() -> None:
            calibrated = _choose_ranges(calibration.model, detector, histograms, request.method)
            calibrated.state.save(request.work_dir / STATE_FILE)
            _write_metrics(request, calibrated, job, provenance(config=config))

        world.in_main(finish)
        calibration.forget()
    return request.work_dir / STATE_FILE


def _write_metrics(
    request: PtqRequest, calibrated: Calibrated, job: CalibrationJob, origin: dict[str, Any]
) -> None:
    asked = {k: v for k, v in asdict(request).items() if k not in ("work_dir", "data")}
    payload = {
        "recipe": calibrated.state.recipe.name,
        "frames": str(job.dataset),
        "split": job.dataset.split,
        "calibrate_batches": job.batches,
        "amax": {name: entry.amax for name, entry in calibrated.statistics.items()},
        "request": asked,
        "processes": process_count(),
        "provenance": origin,
    }
    write_json_atomic(request.work_dir / "metrics.json", payload)


def calibration_batches(
    detector: Detector, dataset: Frames, batches: int, batch_size: int
) -> Iterator[SparseTensor]:
    """Exactly `batches` network inputs from the first frames of a dataset, without augmentation.

    Raises:
        CalibrationError: not even one batch of frames.
    """
    require_batches(dataset, batches, batch_size)
    yield from read_batches(detector, dataset, range(batches), LoaderOptions(batch_size))


def quantize_detector(
    detector: Detector,
    batches: Iterator[SparseTensor],
    *,
    recipe: str | Recipe = "reference",
    method: Method | None = None,
    progress: Advance | None = None,
) -> Calibrated:
    """Fold, insert by recipe, calibrate; the detector itself stays as it is."""
    model = quantize(detector.network, load_recipe(recipe))
    return _choose_ranges(model, detector, observe(model, batches, progress=progress), method)


def _choose_ranges(
    model: nn.Module,
    detector: Detector,
    histograms: Mapping[str, MagnitudeHistogram],
    method: Method | None,
) -> Calibrated:
    statistics = set_ranges(model, histograms, method)
    return Calibrated(QuantState.of(model, metadata={"config": detector.config.name}), statistics)
