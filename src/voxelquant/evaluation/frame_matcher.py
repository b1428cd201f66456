"""Matches of many models on the same frames: annotations are read and filtered once."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Mapping, Sequence
from typing import Any

from voxelquant.errors import DatasetError
from voxelquant.evaluation.matching import Matches, match_boxes
from voxelquant.evaluation.nuscenes import PROTOCOL, sample_results
from voxelquant.evaluation.submission import Detections
from voxelquant.plural import counted


class FrameMatcher:
    """The annotations of some key frames, ready to be matched by one model after the other.

    Over a whole split `bootstrap.score` of the matches is the official result; over a part of it,
    what the devkit would give for a split of these frames.

    Args:
        nusc: the dataset, open.
        tokens: the key frames.
        class_names: class of every label.

    Raises:
        DatasetError: no frame has an annotated box of any detection class.
    """

    def __init__(self, nusc: Any, tokens: Sequence[str], class_names: Sequence[str]) -> None:
        from nuscenes.eval.common.config import config_factory
        from nuscenes.eval.common.loaders import load_gt_of_sample_tokens
        from nuscenes.eval.detection.data_classes import DetectionBox

        self._nusc = nusc
        self._tokens = list(tokens)
        self._class_names = class_names
        self._config = config_factory(PROTOCOL)
        with contextlib.redirect_stderr(io.StringIO()):  # a progress bar that nothing switches off
            objects = load_gt_of_sample_tokens(nusc, self._tokens, DetectionBox)
        if not objects.all:
            raise DatasetError(
                f"{nusc.table_root}: got {counted(len(self._tokens), 'frame')} without an "
                "annotated box of any detection class, so there is nothing to measure against; "
                "profile annotated frames, or choose a metric that needs none (--metric proxy)"
            )
        self._objects = self._in_range(objects)

    def match(self, detections_by_token: Mapping[str, Detections]) -> Matches:
        """Match the detections of one model, of which there may be none at all.

        Args:
            detections_by_token: boxes in the LiDAR frame for each of the frames.

        Raises:
            BadInputError: detections that are not finite or of foreign classes.
        """
        from nuscenes.eval.common.data_classes import EvalBoxes
        from nuscenes.eval.detection.data_classes import DetectionBox

        records = {
            token: sample_results(self._nusc, token, detections_by_token[token], self._class_names)
            for token in self._tokens
        }
        found = EvalBoxes.deserialize(records, DetectionBox)
        # The devkit's filter refuses a set without a single box; there is nothing to filter then.
        found = self._in_range(found) if found.all else found
        return match_boxes(self._objects, found, self._config)

    def _in_range(self, boxes: Any) -> Any:
        from nuscenes.eval.common.loaders import add_center_dist, filter_eval_boxes

        return filter_eval_boxes(
            self._nusc, add_center_dist(self._nusc, boxes), self._config.class_range
        )
