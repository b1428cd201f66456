"""Matching against annotations that were read once equals the devkit's own evaluation."""

from pathlib import Path

import numpy as np
import pytest

from nuscenes_world import CLASS_NAMES, VERSION, TinyNuScenes, write_tiny_nuscenes
from voxelquant.data.nuscenes import NuScenesDataset
from voxelquant.errors import DatasetError
from voxelquant.evaluation.bootstrap import score
from voxelquant.evaluation.frame_matcher import FrameMatcher
from voxelquant.evaluation.nuscenes import match_submission

from .test_nuscenes import Found, detect, distort, evaluate


def test_matches_are_those_of_a_submission(dataset: NuScenesDataset, tmp_path: Path) -> None:
    found = detect(dataset, distort)
    metrics = evaluate(dataset, found, tmp_path)
    wanted = match_submission(dataset.nusc, dataset.split, tmp_path / "submission.json")
    matcher = FrameMatcher(dataset.nusc, dataset.sample_tokens, CLASS_NAMES)
    for matches in (matcher.match(found), matcher.match(found)):  # a second model finds them whole
        assert matches.tokens == wanted.tokens
        for name, own in wanted.classes.items():
            for field in ("scores", "frames", "matched", "errors", "objects"):
                np.testing.assert_array_equal(
                    getattr(matches.classes[name], field), getattr(own, field)
                )
        exact = score(matches, np.ones(3, dtype=np.int64))
        assert exact == pytest.approx((metrics.mAP, metrics.NDS), abs=1e-12)


def test_a_part_of_a_split_is_a_resample_without_the_rest(dataset: NuScenesDataset) -> None:
    found = detect(dataset, distort)
    whole = FrameMatcher(dataset.nusc, dataset.sample_tokens, CLASS_NAMES).match(found)
    part = FrameMatcher(dataset.nusc, dataset.sample_tokens[1:], CLASS_NAMES).match(found)
    assert part.tokens == dataset.sample_tokens[1:]
    wanted = score(whole, np.array([0, 1, 1]))
    assert score(part, np.ones(2, dtype=np.int64)) == pytest.approx(wanted, abs=1e-12)


def test_a_model_that_finds_nothing_scores_nothing(dataset: NuScenesDataset) -> None:
    nothing = detect(dataset, lambda f: Found(f.boxes_det3d[:0], f.scores[:0], f.labels[:0]))
    matches = FrameMatcher(dataset.nusc, dataset.sample_tokens, CLASS_NAMES).match(nothing)
    assert score(matches, np.ones(3, dtype=np.int64)) == (0.0, 0.0)


def test_frames_without_annotations_are_refused(tmp_path: Path) -> None:
    tiny: TinyNuScenes = write_tiny_nuscenes(tmp_path)
    tiny.edit("sample_annotation", lambda rows: rows.clear())
    bare = NuScenesDataset(tiny.root, VERSION, "check", CLASS_NAMES, nsweeps=1)
    with pytest.raises(DatasetError, match="--metric proxy"):
        FrameMatcher(bare.nusc, bare.sample_tokens, CLASS_NAMES)
