"""A sensitivity profile on a terminal."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.table import Table

from voxelquant.recipes.sensitivity_result import (
    CHART_FILE,
    RECIPE_FILE,
    RESULT_FILE,
    SensitivityResult,
)
from voxelquant.recipes.sensitivity_scores import LayerScore, VariantScore


def print_sensitivity(
    result: SensitivityResult, folder: Path, console: Console | None = None
) -> None:
    """The ranked table, how far metric and proxy agree, and what is suggested."""
    console = console or Console()
    console.print(sensitivity_table(result))
    networks = (("Float", result.float_score), ("All quantized", result.quantized_score))
    for name, score in networks:
        console.print(f"{name}: {_network_in_words(score)}.")
    if result.fp16_layers:
        console.print(f"In fp16 by the recipe, not profiled: {', '.join(result.fp16_layers)}.")
    if result.by_metric:
        rho = "undefined" if result.spearman is None else f"{result.spearman:.2f}"
        console.print(f"Rank correlation of proxy and mAP (Spearman): {rho}.")
    kept = ", ".join(result.suggestion.kept) or "none"
    console.print(f"Suggested to stay in fp16 ({result.rule}): {kept}.")
    if result.suggestion.dragged:
        console.print(f"Sums that go to fp16 with them: {', '.join(result.suggestion.dragged)}.")
    files = ", ".join(str(folder / name) for name in (RESULT_FILE, CHART_FILE, RECIPE_FILE))
    console.print(f"Written: {files}.", soft_wrap=True)


def sensitivity_table(result: SensitivityResult) -> Table:
    """One row a layer, the worst first."""
    what = "one layer" if result.mode == "one" else "all layers but one"
    table = Table(title=f"Sensitivity: {what} quantized (simulated), accuracies in %")
    table.add_column("", justify="right")
    table.add_column("layer", no_wrap=True)
    columns = ["mAP lost", "95 %", "NDS lost", "proxy"]
    if not result.by_metric:
        columns = ["proxy", "head error", "churn"]
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    for rank, layer in enumerate(result.layers, 1):
        table.add_row(str(rank), layer.name.removeprefix("backbone."), *_cells(layer))
    return table


def _cells(layer: LayerScore) -> list[str]:
    proxy = f"{layer.cost_proxy:+.4f}"
    if layer.cost_mAP is None or layer.cost_NDS is None:
        own = layer.score.proxy
        return [proxy, f"{own.head_error:.4f}", f"{own.churn:.4f}"]
    lost, nds = layer.cost_mAP, layer.cost_NDS
    interval = f"{100 * lost.low:+.2f} to {100 * lost.high:+.2f}"
    return [f"{100 * lost.value:+.2f}", interval, f"{100 * nds.value:+.2f}", proxy]


def _network_in_words(score: VariantScore) -> str:
    own = score.proxy
    words = f"head error {own.head_error:.4f}, churn {own.churn:.4f}"
    if score.metric is None:
        return words
    return f"mAP {100 * score.metric.mAP:.2f}, NDS {100 * score.metric.NDS:.2f}, {words}"
