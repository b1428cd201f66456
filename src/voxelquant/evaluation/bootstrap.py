"""How sure is a difference of mAP? Paired bootstrap over frames.

Both models saw the same frames, and most of what makes mAP vary from one validation set to another
(hard frames, rare classes) hits both alike. Resampling frames with replacement, the same ones for
both (Efron & Tibshirani 1993, chapter 13; paired as in Berg-Kirkpatrick et al. 2012), leaves only
what differs between the models. Frames of one scene resemble each other, so the intervals are for
frames like these, and somewhat narrow for new scenes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from voxelquant.errors import BadInputError
from voxelquant.evaluation.matching import TP_ERRORS, ClassMatches, Matches

Counts = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Interval:
    """A value with its 95 % bootstrap interval (percentiles 2.5 and 97.5)."""

    value: float
    low: float
    high: float

    @property
    def half_width(self) -> float:
        """Half of the interval's width: what stands behind the ±."""
        return (self.high - self.low) / 2


@dataclass(frozen=True)
class PairedDifference:
    """A model against another on the same frames; differences are second minus first."""

    mAP: Interval
    NDS: Interval
    frames: int
    resamples: int
    seed: int


def paired_difference(
    first: Matches,
    second: Matches,
    *,
    resamples: int = 1000,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> PairedDifference:
    """Differences of mAP and NDS, second minus first, with their intervals.

    Raises:
        BadInputError: the models were not run on the same frames.
    """
    places = _places(first, second)
    draws = _draws(len(first.tokens), resamples, seed)
    sampled = np.empty((resamples, 2))
    for row, drawn in enumerate(draws):
        sampled[row] = np.subtract(score(second, drawn[places]), score(first, drawn))
        if progress is not None:
            progress(row + 1, resamples)
    exact = np.subtract(whole_score(second), whole_score(first))
    return _difference(exact, sampled, len(first.tokens), seed)


class PairedReference:
    """A model that many others are compared with; its own resamples are scored only once.

    Args:
        matches: of the model.
        resamples: number of resamples of its frames.
        seed: of the resamples: the same for whoever is compared.
    """

    def __init__(self, matches: Matches, *, resamples: int = 1000, seed: int = 0) -> None:
        self._matches = matches
        self._seed = seed
        self._draws = list(_draws(len(matches.tokens), resamples, seed))
        self._sampled = np.array([score(matches, drawn) for drawn in self._draws])

    def difference_to(self, other: Matches) -> PairedDifference:
        """`paired_difference(reference, other)`, in half the time.

        Raises:
            BadInputError: the other model was not run on the same frames.
        """
        places = _places(self._matches, other)
        sampled = np.array([score(other, drawn[places]) for drawn in self._draws]) - self._sampled
        exact = np.subtract(whole_score(other), whole_score(self._matches))
        return _difference(exact, sampled, len(other.tokens), self._seed)


def _places(first: Matches, second: Matches) -> Counts:
    """Where each frame of the second stands in the first."""
    if set(first.tokens) != set(second.tokens):
        odd = sorted(set(first.tokens) ^ set(second.tokens))
        raise BadInputError(
            f"got detections on different frames ({len(odd)} occur in one alone, such as "
            f"{odd[0]}), need two runs on the same split"
        )
    place = {token: index for index, token in enumerate(first.tokens)}
    return np.array([place[token] for token in second.tokens], dtype=np.int64)


def _draws(frames: int, resamples: int, seed: int) -> Iterator[Counts]:
    """How often each frame occurs, for every resample."""
    generator = np.random.default_rng(seed)
    for _ in range(resamples):
        yield np.bincount(generator.integers(frames, size=frames), minlength=frames)


def _difference(
    exact: npt.NDArray[np.float64], sampled: npt.NDArray[np.float64], frames: int, seed: int
) -> PairedDifference:
    low, high = np.percentile(sampled, [2.5, 97.5], axis=0)
    mean_ap, nds = (
        Interval(float(exact[i]), float(low[i]), float(high[i])) for i in range(len(exact))
    )
    return PairedDifference(mean_ap, nds, frames, len(sampled), seed)


def whole_score(matches: Matches) -> tuple[float, float]:
    """MAP and NDS of the frames as they are: the official values."""
    return score(matches, np.ones(len(matches.tokens), dtype=np.int64))


def score(matches: Matches, counts: Counts) -> tuple[float, float]:
    """MAP and NDS of a sample in which frame i occurs `counts[i]` times, pooled as the devkit does.

    Args:
        matches: of one model.
        counts: `[f]`; ones give the official values.
    """
    metrics = pooled_metrics(matches, counts)
    return metrics.mean_ap, metrics.nd_score


def pooled_metrics(matches: Matches, counts: Counts) -> Any:
    """The devkit's `DetectionMetrics` of such a sample."""
    from nuscenes.eval.detection.algo import calc_ap, calc_tp
    from nuscenes.eval.detection.data_classes import DetectionMetrics

    config = matches.config
    metrics = DetectionMetrics(config)
    for name, found in matches.classes.items():
        pooled = _Pooled(found, counts)
        for index, limit in enumerate(config.dist_ths):
            data = pooled.metric_data(index, with_errors=limit == config.dist_th_tp)
            ap = calc_ap(data, config.min_recall, config.min_precision)
            metrics.add_label_ap(name, limit, ap)
            if limit != config.dist_th_tp:
                continue
            for error in TP_ERRORS:
                undefined = error in _UNDEFINED.get(name, ())
                value = np.nan if undefined else calc_tp(data, config.min_recall, error)
                metrics.add_label_tp(name, error, value)
    return metrics


# Errors that the protocol does not define: cones look alike from all sides, neither they nor
# barriers move or have attributes.
_UNDEFINED = {
    "traffic_cone": ("attr_err", "vel_err", "orient_err"),
    "barrier": ("attr_err", "vel_err"),
}


class _Pooled:
    """Detections of one class in a resample: every detection as often as its frame."""

    def __init__(self, found: ClassMatches, counts: Counts) -> None:
        rows = np.repeat(np.arange(len(found.scores)), counts[found.frames])
        self.scores = found.scores[rows]
        self.matched = found.matched[:, rows]
        self.errors = found.errors[rows]
        self.objects = int((found.objects * counts).sum())

    def metric_data(self, distance: int, *, with_errors: bool) -> Any:
        """The devkit's curves over recall at one matching distance."""
        from nuscenes.eval.detection.data_classes import DetectionMetricData

        hit = self.matched[distance]
        if self.objects == 0 or not hit.any():
            return DetectionMetricData.no_predictions()
        hits = np.cumsum(hit)
        recall = hits / self.objects
        precision = hits / np.arange(1, len(hits) + 1)
        grid = np.linspace(0, 1, DetectionMetricData.nelem)
        confidence = np.interp(grid, recall, self.scores, right=0)
        curves = dict.fromkeys(TP_ERRORS, np.ones(DetectionMetricData.nelem))
        if with_errors:
            scores = self.scores[hit][::-1]
            for name, means in zip(TP_ERRORS, _running_means(self.errors[hit]).T, strict=True):
                curves[name] = np.interp(confidence[::-1], scores, means[::-1])[::-1]
        return DetectionMetricData(
            recall=grid,
            precision=np.interp(grid, recall, precision, right=0),
            confidence=confidence,
            **curves,
        )


def _running_means(errors: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """The devkit's `cummean` of every column, which counts NaNs in a Python loop.

    NaNs are left out; before the first number a mean is 0, and 1 everywhere if there is none.
    """
    known = ~np.isnan(errors)
    counts = known.cumsum(axis=0)
    sums = np.where(known, errors, 0.0).cumsum(axis=0)
    means: npt.NDArray[np.float64] = np.divide(
        sums, counts, out=np.zeros_like(sums), where=counts > 0
    )
    means[:, ~known.any(axis=0)] = 1.0
    return means
