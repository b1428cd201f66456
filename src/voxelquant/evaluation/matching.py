"""Which detection matched which object, kept by frame so that frames can be resampled.

The official metric matches inside a frame and pools afterwards. What a frame contributes does not
depend on the other frames, so it is worked out once, and every resample only pools again.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

# In the order of the columns of `ClassMatches.errors`.
TP_ERRORS = ("trans_err", "vel_err", "scale_err", "orient_err", "attr_err")


@dataclass(frozen=True)
class ClassMatches:
    """Detections of one class over all frames, best score first.

    Attributes:
        scores: `[d]` float64, descending.
        frames: `[d]` index of the frame of each detection.
        matched: `[t, d]` bool, for each of the t matching distances.
        errors: `[d, 5]` float64 of the detections matched at the distance for true-positive errors
            (see `TP_ERRORS`; NaN where the object has no attribute), NaN elsewhere.
        objects: `[f]` number of annotated objects in each frame.
    """

    scores: npt.NDArray[np.float64]
    frames: npt.NDArray[np.int64]
    matched: npt.NDArray[np.bool_]
    errors: npt.NDArray[np.float64]
    objects: npt.NDArray[np.int64]


@dataclass(frozen=True)
class Matches:
    """Everything that the metric needs to know of one model's detections on a split.

    Attributes:
        tokens: sample tokens of the frames.
        classes: matches by class name.
        config: the devkit's settings.
    """

    tokens: tuple[str, ...]
    classes: Mapping[str, ClassMatches]
    config: Any


def match_boxes(gt_boxes: Any, pred_boxes: Any, config: Any) -> Matches:
    """Match filtered boxes (`DetectionEval.gt_boxes`, `.pred_boxes`) as the devkit does.

    By descending score, a detection takes the closest object of its class in its frame that is
    not taken yet, if it is closer than the matching distance.

    Args:
        gt_boxes: the devkit's `EvalBoxes` of annotations.
        pred_boxes: the devkit's `EvalBoxes` of detections.
        config: the devkit's `DetectionConfig`.
    """
    tokens = tuple(gt_boxes.sample_tokens)
    # The devkit breaks ties of score by the place in this order, the last first.
    order = {token: index for index, token in enumerate(pred_boxes.sample_tokens)}
    classes = {}
    for name in config.class_names:
        objects = [[b for b in gt_boxes[t] if b.detection_name == name] for t in tokens]
        found = [[b for b in pred_boxes[t] if b.detection_name == name] for t in tokens]
        classes[name] = _match_class(objects, found, [order[t] for t in tokens], config)
    return Matches(tokens, classes, config)


def _match_class(
    objects: Sequence[Sequence[Any]],
    found: Sequence[Sequence[Any]],
    ranks: Sequence[int],
    config: Any,
) -> ClassMatches:
    rows = [
        (box.detection_score, ranks[frame], place, frame)
        for frame, boxes in enumerate(found)
        for place, box in enumerate(boxes)
    ]
    rows.sort(reverse=True)
    row_of = {(frame, place): row for row, (_, _, place, frame) in enumerate(rows)}
    matched = np.zeros((len(config.dist_ths), len(rows)), dtype=bool)
    errors = np.full((len(rows), len(TP_ERRORS)), np.nan)
    for frame, (own, boxes) in enumerate(zip(objects, found, strict=True)):
        if not own or not boxes:
            continue
        distances = np.linalg.norm(_centres(boxes)[:, None] - _centres(own)[None], axis=2)
        places = sorted(range(len(boxes)), key=lambda place: row_of[frame, place])
        for index, limit in enumerate(config.dist_ths):
            for place, taken in _greedy(distances, places, limit):
                matched[index, row_of[frame, place]] = True
                if limit == config.dist_th_tp:
                    errors[row_of[frame, place]] = _tp_errors(own[taken], boxes[place])
    return ClassMatches(
        scores=np.array([row[0] for row in rows], dtype=np.float64),
        frames=np.array([row[3] for row in rows], dtype=np.int64),
        matched=matched,
        errors=errors,
        objects=np.array([len(own) for own in objects], dtype=np.int64),
    )


def _greedy(
    distances: npt.NDArray[np.float64], places: Sequence[int], limit: float
) -> Iterator[tuple[int, int]]:
    """Pairs (detection, object), detections in the order given."""
    free = np.ones(distances.shape[1], dtype=bool)
    for place in places:
        own = np.where(free, distances[place], np.inf)
        closest = int(own.argmin())
        if own[closest] < limit:
            free[closest] = False
            yield place, closest


def _centres(boxes: Sequence[Any]) -> npt.NDArray[np.float64]:
    return np.array([box.translation[:2] for box in boxes], dtype=np.float64)


def _tp_errors(gt_box: Any, pred_box: Any) -> list[float]:
    from nuscenes.eval.common import utils as devkit

    # The front of a barrier cannot be told from its back.
    period = np.pi if gt_box.detection_name == "barrier" else 2 * np.pi
    return [
        devkit.center_distance(gt_box, pred_box),
        devkit.velocity_l2(gt_box, pred_box),
        1 - devkit.scale_iou(gt_box, pred_box),
        devkit.yaw_diff(gt_box, pred_box, period=period),
        1 - devkit.attr_acc(gt_box, pred_box),
    ]
