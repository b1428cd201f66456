"""A detector quantized and its ranges found, alone or by several processes together."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from voxelquant.data.loader import Frames, LoaderOptions, NamedFrames
from voxelquant.digest import file_digest
from voxelquant.plural import counted
from voxelquant.quant import MagnitudeHistogram, TensorStatistics, observe, quantize, set_ranges
from voxelquant.quant.recipe import Recipe, load_recipe
from voxelquant.quant.spec import Method
from voxelquant.quant.state import QuantState
from voxelquant.recipes.calibration import (
    Calibration,
    CalibrationJob,
    read_batches,
    require_batches,
)
from voxelquant.recipes.detect import Detector
from voxelquant.recipes.distributed import World
from voxelquant.recipes.progress import Advance, StageReporter
from voxelquant.sparse import SparseTensor

STATE_FILE = "ptq.safetensors"
STAGE = "ptq"


@dataclass(frozen=True)
class Calibrated:
    """A quantized model as data, and what calibration saw."""

    state: QuantState
    statistics: dict[str, TensorStatistics]


@dataclass(frozen=True)
class CalibrationRequest:
    """How a detector is to be quantized, and on what.

    Attributes:
        weights: file that the detector's float weights came from.
        dataset: frames, of which the first count.
        work_dir: where it is kept what was seen, until the result is written.
        recipe: precisions.
        method: how ranges are chosen; None is the recipe's.
        batches: fewer are taken where the dataset has no more.
        batch_size: frames of each.
        num_workers: processes that read ahead, beside each process that calibrates.
        observations: folder where it is kept what was seen, beyond the run; instead of `work_dir`.
    """

    weights: Path
    dataset: NamedFrames
    work_dir: Path
    recipe: Recipe
    method: Method | None = None
    batches: int = 400
    batch_size: int = 1
    num_workers: int = 0
    observations: Path | None = None

    @property
    def job(self) -> CalibrationJob:
        """What is there to be seen."""
        batches = min(self.batches, len(self.dataset) // self.batch_size)
        return CalibrationJob(self.dataset, batches, self.batch_size, self.num_workers)


def calibrate_together(
    detector: Detector,
    request: CalibrationRequest,
    finish: Callable[[Calibrated], None],
    *,
    world: World,
    reporter: StageReporter,
) -> None:
    """Quantize a detector; all processes call this, and the ranges are those of one process.

    What was observed is kept in the work dir, so a run that was killed continues when it is
    started again; with `observations` for other methods too, which then read no frames.

    Args:
        detector: float detector; stays as it is.
        request: how, and on what.
        finish: writes the result; called in the main process alone.
        world: the processes.
        reporter: speaks for the main process; silent in the others.

    Raises:
        BadInputError: there are no frames, they cannot be read, or hold NaN; or a layer of the
            recipe cannot use the method.
    """
    request.recipe.check_method(request.method)  # before the work
    job = request.job
    calibration = Calibration(detector, request.recipe, job, world)
    kept_in = request.observations or request.work_dir
    lasting = request.observations is not None
    line = calibration.begin(kept_in, file_digest(request.weights), lasting=lasting)
    if line:
        reporter.say(f"calibration: {line}")
    title = f"calibrating{world.in_words} on {counted(job.batches, 'batch', 'batches')}"
    if job.batches < request.batches:
        split, frames = request.dataset.split, counted(len(request.dataset), "frame")
        title += f", not {request.batches}: {split} has {frames}"
    with reporter.stage(STAGE, title) as advance:
        histograms = calibration.run(advance)
        world.in_main(
            lambda: finish(_choose_ranges(calibration.model, detector, histograms, request.method))
        )
        calibration.forget()


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
