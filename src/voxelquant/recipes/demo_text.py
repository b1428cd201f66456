"""The demo's result on a terminal: headline, classes, parity, where the files are."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from voxelquant.plural import counted
from voxelquant.recipes.result_text import layer_table

_ENGINES = {
    "float": "float",
    "fake": "fake-quant (simulated)",
    "int8": "int8 engine (executed)",
}


def print_demo(result: Mapping[str, Any], folder: Path, console: Console | None = None) -> None:
    """Print the tables of a `result.json`."""
    console = console or Console()
    metrics = result["metrics"]
    console.print(_headline(metrics))
    console.print(_classes(metrics))
    parity = result["parity"]
    console.print(layer_table(parity["layers"]))
    console.print(
        "SQNR and L2: int8 engine against float, both from the points. Flipped: fake-quant codes "
        f"that differ from the engine's, given equal inputs: {parity['flip_rate']:.1e} of all, by "
        f"one code; beyond what rounding explains: {parity['unexplained']}. File: scn.onnx, "
        "executed from its bytes, against the engine, bit for bit."
    )
    same = "equal" if parity["engine_equals_file"] else "[red]NOT equal[/]"
    console.print(f"The file's dense output and the engine's are {same}.")
    warnings = result["export"]["warnings"]
    for warning in warnings:
        console.print(escape(warning))
    warned = counted(len(warnings), "warning") if warnings else "no warnings"
    console.print(f"scn.onnx, checked: {warned}, no errors.")
    if not parity["holds"]:
        console.print("[red]The law of parity is broken.[/]")
    console.print(f"{result['seconds']['total']:.0f} s in all; open {folder / 'report.html'}")


def _headline(metrics: Mapping[str, Any]) -> Table:
    samples = metrics["float"]["samples"]
    table = Table(title=f"nuScenes metric, {samples} synthetic key frames")
    for column in ("engine", "mAP", "NDS", "Δ mAP", "s / frame"):
        table.add_column(column, justify="left" if column == "engine" else "right")
    for key, name in _ENGINES.items():
        row = metrics[key]
        delta = row["mAP"] - metrics["float"]["mAP"]
        table.add_row(
            name,
            f"{row['mAP']:.4f}",
            f"{row['NDS']:.4f}",
            "" if key == "float" else f"{delta:+.4f}",
            f"{row['seconds_per_frame']:.2f}",
        )
    return table


def _classes(metrics: Mapping[str, Any]) -> Table:
    table = Table(title="AP by class")
    table.add_column("class")
    for key in _ENGINES:
        table.add_column(key, justify="right")
    for name in metrics["float"]["per_class_ap"]:
        table.add_row(name, *(f"{metrics[key]['per_class_ap'][name]:.3f}" for key in _ENGINES))
    return table
