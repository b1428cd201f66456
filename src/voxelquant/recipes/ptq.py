"""Post-training quantization: float weights and calibration frames in, a QuantState out."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from voxelquant.data.loader import NamedFrames
from voxelquant.data.synthetic import (
    DEFAULT_CLASS_MIX,
    ClassMix,
    GeneratedFrames,
    WorldConfig,
)
from voxelquant.detection.config import DetectorConfig, load_config
from voxelquant.quant.recipe import load_recipe
from voxelquant.quant.spec import Method
from voxelquant.recipes.artifacts import make_work_dir, provenance, write_json_atomic
from voxelquant.recipes.calibrated import (
    STATE_FILE,
    Calibrated,
    CalibrationRequest,
    calibrate_together,
)
from voxelquant.recipes.calibration import CalibrationJob
from voxelquant.recipes.datasets import (
    SYNTHETIC,
    Purpose,
    open_dataset,
    refuse_unused,
    require_lidar_reader,
)
from voxelquant.recipes.detect import Engine, open_detector
from voxelquant.recipes.distributed import World, join_world
from voxelquant.recipes.progress import StageReporter
from voxelquant.recipes.rank import process_count


@dataclass(frozen=True)
class PtqRequest:
    """What the command line asks for; None is the config's data root or the recipe's method.

    With `data` = `synthetic` frames are generated, those of world `seed` (None is 0) and
    `class_mix` (None is nuScenes' own); frames on disk have neither. `observations` is a folder
    that keeps what was seen, for other methods.
    """

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
    seed: int | None = None
    class_mix: ClassMix | None = None
    observations: Path | None = None


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
    recipe = load_recipe(request.recipe)
    frames = _open_frames(request, config, world.device)
    detector = open_detector(config, request.weights, Engine.FLOAT, world.device)
    for folder in filter(None, (request.work_dir, request.observations)):
        make_work_dir(folder)
    calibration = CalibrationRequest(
        weights=request.weights,
        dataset=frames,
        work_dir=request.work_dir,
        recipe=recipe,
        method=request.method,
        batches=request.calibrate_batches,
        batch_size=request.batch_size,
        num_workers=request.num_workers,
        observations=request.observations,
    )

    def finish(calibrated: Calibrated) -> None:
        calibrated.state.save(request.work_dir / STATE_FILE)
        _write_metrics(request, calibrated, calibration.job, provenance(config=config))

    calibrate_together(detector, calibration, finish, world=world, reporter=reporter)
    return request.work_dir / STATE_FILE


def _open_frames(request: PtqRequest, config: DetectorConfig, device: str) -> NamedFrames:
    refuse_unused(
        request.data,
        of_synthetic={"seed": request.seed, "class_mix": request.class_mix},
        of_dataset={
            "split": request.split,
            "version": request.version,
            "num_workers": request.num_workers or None,
        },
    )
    if request.data != SYNTHETIC:
        return open_dataset(
            config, request.data, request.split, request.version, purpose=Purpose.TRAIN
        )
    require_lidar_reader(config)
    count = request.calibrate_batches * request.batch_size
    world = WorldConfig(class_mix=request.class_mix or DEFAULT_CLASS_MIX)
    return GeneratedFrames(request.seed or 0, count, device=device, config=world)


def _write_metrics(
    request: PtqRequest, calibrated: Calibrated, job: CalibrationJob, origin: dict[str, Any]
) -> None:
    places = ("work_dir", "data", "observations")
    asked = {k: v for k, v in asdict(request).items() if k not in places}
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
