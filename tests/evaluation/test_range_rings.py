from pathlib import Path

import numpy as np
import pytest

from voxelquant.data.nuscenes import NuScenesDataset
from voxelquant.evaluation.nuscenes import SUBMISSION_FILE, evaluate_detections, match_submission
from voxelquant.evaluation.range_rings import score_rings

from .test_nuscenes import detect, distort


@pytest.fixture(scope="module")
def submission(dataset: NuScenesDataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rings")
    place = (dataset.root, dataset.version, dataset.split)
    evaluate_detections(*place, detect(dataset, distort), folder, nusc=dataset.nusc)
    return folder / SUBMISSION_FILE


def test_one_ring_around_everything_is_the_whole(dataset, submission) -> None:
    (ring,) = score_rings(dataset.nusc, dataset.split, submission, (0, 100))
    matches = match_submission(dataset.nusc, dataset.split, submission)
    for name, found in ring.classes.items():
        own = matches.classes[name]
        assert found.objects == own.objects.sum()
        assert found.recall == own.matched[2].sum() / own.objects.sum()
    assert ring.mAP == pytest.approx(np.mean([c.AP for c in ring.classes.values()]))
    assert 0 < ring.recall <= 1


def test_rings_share_the_objects_out(dataset, submission) -> None:
    edges = (0, 15, 30, 50)
    rings = score_rings(dataset.nusc, dataset.split, submission, edges)
    assert [(ring.near_m, ring.far_m) for ring in rings] == [(0, 15), (15, 30), (30, 50)]
    (whole,) = score_rings(dataset.nusc, dataset.split, submission, (0, 50))
    for name, found in whole.classes.items():
        parts = [ring.classes[name].objects for ring in rings if name in ring.classes]
        assert sum(parts) == found.objects


def test_a_ring_without_objects_has_no_score(dataset, submission) -> None:
    (ring,) = score_rings(dataset.nusc, dataset.split, submission, (90, 95))
    assert ring.classes == {}
    assert np.isnan(ring.mAP)
    assert np.isnan(ring.recall)
