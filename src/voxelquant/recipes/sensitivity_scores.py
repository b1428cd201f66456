"""From what every variant found to what every layer costs, by metric and by proxy."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from voxelquant.detection.decode import Detections
from voxelquant.detection.head_change import HeadChange
from voxelquant.evaluation.bootstrap import Interval, PairedDifference, PairedReference, whole_score
from voxelquant.evaluation.frame_matcher import FrameMatcher
from voxelquant.quant.layer_forms import Mode
from voxelquant.recipes.distributed import World
from voxelquant.recipes.progress import Advance
from voxelquant.recipes.sensitivity_frames import FLOAT, QUANTIZED, FrameOutcome


@dataclass(frozen=True)
class ProxyScore:
    """Change of the head against the float model's positives; see `detection.head_change`."""

    head_error: float  # mean over positives
    churn: float  # boxes lost and created, over positives
    positives: int

    @property
    def total(self) -> float:
        """The proxy itself."""
        return self.head_error + self.churn


@dataclass(frozen=True)
class MetricScore:
    """The official metric of one variant, and its difference to the network it deviates from."""

    mAP: float
    NDS: float
    difference: PairedDifference


@dataclass(frozen=True)
class VariantScore:
    """One variant; `metric` is None where only the proxy was asked for."""

    proxy: ProxyScore
    metric: MetricScore | None = None


@dataclass(frozen=True)
class LayerScore:
    """What quantizing one layer costs, all else being equal.

    Attributes:
        name: node name.
        kind: `conv` or `add`.
        score: of the variant in which this layer deviates.
        cost_mAP: mAP lost by quantizing the layer, with its interval; negative where it came out
            better.
        cost_NDS: likewise.
        cost_proxy: proxy gained by quantizing it.
    """

    name: str
    kind: str
    score: VariantScore
    cost_mAP: Interval | None
    cost_NDS: Interval | None
    cost_proxy: float

    @property
    def surely_costs(self) -> bool:
        """Whether 0 lies outside of the interval of the mAP, on the side of a loss."""
        return self.cost_mAP is not None and self.cost_mAP.low > 0


def score_proxies(outcomes: Mapping[int, FrameOutcome]) -> list[ProxyScore]:
    """Proxy of every variant, pooled over frames."""
    per_frame = [outcome.changes for outcome in outcomes.values()]
    return [_pool(changes) for changes in zip(*per_frame, strict=True)]


def _pool(changes: Sequence[HeadChange]) -> ProxyScore:
    positives = sum(change.positives for change in changes)
    share = 1 / max(1, positives)
    # fsum rounds once, whatever the order of the frames.
    error = math.fsum(change.head_error for change in changes)
    moved = sum(change.lost + change.created for change in changes)
    return ProxyScore(error * share, moved * share, positives)


def score_metrics(
    matcher: FrameMatcher,
    found: Sequence[Mapping[str, Detections]],
    mode: Mode,
    *,
    resamples: int,
    world: World,
    progress: Advance | None = None,
) -> list[MetricScore]:
    """The official metric of every variant; the processes of a run share the variants.

    Args:
        matcher: annotations of the frames.
        found: of every variant, detections by token.
        mode: decides which variant the others are compared with.
        resamples: of the bootstrap.
        world: the processes; each gets all results.
        progress: called with (variants done, variants) of this process.
    """
    shared = FLOAT if mode == "one" else QUANTIZED
    reference = PairedReference(matcher.match(found[shared]), resamples=resamples)
    own = range(world.shard.rank, len(found), world.shard.world_size)
    scores: dict[int, MetricScore] = {}
    for done, variant in enumerate(own, 1):
        matches = matcher.match(found[variant])
        difference = reference.difference_to(matches)
        scores[variant] = MetricScore(*whole_score(matches), difference)
        if progress is not None:
            progress(done, len(own))
    gathered = {k: v for part in world.gather(scores) for k, v in part.items()}
    return [gathered[variant] for variant in range(len(found))]


def cost_layers(
    layers: Mapping[str, str], scores: Sequence[VariantScore], shared: VariantScore, mode: Mode
) -> list[LayerScore]:
    """Layers with their costs, the most expensive first.

    Args:
        layers: kind by name, in execution order.
        scores: of their variants.
        shared: of the network that they deviate from.
        mode: `one`: quantizing the layer is the deviation; `all-but-one`: not quantizing it.
    """
    sign = 1.0 if mode == "one" else -1.0
    costs = []
    for (name, kind), score in zip(layers.items(), scores, strict=True):
        mean_ap, nds = (None, None) if score.metric is None else _lost(score.metric, mode)
        proxy = sign * (score.proxy.total - shared.proxy.total)
        costs.append(LayerScore(name, kind, score, mean_ap, nds, proxy))
    return sorted(costs, key=_worst_first)


def _lost(metric: MetricScore, mode: Mode) -> tuple[Interval, Interval]:
    """MAP and NDS that quantizing the layer loses, given what the deviation gains."""
    gained = (metric.difference.mAP, metric.difference.NDS)
    if mode == "all-but-one":
        return gained
    mean_ap, nds = (Interval(0.0 - i.value, 0.0 - i.high, 0.0 - i.low) for i in gained)
    return mean_ap, nds


def _worst_first(layer: LayerScore) -> tuple[float, float]:
    # The proxy decides between layers of equal mAP.
    return (0.0 if layer.cost_mAP is None else -layer.cost_mAP.value, -layer.cost_proxy)


def rank_correlation(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Spearman's rho: the correlation of ranks, equal values sharing their mean rank.

    Returns:
        None for fewer than three values, or where all values of one side are equal.

    >>> rank_correlation([1.0, 2.0, 3.0], [10.0, 30.0, 20.0])
    0.5
    """
    a, b = _ranks(first), _ranks(second)
    if len(a) < 3 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return None
    return round(float(np.corrcoef(a, b)[0, 1]), 12)


def _ranks(values: Sequence[float]) -> NDArray[np.float64]:
    """Ranks from 1, equal values sharing the mean of theirs."""
    _, place, counts = np.unique(np.asarray(values), return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    means: NDArray[np.float64] = (last - (counts - 1) / 2)[place]
    return means
