"""mAP and NDS by the official protocol: nuscenes-devkit's detection task, cvpr_2019 settings."""

import contextlib
import io
import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from voxelquant.errors import BadInputError, DatasetError, MissingDependencyError
from voxelquant.evaluation.attributes import DETECTION_CLASSES
from voxelquant.evaluation.matching import Matches, match_boxes
from voxelquant.evaluation.submission import (
    MAX_BOXES_PER_SAMPLE,
    META,
    Detections,
    read_submission,
    submission_boxes,
)
from voxelquant.geometry import pose_matrix
from voxelquant.plural import counted

PROTOCOL = "detection_cvpr_2019"
SUBMISSION_FILE = "submission.json"
SUMMARY_FILE = "metrics_summary.json"


@dataclass(frozen=True)
class Metrics:
    """What nuScenes reports about a detector; every value as the devkit computes it."""

    mAP: float
    NDS: float
    per_class_ap: dict[str, float]  # mean over the four matching distances
    tp_errors: dict[str, float]  # trans_err m, scale_err 1-IoU, orient_err rad, vel_err m/s, attr
    per_class_tp_errors: dict[str, dict[str, float]]  # NaN where the protocol defines none
    samples: int
    detections: int
    notes: tuple[str, ...] = ()  # what was changed before scoring, empty if nothing


def evaluate_detections(
    data_root: str | Path,
    version: str,
    split: str,
    detections_by_token: Mapping[str, Detections],
    out_dir: str | Path,
    *,
    class_names: Sequence[str] = DETECTION_CLASSES,
    nusc: Any = None,
) -> Metrics:
    """Score detections and leave `submission.json` and `metrics_summary.json` in a folder.

    Args:
        data_root: Dataset folder.
        version: Version folder in it.
        split: A split of nuScenes or of the version's `splits.json`.
        detections_by_token: Boxes in the LiDAR frame for every key frame of the split.
        out_dir: Where the two files go; made if need be.
        class_names: Class of every label; the default is the order of CenterPoint's tasks.
        nusc: The same dataset, already open (`NuScenesDataset.nusc`): opening v1.0-trainval takes
            half a minute and gigabytes.

    Raises:
        DatasetError: A dataset that cannot be opened or evaluated, or tokens that do not match.
        BadInputError: Detections that are not finite or of foreign classes, an unusable `out_dir`.
        MissingDependencyError: nuscenes-devkit is not installed.
    """
    if nusc is None:
        nusc = _open(data_root, version)
    _require_tokens(nusc, split, detections_by_token)
    notes = _notes(detections_by_token)
    out_dir = Path(out_dir)
    try:
        out_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadInputError(
            f"{out_dir}: cannot be made ({error.strerror}); choose another folder"
        ) from error
    # Files take their final names only when all is done; the devkit's empty plots folder stays out.
    with tempfile.TemporaryDirectory(prefix=".evaluation-", dir=out_dir) as scratch:
        submission = Path(scratch, SUBMISSION_FILE)
        count = write_submission(submission, nusc, detections_by_token, class_names)
        scored = _score(nusc, split, submission, empty=count == 0)
        summary = {**scored.serialize(), "meta": META, "notes": notes}
        Path(scratch, SUMMARY_FILE).write_text(json.dumps(summary, indent=2))
        for name in (SUBMISSION_FILE, SUMMARY_FILE):
            os.replace(Path(scratch, name), out_dir / name)
    return Metrics(
        mAP=scored.mean_ap,
        NDS=scored.nd_score,
        per_class_ap={name: float(ap) for name, ap in scored.mean_dist_aps.items()},
        tp_errors=scored.tp_errors,
        per_class_tp_errors={k: dict(v) for k, v in summary["label_tp_errors"].items()},
        samples=len(detections_by_token),
        detections=count,
        notes=notes,
    )


def write_submission(
    path: Path,
    nusc: Any,
    detections_by_token: Mapping[str, Detections],
    class_names: Sequence[str],
) -> int:
    """Write a submission sample by sample: all of nuScenes' would fill gigabytes of memory.

    Returns:
        How many boxes it holds.

    Raises:
        BadInputError: Detections that are not finite, or of foreign classes.
    """
    count = 0
    separator = ""
    with path.open("w", encoding="utf-8") as file:
        file.write(f'{{"meta": {json.dumps(META)}, "results": {{')
        for token, detections in detections_by_token.items():
            records = sample_results(nusc, token, detections, class_names)
            file.write(f"{separator}{json.dumps(token)}: {json.dumps(records)}")
            separator = ", "
            count += len(records)
        file.write("}}")
    return count


def sample_results(
    nusc: Any, token: str, detections: Detections, class_names: Sequence[str]
) -> list[dict[str, Any]]:
    """Records of one sample, carried into the global frame by the poses of its LiDAR key frame."""
    key_frame = nusc.get("sample_data", nusc.get("sample", token)["data"]["LIDAR_TOP"])
    sensor = nusc.get("calibrated_sensor", key_frame["calibrated_sensor_token"])
    ego = nusc.get("ego_pose", key_frame["ego_pose_token"])
    return submission_boxes(
        token, detections, class_names, ref_to_ego=_pose(sensor), ego_to_global=_pose(ego)
    )


def _notes(detections_by_token: Mapping[str, Detections]) -> tuple[str, ...]:
    counts = [len(detections.scores) for detections in detections_by_token.values()]
    crowded = sum(count > MAX_BOXES_PER_SAMPLE for count in counts)
    notes = []
    if crowded:
        notes.append(
            f"{counted(crowded, 'sample')} had more than {MAX_BOXES_PER_SAMPLE} boxes: "
            "the best were kept"
        )
    if not any(counts):
        notes.append("nothing was detected: the devkit refuses that, its formulas give 0")
    return tuple(notes)


def _pose(row: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    quaternion = torch.tensor(row["rotation"], dtype=torch.float64)
    return pose_matrix(row["translation"], row["rotation"]), quaternion


def _open(data_root: str | Path, version: str) -> Any:
    try:
        from nuscenes.nuscenes import NuScenes
    except ImportError as error:
        raise MissingDependencyError(
            f"the nuScenes metric is nuscenes-devkit's ({error}); install it with: "
            "pip install 'voxelquant[nuscenes]'"
        ) from error
    try:
        return NuScenes(version=version, dataroot=str(data_root), verbose=False)
    except Exception as error:  # the devkit raises anything from AssertionError to plain Exception
        raise DatasetError(
            f"{Path(data_root) / version}: the devkit cannot open these tables "
            f"({type(error).__name__}: {error}); need a complete nuScenes version folder"
        ) from error


def _require_tokens(nusc: Any, split: str, detections_by_token: Mapping[str, Any]) -> None:
    """The metric is over a whole split: no sample less, none more."""
    from nuscenes.utils.splits import get_scenes_of_split

    try:
        scenes = set(get_scenes_of_split(split, nusc))
    except (ValueError, AssertionError) as error:
        raise DatasetError(f"{nusc.table_root}: {error}") from error
    tokens = {
        sample["token"]
        for sample in nusc.sample
        if nusc.get("scene", sample["scene_token"])["name"] in scenes
    }
    missing = sorted(tokens - set(detections_by_token))
    foreign = sorted(set(detections_by_token) - tokens)
    if not tokens or missing or foreign:
        raise DatasetError(
            f"split {split} has {counted(len(tokens), 'sample')}; got detections that miss "
            f"{len(missing)} of them and hold {len(foreign)} others{_example(missing or foreign)}; "
            "need detections (an empty set if nothing was found) for every sample of the split "
            "and no other"
        )


def _example(tokens: list[str]) -> str:
    return f" (such as {tokens[0]})" if tokens else ""


def match_submission(nusc: Any, split: str, submission: Path) -> Matches:
    """What an earlier evaluation's submission file matched, frame by frame.

    Takes and raises what `open_submission` does.
    """
    evaluation = open_submission(nusc, split, submission)
    return match_boxes(evaluation.gt_boxes, evaluation.pred_boxes, evaluation.cfg)


def open_submission(nusc: Any, split: str, submission: Path) -> Any:
    """The devkit's `DetectionEval` of a submission file, its boxes filtered by range and points.

    Args:
        nusc: The dataset, open.
        split: The split that the submission is about.
        submission: `submission.json` of `evaluate_detections`, or any nuScenes submission.

    Raises:
        BadInputError: The file is missing, no submission, or has not a single box.
        DatasetError: It is about other samples, or nothing can be measured on the split.
    """
    samples = read_submission(submission)
    _require_tokens(nusc, split, samples)
    if not any(samples.values()):
        raise BadInputError(f"{submission}: got no box at all, need detections to compare")
    with tempfile.TemporaryDirectory(prefix="voxelquant-") as scratch:
        return _open_evaluation(nusc, split, submission, Path(scratch))


def _score(nusc: Any, split: str, submission: Path, *, empty: bool) -> Any:
    """The devkit's `DetectionMetrics` of a submission file."""
    from nuscenes.eval.common.config import config_factory
    from nuscenes.eval.common.data_classes import EvalBoxes
    from nuscenes.eval.detection.evaluate import DetectionEval

    if not empty:
        return _open_evaluation(nusc, split, submission, submission.parent).evaluate()[0]
    # The devkit crashes on a submission without a single box. Its formulas, given nothing to
    # match, say AP 0 and errors 1 for every class, whatever the ground truth.
    evaluation = object.__new__(DetectionEval)
    evaluation.cfg, evaluation.verbose = config_factory(PROTOCOL), False
    evaluation.gt_boxes = evaluation.pred_boxes = EvalBoxes()
    return evaluation.evaluate()[0]


def _open_evaluation(nusc: Any, split: str, submission: Path, scratch: Path) -> Any:
    """The devkit's `DetectionEval`, with its boxes filtered by range and by points."""
    from nuscenes.eval.common.config import config_factory
    from nuscenes.eval.detection.evaluate import DetectionEval

    config = config_factory(PROTOCOL)
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # a progress bar that nothing switches off
            return DetectionEval(nusc, config, str(submission), split, str(scratch), verbose=False)
    except AssertionError as error:  # a split of another version, for one
        raise DatasetError(f"{nusc.table_root}: {error}") from error
    except KeyError as error:
        raise DatasetError(
            f"{nusc.table_root}: annotations of split {split} refer to {error}, which the tables "
            "lack; fetch the metadata again"
        ) from error
    except Exception as error:
        if "Invalid box type" not in str(error):
            raise
        raise DatasetError(
            f"{nusc.table_root}: split {split} has no annotated box of any detection class, so "
            "there is nothing to measure against"
        ) from error
