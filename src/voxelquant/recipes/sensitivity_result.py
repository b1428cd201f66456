"""What a profile comes to: ranked layers, how far the proxy agrees, and a suggested recipe."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from voxelquant.atomic_file import atomic_path
from voxelquant.plural import counted
from voxelquant.quant.layer_forms import Mode
from voxelquant.quant.plan import PrecisionPlan
from voxelquant.quant.recipe import Recipe
from voxelquant.quant.suggest import SuggestedRecipe, keep_in_fp16
from voxelquant.recipes.artifacts import provenance, write_json_atomic, write_text_atomic
from voxelquant.recipes.sensitivity_frames import FIRST_LAYER, FLOAT, QUANTIZED, VariantRunner
from voxelquant.recipes.sensitivity_scores import (
    LayerScore,
    VariantScore,
    cost_layers,
    rank_correlation,
)
from voxelquant.report.sensitivity import LayerBar, draw_sensitivity

RESULT_FILE = "sensitivity.json"
CHART_FILE = "sensitivity.png"
RECIPE_FILE = "suggested.yaml"
_KEPT_BY_PROXY = 3


@dataclass(frozen=True)
class SuggestionRule:
    """Which layers the suggested recipe keeps in fp16.

    Attributes:
        keep_worst: so many of the worst that cost anything; None: by tolerance. The proxy has no
            unit of accuracy, so without the metric it is three where nothing is said.
        tolerance: mAP in points. A layer is kept that costs more, if its interval excludes 0.
    """

    keep_worst: int | None = None
    tolerance: float = 0.1

    def choose(self, layers: Sequence[LayerScore]) -> list[str]:
        """Names of the layers to keep, of layers with the worst first."""
        by_metric = any(layer.cost_mAP is not None for layer in layers)
        if by_metric and self.keep_worst is None:
            return [
                layer.name
                for layer in layers
                if layer.cost_mAP is not None
                and 100 * layer.cost_mAP.value > self.tolerance
                and layer.surely_costs
            ]
        count = _KEPT_BY_PROXY if self.keep_worst is None else self.keep_worst
        costly = [
            layer.name
            for layer in layers
            if (layer.cost_proxy if layer.cost_mAP is None else layer.cost_mAP.value) > 0
        ]
        return costly[:count]

    def in_words(self, by_metric: bool) -> str:
        """The rule as a sentence's end: "kept in fp16: ..."."""
        if by_metric and self.keep_worst is None:
            return (
                f"layers that cost more than {self.tolerance:g} points of mAP with an interval "
                "above 0"
            )
        count = _KEPT_BY_PROXY if self.keep_worst is None else self.keep_worst
        return f"the {counted(count, 'worst layer')} by {'mAP' if by_metric else 'proxy'}"


@dataclass(frozen=True)
class SensitivityResult:
    """A finished profile.

    Attributes:
        mode: which network the layers deviate from.
        float_score: of the float network, weights folded and tensors in fp16.
        quantized_score: of the network with every layer quantized.
        layers: the worst first.
        fp16_layers: convolutions and sums that the recipe leaves in fp16, hence not profiled.
        spearman: rank correlation of proxy and mAP over the layers, if both are known.
        suggestion: recipe that keeps the worst in fp16.
        rule: by which they were chosen, in words.
    """

    mode: Mode
    float_score: VariantScore
    quantized_score: VariantScore
    layers: tuple[LayerScore, ...]
    fp16_layers: tuple[str, ...]
    spearman: float | None
    suggestion: SuggestedRecipe
    rule: str

    @property
    def by_metric(self) -> bool:
        """Whether the official metric was asked for."""
        return self.float_score.metric is not None


def conclude(
    runner: VariantRunner,
    scores: Sequence[VariantScore],
    mode: Mode,
    recipe: Recipe,
    rule: SuggestionRule,
) -> SensitivityResult:
    """Rank the layers and suggest a recipe."""
    plan = runner.plan
    kinds = {name: plan.graph.node(name).kind for name in runner.layers}
    shared = scores[FLOAT if mode == "one" else QUANTIZED]
    layers = cost_layers(kinds, scores[FIRST_LAYER:], shared, mode)
    by_metric = scores[FLOAT].metric is not None
    in_words = rule.in_words(by_metric)
    suggestion = keep_in_fp16(
        plan,
        recipe,
        rule.choose(layers),
        name=f"{recipe.name}_suggested",
        description=f"{recipe.name} with the most sensitive layers in fp16: {in_words}.",
    )
    return SensitivityResult(
        mode=mode,
        float_score=scores[FLOAT],
        quantized_score=scores[QUANTIZED],
        layers=tuple(layers),
        fp16_layers=_fp16_layers(plan),
        spearman=_agreement(layers) if by_metric else None,
        suggestion=suggestion,
        rule=in_words,
    )


def write_result(
    result: SensitivityResult, folder: Path, origin: Mapping[str, Any], config: Any
) -> None:
    """Write `sensitivity.png`, `suggested.yaml` and, last, `sensitivity.json`."""
    with atomic_path(folder / CHART_FILE) as unfinished:
        unfinished.write_bytes(draw_sensitivity(chart_bars(result), title=_title(result, origin)))
    write_text_atomic(folder / RECIPE_FILE, recipe_text(result))
    payload = {
        "mode": result.mode,
        "frames": origin["frames"],
        "split": origin["split"],
        "data": origin["data"],
        "float": result.float_score,
        "quantized": result.quantized_score,
        "layers": [{"rank": rank, **asdict(s)} for rank, s in enumerate(result.layers, 1)],
        "fp16_layers": result.fp16_layers,
        "spearman_proxy_mAP": result.spearman,
        "suggestion": {
            "rule": result.rule,
            "kept": result.suggestion.kept,
            "dragged": result.suggestion.dragged,
        },
        "request": origin["request"],
        "provenance": provenance(config=config, seed=0),  # of the resamples
    }
    write_json_atomic(folder / RESULT_FILE, payload)


def chart_bars(result: SensitivityResult) -> list[LayerBar]:
    """Bars of the chart, the worst first."""
    return [_bar(layer, layer.name in result.suggestion.kept) for layer in result.layers]


def recipe_text(result: SensitivityResult) -> str:
    """The suggested recipe as YAML that `ptq --recipe` reads."""
    kept = ", ".join(result.suggestion.kept) or "none"
    lines = [f"# Kept in fp16 by the profile: {kept}."]
    if result.suggestion.dragged:
        dragged = ", ".join(result.suggestion.dragged)
        lines.append(f"# In fp16 with them, since a sum reads and makes 8-bit tensors: {dragged}.")
    recipe = result.suggestion.recipe
    content = {"name": "", "description": "", "precision": recipe.precision}
    content |= recipe.model_dump(mode="json", exclude_defaults=True)
    return "\n".join([*lines, yaml.safe_dump(content, sort_keys=False, width=100)])


def _agreement(layers: Sequence[LayerScore]) -> float | None:
    costs = [layer.cost_mAP.value for layer in layers if layer.cost_mAP is not None]
    return rank_correlation(costs, [layer.cost_proxy for layer in layers])


def _fp16_layers(plan: PrecisionPlan) -> tuple[str, ...]:
    return tuple(
        node.name
        for node in plan.graph.nodes
        if node.kind in ("conv", "add") and plan.precision[node.name] == "fp16"
    )


def _bar(layer: LayerScore, kept: bool) -> LayerBar:
    cost = layer.cost_mAP
    if cost is None:
        return LayerBar(layer.name, layer.cost_proxy, kept=kept)
    points, low, high = (100 * value for value in (cost.value, cost.low, cost.high))
    return LayerBar(layer.name, layer.cost_proxy, points, low, high, kept)


def _title(result: SensitivityResult, origin: Mapping[str, Any]) -> str:
    what = "one layer quantized" if result.mode == "one" else "all layers quantized but one"
    return f"{what}, {counted(origin['frames'], 'frame')} of {origin['split']}"
