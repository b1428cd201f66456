"""Post-training quantization: float weights and calibration frames in, a QuantState out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from voxelquant.data.loader import Frames
from voxelquant.detection.config import load_config
from voxelquant.errors import CalibrationError, DatasetError
from voxelquant.quant.calibrate import TensorStatistics, calibrate
from voxelquant.quant.insert import quantize
from voxelquant.quant.recipe import Recipe, load_recipe
from voxelquant.quant.spec import Method
from voxelquant.quant.state import QuantState
from voxelquant.recipes.artifacts import make_work_dir, provenance, write_json_atomic
from voxelquant.recipes.datasets import Purpose, open_dataset
from voxelquant.recipes.detect import Detector, Engine, open_detector
from voxelquant.recipes.device import choose_device
from voxelquant.recipes.progress import Advance, StageReporter
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


@dataclass(frozen=True)
class Calibrated:
    """A quantized model as data, and what calibration saw."""

    state: QuantState
    statistics: dict[str, TensorStatistics]


def run_ptq(request: PtqRequest, reporter: StageReporter) -> Path:
    """Quantize and write `ptq.safetensors` and `metrics.json`; returns the state's path.

    Raises:
        BadInputError: config, dataset, weights or recipe cannot be used.
    """
    config = load_config(request.config)
    policy = load_recipe(request.recipe)
    dataset = open_dataset(
        config, request.data, request.split, request.version, purpose=Purpose.TRAIN
    )
    device = choose_device(request.device)
    detector = open_detector(config, request.weights, Engine.FLOAT, device)
    batches = min(request.calibrate_batches, len(dataset) // request.batch_size)
    make_work_dir(request.work_dir)
    title = f"calibrating on {batches} batches"
    if batches < request.calibrate_batches:
        title += f", not {request.calibrate_batches}: {dataset.split} has {len(dataset)} frames"
    with reporter.stage("ptq", title) as advance:
        calibrated = quantize_detector(
            detector,
            calibration_batches(detector, dataset, batches, request.batch_size),
            recipe=policy,
            method=request.method,
            progress=advance,
        )
    state_path = request.work_dir / STATE_FILE
    calibrated.state.save(state_path)
    ranges = {name: entry.amax for name, entry in calibrated.statistics.items()}
    payload = {
        "recipe": policy.name,
        "frames": str(dataset),
        "split": dataset.split,
        "calibrate_batches": batches,
        "amax": ranges,
        "request": {k: v for k, v in asdict(request).items() if k not in ("work_dir", "data")},
        "provenance": provenance(config=config),
    }
    write_json_atomic(request.work_dir / "metrics.json", payload)
    return state_path


def calibration_batches(
    detector: Detector, dataset: Frames, batches: int, batch_size: int
) -> Iterator[SparseTensor]:
    """Exactly `batches` network inputs from the first frames of a dataset, without augmentation.

    Raises:
        CalibrationError: not even one batch of frames.
    """
    if batches < 1:
        raise CalibrationError(
            f"got {len(dataset)} frames for batches of {batch_size}, need at least one batch"
        )
    for batch in range(batches):
        rows = range(batch * batch_size, (batch + 1) * batch_size)
        frames = [dataset[row] for row in rows]
        try:
            x = detector.read([frame.points for frame in frames])
        except DatasetError as error:
            tokens = ", ".join(frame.token for frame in frames)
            raise DatasetError(f"calibration samples {tokens}: {error}") from None
        yield x


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
    statistics = calibrate(model, batches, method=method, progress=progress)
    state = QuantState.of(model, metadata={"config": detector.config.name})
    return Calibrated(state, statistics)
