"""Score an engine on a dataset with the official nuScenes metric."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path

from voxelquant.data.loader import LoaderOptions
from voxelquant.data.records import FrameDataset
from voxelquant.data.sampling import Shard
from voxelquant.detection.config import load_config
from voxelquant.detection.decode import Detections
from voxelquant.errors import BadInputError
from voxelquant.evaluation.bootstrap import PairedDifference, paired_difference
from voxelquant.evaluation.matching import Matches
from voxelquant.evaluation.nuscenes import (
    SUBMISSION_FILE,
    Metrics,
    evaluate_detections,
    match_submission,
)
from voxelquant.plural import counted
from voxelquant.recipes.artifacts import make_work_dir, provenance, write_json_atomic
from voxelquant.recipes.datasets import open_dataset
from voxelquant.recipes.detect import Detector, Engine, detect_frames, open_detector
from voxelquant.recipes.distributed import World, join_world
from voxelquant.recipes.progress import Advance, StageReporter


@dataclass(frozen=True)
class Evaluation:
    """Score of one engine, with what it found and how long it took."""

    metrics: Metrics
    detections: dict[str, Detections]
    seconds_per_frame: float  # of one process: voxelization to boxes, without loading
    difference: PairedDifference | None = None  # to the run it was compared with


@dataclass(frozen=True)
class EvaluateRequest:
    """What the command line asks for; `against` is the work dir of an earlier evaluation.

    Where `data` is None, the config names the data root. Processes that read ahead
    (`num_workers`) change nothing; frames at once (`batch_size`) at most the last bit of floats.
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
    batch_size: int = 1
    num_workers: int = 0


def run_evaluation(request: EvaluateRequest, reporter: StageReporter) -> Evaluation:
    """Evaluate and write `metrics.json` and the submission into the work dir.

    Raises:
        BadInputError: config, dataset or weights cannot be used.
    """
    with join_world(request.device) as world:
        speaker = reporter if world.is_main else StageReporter.silent()
        return _evaluate(request, speaker, world)


def _evaluate(request: EvaluateRequest, reporter: StageReporter, world: World) -> Evaluation:
    config = load_config(request.config)
    dataset = open_dataset(config, request.data, request.split, request.version)
    detector = open_detector(config, request.weights, Engine(request.engine), world.device)
    reporter.say_all(detector.notes)
    # Before the work: an unusable file, or one about other frames, should not cost an evaluation.
    earlier = _prepare(request, dataset) if world.is_main else None
    frames = counted(len(dataset), "frame")
    title = f"evaluating {request.engine} on {frames} of {dataset}{world.in_words}"
    with reporter.stage("eval", title) as advance:
        evaluation = evaluate_detector(
            detector,
            dataset,
            request.work_dir,
            advance,
            world=world,
            options=LoaderOptions(request.batch_size, request.num_workers),
        )

    def finish() -> PairedDifference | None:
        difference = None if earlier is None else _compare(earlier, request, dataset, reporter)
        payload = {
            "engine": request.engine,
            "data": dataset.root,
            "frames": str(dataset),
            "split": dataset.split,
            "weights": request.weights,
            "notes": detector.notes,
            "metrics": asdict(evaluation.metrics),
            "against": request.against,
            "difference": difference,
            "seconds_per_frame": evaluation.seconds_per_frame,
            "batch_size": request.batch_size,
            "processes": world.shard.world_size,
            "provenance": provenance(config=config),
        }
        write_json_atomic(request.work_dir / "metrics.json", payload)
        return difference

    return replace(evaluation, difference=world.in_main(finish))


def _prepare(request: EvaluateRequest, dataset: FrameDataset) -> Matches | None:
    if request.against is not None and request.against.resolve() == request.work_dir.resolve():
        raise BadInputError(
            f"{request.against}: got the same folder for --against and --work-dir, whose results "
            "would be overwritten; choose another --work-dir"
        )
    make_work_dir(request.work_dir)
    return None if request.against is None else _matches_of(dataset, request.against)


def _compare(
    earlier: Matches, request: EvaluateRequest, dataset: FrameDataset, reporter: StageReporter
) -> PairedDifference:
    with reporter.stage("bootstrap", f"resampling {counted(len(dataset), 'frame')}") as advance:
        own = _matches_of(dataset, request.work_dir)
        return paired_difference(earlier, own, progress=advance)


def _matches_of(dataset: FrameDataset, work_dir: Path) -> Matches:
    return match_submission(dataset.nusc, dataset.split, work_dir / SUBMISSION_FILE)


def evaluate_detector(
    detector: Detector,
    dataset: FrameDataset,
    out_dir: Path,
    progress: Advance | None = None,
    *,
    world: World | None = None,
    options: LoaderOptions | None = None,
) -> Evaluation:
    """Detect on every frame of a dataset and score; submission and summary go to `out_dir`.

    Several processes share the frames out; the first one scores what all have found, and holds
    their detections. The others hold their own, and get the same metrics.

    Args:
        detector: what is scored.
        dataset: the frames.
        out_dir: where submission and summary go.
        progress: called with (frames done, frames of this process).
        world: the processes that share the frames; None is this one alone.
        options: frames at once, and processes that read ahead.
    """
    world = world or World(Shard(), detector.device)
    # Before the work: tables may be missing, or of other frames.
    nusc = dataset.nusc if world.is_main else None
    detections, seconds = detect_frames(detector, dataset, progress, world=world, options=options)
    parts = world.gather_to_main((detections, seconds))
    if world.is_main:
        everything = {token: boxes for found, _ in parts for token, boxes in found.items()}
        detections = {token: everything[token] for token in dataset.sample_tokens}

    def score() -> tuple[Metrics, float]:
        metrics = evaluate_detections(
            dataset.root,
            dataset.version,
            dataset.split,
            detections,
            out_dir,
            class_names=detector.config.class_names,
            nusc=nusc,
        )
        return metrics, sum(spent for _, spent in parts) / max(1, len(dataset))

    metrics, seconds_per_frame = world.in_main(score)
    return Evaluation(metrics, detections, seconds_per_frame)
