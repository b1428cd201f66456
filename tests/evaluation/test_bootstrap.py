from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
from nuscenes.eval.common.config import config_factory
from nuscenes.eval.common.data_classes import EvalBoxes
from nuscenes.eval.detection.data_classes import DetectionBox
from nuscenes.eval.detection.evaluate import DetectionEval

from voxelquant.data.nuscenes import NuScenesDataset
from voxelquant.errors import BadInputError, DatasetError
from voxelquant.evaluation.bootstrap import PairedReference, paired_difference, score
from voxelquant.evaluation.matching import Matches, match_boxes
from voxelquant.evaluation.nuscenes import PROTOCOL, evaluate_detections, match_submission

from .test_nuscenes import detect, distort

CONFIG = config_factory(PROTOCOL)
NAMES = ("car", "pedestrian", "barrier", "traffic_cone", "bus")  # five of ten: the rest is absent
ATTRIBUTES = {"car": ("vehicle.moving", "vehicle.parked"), "pedestrian": ("pedestrian.moving", "")}


def random_box(rng: np.random.Generator, token: str, name: str, **fields: object) -> DetectionBox:
    yaw = rng.uniform(-np.pi, np.pi)
    return DetectionBox(
        sample_token=token,
        translation=(*rng.uniform(-20, 20, 2), 0.0),
        size=tuple(rng.uniform(0.5, 4.0, 3)),
        rotation=(np.cos(yaw / 2), 0.0, 0.0, np.sin(yaw / 2)),
        velocity=tuple(rng.normal(0, 2, 2)),
        detection_name=name,
        attribute_name=str(rng.choice(ATTRIBUTES.get(name, ("",)))),
        **fields,
    )


def random_truth(rng: np.random.Generator, frames: int) -> dict[str, list[DetectionBox]]:
    return {
        f"frame{i}": [
            random_box(rng, f"frame{i}", str(rng.choice(NAMES)), num_pts=5)
            for _ in range(rng.integers(0, 12))
        ]
        for i in range(frames)
    }


def detections_of(
    rng: np.random.Generator, truth: Mapping[str, Sequence[DetectionBox]], noise_m: float
) -> dict[str, list[DetectionBox]]:
    """Most objects, displaced, among false alarms; scores repeat, so that ties are many."""
    found = {}
    for token, boxes in truth.items():
        seen = []
        for box in boxes:
            if rng.random() < 0.85:
                made = random_box(rng, token, box.detection_name)
                made.translation = tuple(np.add(box.translation, rng.normal(0, noise_m, 3)))
                made.detection_score = round(rng.uniform(0.3, 1.0), 1)
                seen.append(made)
        for _ in range(rng.integers(0, 6)):
            made = random_box(rng, token, str(rng.choice(NAMES)))
            made.detection_score = round(rng.uniform(0.1, 0.8), 1)
            seen.append(made)
        found[token] = seen
    return found


def eval_boxes(boxes: Mapping[str, Sequence[DetectionBox]]) -> EvalBoxes:
    collected = EvalBoxes()
    for token, own in boxes.items():
        collected.add_boxes(token, list(own))
    return collected


def devkit_score(
    truth: Mapping[str, Sequence[DetectionBox]], found: Mapping[str, Sequence[DetectionBox]]
) -> tuple[float, float]:
    evaluation = object.__new__(DetectionEval)
    evaluation.cfg, evaluation.verbose = CONFIG, False
    evaluation.gt_boxes, evaluation.pred_boxes = eval_boxes(truth), eval_boxes(found)
    metrics = evaluation.evaluate()[0]
    return metrics.mean_ap, metrics.nd_score


def matches_of(
    truth: Mapping[str, Sequence[DetectionBox]], found: Mapping[str, Sequence[DetectionBox]]
) -> Matches:
    return match_boxes(eval_boxes(truth), eval_boxes(found), CONFIG)


@pytest.mark.parametrize("seed", range(5))
def test_score_of_the_sample_itself_is_the_devkits(seed: int) -> None:
    rng = np.random.default_rng(seed)
    truth = random_truth(rng, 12)
    found = detections_of(rng, truth, noise_m=0.8)
    # The devkit may hold frames of the submission in another order than those of the truth.
    shuffled = {token: found[token] for token in rng.permutation(list(found))}
    exact = devkit_score(truth, shuffled)
    assert exact[0] > 0.05
    mine = score(matches_of(truth, shuffled), np.ones(12, dtype=np.int64))
    assert mine == pytest.approx(exact, abs=1e-12)


@pytest.mark.parametrize("seed", range(3))
def test_score_of_a_resample_is_the_devkits_of_copied_frames(seed: int) -> None:
    rng = np.random.default_rng(100 + seed)
    truth = random_truth(rng, 8)
    found = detections_of(rng, truth, noise_m=0.8)
    counts = rng.integers(0, 4, size=8)
    # Scores are made distinct: the devkit would interleave the copies of equal ones.
    for place, box in enumerate(box for boxes in found.values() for box in boxes):
        box.detection_score += place * 1e-6
    copied_truth, copied_found = {}, {}
    for token, count in zip(truth, counts, strict=True):
        for copy in range(count):
            copied_truth[f"{token}-{copy}"] = moved(truth[token], f"{token}-{copy}")
            copied_found[f"{token}-{copy}"] = moved(found[token], f"{token}-{copy}")
    exact = devkit_score(copied_truth, copied_found)
    assert score(matches_of(truth, found), counts) == pytest.approx(exact, abs=1e-12)


def moved(boxes: Sequence[DetectionBox], token: str) -> list[DetectionBox]:
    """The same boxes in another frame."""
    return [DetectionBox.deserialize({**box.serialize(), "sample_token": token}) for box in boxes]


def test_a_model_does_not_differ_from_itself() -> None:
    rng = np.random.default_rng(0)
    truth = random_truth(rng, 10)
    matches = matches_of(truth, detections_of(rng, truth, noise_m=0.5))
    difference = paired_difference(matches, matches, resamples=20)
    for interval in (difference.mAP, difference.NDS):
        assert (interval.value, interval.low, interval.high) == (0.0, 0.0, 0.0)


def test_a_worse_model_is_found_and_pairing_narrows_the_interval() -> None:
    rng = np.random.default_rng(1)
    truth = random_truth(rng, 40)
    good = matches_of(truth, detections_of(np.random.default_rng(2), truth, noise_m=0.4))
    worse = matches_of(truth, detections_of(np.random.default_rng(2), truth, noise_m=0.9))
    difference = paired_difference(good, worse, resamples=60, seed=7)
    whole = np.ones(40, dtype=np.int64)
    assert difference.mAP.value == score(worse, whole)[0] - score(good, whole)[0]
    assert difference.mAP.low < difference.mAP.value < difference.mAP.high < 0.0
    assert difference == paired_difference(good, worse, resamples=60, seed=7)
    assert difference.mAP != paired_difference(good, worse, resamples=60, seed=8).mAP
    drawn = np.random.default_rng(7)
    alone = [
        score(good, np.bincount(drawn.integers(40, size=40), minlength=40))[0] for _ in range(60)
    ]
    low, high = np.percentile(alone, [2.5, 97.5])
    assert difference.mAP.half_width < (high - low) / 2


def test_frames_are_paired_by_token_whatever_their_order() -> None:
    rng = np.random.default_rng(3)
    truth = random_truth(rng, 10)
    first = detections_of(rng, truth, noise_m=0.4)
    second = detections_of(rng, truth, noise_m=0.9)
    straight = paired_difference(matches_of(truth, first), matches_of(truth, second), resamples=10)
    turned = {token: truth[token] for token in reversed(truth)}
    backward = paired_difference(matches_of(truth, first), matches_of(turned, second), resamples=10)
    assert backward.mAP.low == pytest.approx(straight.mAP.low, abs=1e-12)
    assert backward.NDS.high == pytest.approx(straight.NDS.high, abs=1e-12)


def test_a_reference_for_many_gives_each_pair_its_own_difference() -> None:
    rng = np.random.default_rng(6)
    truth = random_truth(rng, 12)
    first = matches_of(truth, detections_of(rng, truth, noise_m=0.4))
    reference = PairedReference(first, resamples=15, seed=3)
    turned = {token: truth[token] for token in reversed(truth)}
    for other_truth, noise_m in ((truth, 0.6), (turned, 1.0)):
        other = matches_of(other_truth, detections_of(rng, truth, noise_m=noise_m))
        wanted = paired_difference(first, other, resamples=15, seed=3)
        assert reference.difference_to(other) == wanted
        assert wanted.mAP.low < wanted.mAP.high


def test_other_frames_are_refused() -> None:
    rng = np.random.default_rng(4)
    truth, other = random_truth(rng, 3), random_truth(rng, 4)
    with pytest.raises(BadInputError, match="frame3"):
        paired_difference(
            matches_of(truth, detections_of(rng, truth, noise_m=1.0)),
            matches_of(other, detections_of(rng, other, noise_m=1.0)),
        )


def test_submission_of_an_evaluation_scores_the_same(
    dataset: NuScenesDataset, tmp_path: Path
) -> None:
    metrics = evaluate_detections(
        dataset.root,
        dataset.version,
        dataset.split,
        detect(dataset, distort),
        tmp_path,
        nusc=dataset.nusc,
    )
    matches = match_submission(dataset.nusc, dataset.split, tmp_path / "submission.json")
    whole = np.ones(len(matches.tokens), dtype=np.int64)
    assert score(matches, whole) == pytest.approx((metrics.mAP, metrics.NDS), abs=1e-12)


def test_unusable_submissions_are_refused(dataset: NuScenesDataset, tmp_path: Path) -> None:
    path = tmp_path / "submission.json"
    with pytest.raises(BadInputError, match=r"submission\.json: cannot be read"):
        match_submission(dataset.nusc, dataset.split, path)
    path.write_text('{"results": [1]}')
    with pytest.raises(BadInputError, match="not a nuScenes submission"):
        match_submission(dataset.nusc, dataset.split, path)
    path.write_text('{"meta": {}, "results": {"elsewhere": []}}')
    with pytest.raises(DatasetError, match="hold 1 others"):
        match_submission(dataset.nusc, dataset.split, path)
