"""The demo's result on a terminal: headline, classes, parity, where the files are."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

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
    console.print(_layers(result["parity"]))
    parity = result["parity"]
    console.print(
        f"Given equal inputs, {parity['flip_rate']:.2e} of the fake-quant codes differ from the "
        f"engine's by one; beyond what rounding explains: {parity['unexplained']}."
    )
    same = "equal" if parity["engine_equals_file"] else "[red]NOT equal[/]"
    console.print(f"scn.onnx, executed from its bytes, and the integer engine: {same} bit for bit.")
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


def _layers(parity: Mapping[str, Any]) -> Table:
    table = Table(title="Layer by layer, one frame")
    columns = ("layer", "precision", "SQNR dB", "rel. L2", "codes off by one", "file = engine")
    for column in columns:
        table.add_column(column, justify="left" if column == "layer" else "right")
    for layer in parity["layers"]:
        codes = f"{layer['differing_codes']} of {layer['codes']}" if layer["codes"] else "fp16"
        table.add_row(
            layer["path"],
            layer["precision"],
            f"{layer['sqnr_db']:.1f}",
            f"{layer['relative_l2']:.4f}",
            codes,
            {True: "yes", False: "NO", None: ""}[layer["file_equals_engine"]],
        )
    return table
