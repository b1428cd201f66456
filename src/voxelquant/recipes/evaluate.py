"""Score an engine on a dataset with the official nuScenes metric."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path

from voxelquant.data.records import FrameDataset
from voxelquant.detection.config import load_config
from voxelquant.detection.decode import Detections
from voxelquant.evaluation.bootstrap import PairedDifference, paired_difference
from voxelquant.evaluation.matching import Matches
from voxelquant.evaluation.nuscenes import (
    SUBMISSION_FILE,
    Metrics,
    evaluate_detections,
    match_submission,
)
from voxelquant.recipes.artifacts import make_work_dir, provenance, write_json_atomic
from voxelquant.recipes.datasets import open_dataset
from voxelquant.recipes.detect import Detector, Engine, detect_frames, open_detector
from voxelquant.recipes.device import choose_device
from voxelquant.recipes.progress import Advance, StageReporter


@dataclass(frozen=True)
class Evaluation:
    """Score of one engine, with what it found and how long it took."""

    metrics: Metrics
    detections: dict[str, Detections]
    seconds_per_frame: float  # voxelization to boxes, without loading
    difference: PairedDifference | None = None  # to the run it was compared with


@dataclass(frozen=True)
class EvaluateRequest:
    """What the command line asks for; `against` is the work dir of an earlier evaluation.

    Where `data` is None, the config names the data root.
    """

    config: str
    data: str | None
    weights: Path
    work_dir: Path
    engine: str = "float"
    split: str | None = None
    version: str | None = None
    device: str = "auto"
    against: Path | None = None


def run_evaluation(request: EvaluateRequest, reporter: StageReporter) -> Evaluation:
    """Evaluate and write `metrics.json` and the submission into the work dir.

    Raises:
        BadInputError: config, dataset or weights cannot be used.
    """
    config = load_config(request.config)
    dataset = open_dataset(config, request.data, request.split, request.version)
    device = choose_device(request.device)
    detector = open_detector(config, request.weights, Engine(request.engine), device)
    make_work_dir(request.work_dir)
    # Before the work: an unusable file, or one about other frames, should not cost an evaluation.
    earlier = None if request.against is None else _matches_of(dataset, request.against)
    title = f"evaluating {request.engine} on {len(dataset)} frames of {dataset}"
    with reporter.stage("eval", title) as advance:
        evaluation = evaluate_detector(detector, dataset, request.work_dir, advance)
    if earlier is not None:
        with reporter.stage("bootstrap", f"resampling {len(dataset)} frames") as advance:
            own = _matches_of(dataset, request.work_dir)
            evaluation = replace(
                evaluation, difference=paired_difference(earlier, own, progress=advance)
            )
    payload = {
        "engine": request.engine,
        "data": dataset.root,
        "frames": str(dataset),
        "split": dataset.split,
        "weights": request.weights,
        "metrics": asdict(evaluation.metrics),
        "against": request.against,
        "difference": evaluation.difference,
        "seconds_per_frame": evaluation.seconds_per_frame,
        "provenance": provenance(config=config),
    }
    write_json_atomic(request.work_dir / "metrics.json", payload)
    return evaluation


def _matches_of(dataset: FrameDataset, work_dir: Path) -> Matches:
    return match_submission(dataset.nusc, dataset.split, work_dir / SUBMISSION_FILE)


def evaluate_detector(
    detector: Detector,
    dataset: FrameDataset,
    out_dir: Path,
    progress: Advance | None = None,
) -> Evaluation:
    """Detect on every frame of a dataset and score; submission and summary go to `out_dir`."""
    nusc = dataset.nusc  # before the work: tables may be missing, or of other frames
    detections, seconds = detect_frames(detector, dataset, progress)
    metrics = evaluate_detections(
        dataset.root,
        dataset.version,
        dataset.split,
        detections,
        out_dir,
        class_names=detector.config.class_names,
        nusc=nusc,
    )
    return Evaluation(metrics, detections, seconds)
