"""What a detector finds near and far: the metric's precision and recall in rings of distance."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from voxelquant.evaluation.bootstrap import pooled_metrics
from voxelquant.evaluation.matching import match_boxes
from voxelquant.evaluation.nuscenes import open_submission


@dataclass(frozen=True)
class ClassInRing:
    """One class in a ring.

    Attributes:
        objects: annotated, with a point, within the class's range of the metric.
        AP: mean over the metric's matching distances, as in the official mAP.
        recall: share of the objects that any detection matches within 2 m.
    """

    objects: int
    AP: float
    recall: float


@dataclass(frozen=True)
class Ring:
    """Objects and detections whose centres are `near_m` to `far_m` from the ego vehicle.

    Attributes:
        mAP: mean AP of the classes that have objects here; NaN without any.
        recall: of the objects of all classes together; NaN without any.
    """

    near_m: float
    far_m: float
    classes: dict[str, ClassInRing]
    mAP: float
    recall: float


def score_rings(
    nusc: Any, split: str, submission: Path, edges_m: Sequence[float]
) -> tuple[Ring, ...]:
    """Score a submission ring by ring.

    A detection that lies beyond an edge from its object counts as a false alarm in one ring and as
    a miss in the other, so rings score somewhat below the whole.

    Args:
        nusc: the dataset, open.
        split: the split that the submission is about.
        submission: `submission.json` of an evaluation.
        edges_m: ascending; ring i reaches from edge i to edge i + 1.

    Raises:
        BadInputError: the file cannot be used, see `match_submission`.
        DatasetError: it is about other samples.
    """
    evaluation = open_submission(nusc, split, submission)
    rings = []
    for near, far in itertools.pairwise(edges_m):
        objects = _within(evaluation.gt_boxes, near, far)
        found = _within(evaluation.pred_boxes, near, far)
        rings.append(_score_ring((near, far), objects, found, evaluation.cfg))
    return tuple(rings)


def _within(boxes: Any, near_m: float, far_m: float) -> Any:
    """The boxes of a ring; every sample stays, if only empty."""
    kept = type(boxes)()
    for token in boxes.sample_tokens:
        kept.add_boxes(token, [box for box in boxes[token] if near_m <= box.ego_dist < far_m])
    return kept


def _score_ring(reach_m: tuple[float, float], objects: Any, found: Any, config: Any) -> Ring:
    matches = match_boxes(objects, found, config)
    metrics = pooled_metrics(matches, np.ones(len(matches.tokens), dtype=np.int64))
    at_two_metres = config.dist_ths.index(config.dist_th_tp)
    classes, hits = {}, 0
    for name, ap in metrics.mean_dist_aps.items():
        own = matches.classes[name]
        count, matched = int(own.objects.sum()), int(own.matched[at_two_metres].sum())
        if count:
            classes[name] = ClassInRing(count, ap, matched / count)
            hits += matched
    total = sum(each.objects for each in classes.values())
    mean = sum(each.AP for each in classes.values()) / len(classes) if classes else np.nan
    return Ring(*reach_m, classes, mean, hits / total if total else np.nan)
