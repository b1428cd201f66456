import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from voxelquant.detection.head_change import HeadChange
from voxelquant.evaluation.bootstrap import Interval, PairedDifference
from voxelquant.recipes.sensitivity_frames import FrameOutcome
from voxelquant.recipes.sensitivity_result import SuggestionRule
from voxelquant.recipes.sensitivity_scores import (
    LayerScore,
    MetricScore,
    ProxyScore,
    VariantScore,
    cost_layers,
    rank_correlation,
    score_proxies,
)


def naive_ranks(values: list[float]) -> list[float]:
    return [
        sum(other < value for other in values) + (sum(other == value for other in values) + 1) / 2
        for value in values
    ]


def naive_rho(first: list[float], second: list[float]) -> float:
    a, b = naive_ranks(first), naive_ranks(second)
    mean = (len(a) + 1) / 2
    product = sum((x - mean) * (y - mean) for x, y in zip(a, b, strict=True))
    norms = [math.sqrt(sum((x - mean) ** 2 for x in side)) for side in (a, b)]
    return product / (norms[0] * norms[1])


@given(st.lists(st.tuples(st.integers(-3, 3), st.integers(-3, 3)), min_size=3, max_size=20))
def test_rho_is_the_correlation_of_ranks_with_ties(pairs: list[tuple[int, int]]) -> None:
    first, second = (list(map(float, side)) for side in zip(*pairs, strict=True))
    rho = rank_correlation(first, second)
    if len(set(first)) == 1 or len(set(second)) == 1:
        assert rho is None
    else:
        assert rho == pytest.approx(naive_rho(first, second), abs=1e-9)


def test_rho_of_published_example() -> None:
    # Spearman's rho of the classic table of IQ and hours of television: -29/165.
    iq = [106, 86, 100, 101, 99, 103, 97, 113, 112, 110]
    hours = [7, 0, 27, 50, 28, 29, 20, 12, 6, 17]
    assert rank_correlation(iq, hours) == pytest.approx(-29 / 165)
    assert rank_correlation([1.0, 2.0], [2.0, 1.0]) is None


def test_the_proxy_is_pooled_over_frames() -> None:
    def frame(*changes: HeadChange) -> FrameOutcome:
        return FrameOutcome((), changes)

    outcomes = {
        0: frame(HeadChange(0.0, 1, 0, 0), HeadChange(3.0, 1, 1, 0)),
        1: frame(HeadChange(0.0, 9, 0, 0), HeadChange(2.0, 9, 0, 2)),
        2: frame(HeadChange(0.0, 0, 0, 0), HeadChange(0.0, 0, 0, 1)),
    }
    still, moved = score_proxies(outcomes)
    assert still == ProxyScore(0.0, 0.0, 10)
    assert moved == ProxyScore(pytest.approx(0.5), pytest.approx(0.4), 10)
    assert moved.total == pytest.approx(0.9)


def variant(gain: float, width: float, proxy: float) -> VariantScore:
    gained = Interval(gain, gain - width, gain + width)
    metric = MetricScore(0.5 + gain, 0.5, PairedDifference(gained, gained, 10, 5, 0))
    return VariantScore(ProxyScore(proxy, 0.0, 10), metric)


KINDS = {"a": "conv", "b": "add", "c": "conv"}


def test_a_layer_costs_what_quantizing_it_alone_loses() -> None:
    scores = [variant(-0.01, 0.002, 0.3), variant(0.005, 0.01, 0.1), variant(-0.03, 0.04, 0.2)]
    layers = cost_layers(KINDS, scores, variant(0.0, 0.0, 0.0), "one")
    assert [layer.name for layer in layers] == ["c", "a", "b"]
    assert layers[1].cost_mAP == Interval(0.01, pytest.approx(0.008), pytest.approx(0.012))
    assert layers[1].cost_proxy == pytest.approx(0.3)
    assert [layer.surely_costs for layer in layers] == [False, True, False]


def test_a_layer_costs_what_leaving_it_out_wins_back() -> None:
    shared = variant(0.0, 0.0, 0.9)
    scores = [variant(0.01, 0.002, 0.6), variant(-0.005, 0.01, 0.95), variant(0.03, 0.01, 0.7)]
    layers = cost_layers(KINDS, scores, shared, "all-but-one")
    assert [layer.name for layer in layers] == ["c", "a", "b"]
    assert layers[0].cost_mAP == Interval(0.03, pytest.approx(0.02), pytest.approx(0.04))
    assert [round(layer.cost_proxy, 9) for layer in layers] == [0.2, 0.3, -0.05]


def test_without_the_metric_the_proxy_ranks() -> None:
    scores = [VariantScore(ProxyScore(value, 0.0, 10)) for value in (0.2, 0.5, 0.1)]
    layers = cost_layers(KINDS, scores, VariantScore(ProxyScore(0.0, 0.0, 10)), "one")
    assert [layer.name for layer in layers] == ["b", "a", "c"]
    assert SuggestionRule().choose(layers) == ["b", "a", "c"]
    assert SuggestionRule(keep_worst=1).choose(layers) == ["b"]
    assert SuggestionRule(keep_worst=0).choose(layers) == []


def costing(name: str, points: float, width: float) -> LayerScore:
    cost = Interval(points / 100, (points - width) / 100, (points + width) / 100)
    return LayerScore(name, "conv", variant(0.0, 0.0, 0.0), cost, cost, 0.0)


def test_layers_are_kept_that_surely_cost_more_than_the_tolerance() -> None:
    layers = [
        costing("unsure", 0.5, 0.6),
        costing("sure", 0.3, 0.1),
        costing("small", 0.05, 0.01),
        costing("better", -0.4, 0.1),
    ]
    assert SuggestionRule().choose(layers) == ["sure"]
    assert SuggestionRule(tolerance=0.01).choose(layers) == ["sure", "small"]
    assert SuggestionRule(tolerance=0.3 + 1e-9).choose(layers) == []
    assert SuggestionRule(keep_worst=9).choose(layers) == ["unsure", "sure", "small"]
    assert "0.1 points" in SuggestionRule().in_words(by_metric=True)
    assert "3 worst layers by proxy" in SuggestionRule().in_words(by_metric=False)
    assert "2 worst layers by mAP" in SuggestionRule(keep_worst=2).in_words(by_metric=True)
