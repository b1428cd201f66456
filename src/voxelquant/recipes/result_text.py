"""Results of single verbs on a terminal."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from voxelquant.evaluation.bootstrap import PairedDifference
from voxelquant.plural import counted
from voxelquant.recipes.evaluate import Evaluation
from voxelquant.recipes.parity import ParityResult
from voxelquant.recipes.synth import WrittenWorld

_ABSENT = "–"
_ENGINES = {
    "float": "float",
    "fake": "fake (simulated)",
    "int8": "int8 (executed)",
    "fp8": "fp8 (executed)",
}


def print_evaluation(evaluation: Evaluation, engine: str, console: Console | None = None) -> None:
    """mAP, NDS and the AP of every class."""
    metrics = evaluation.metrics
    table = Table(title=f"nuScenes metric, {counted(metrics.samples, 'key frame')}")
    table.add_column("")
    table.add_column("AP", justify="right")
    for name, ap in metrics.per_class_ap.items():
        table.add_row(name, f"{ap:.4f}")
    table.add_section()
    table.add_row("mAP", f"{metrics.mAP:.4f}")
    table.add_row("NDS", f"{metrics.NDS:.4f}")
    console = console or Console()
    console.print(table)
    for note in metrics.notes:
        console.print(note)
    console.print(
        f"Engine {_ENGINES[engine]}, {evaluation.seconds_per_frame:.2f} s a frame from "
        "voxelization to boxes."
    )
    if evaluation.difference is not None:
        console.print(_difference_line(evaluation.difference))


def print_parity(parity: ParityResult, console: Console | None = None) -> None:
    """The layers, where file and engine part, and whether the law holds."""
    console = console or Console()
    console.print(layer_table([asdict(layer) for layer in parity.layers]))
    console.print(
        f"Fake-quant against the engine, given equal inputs: {parity.flip_rate:.1e} of the codes "
        f"differ; beyond what rounding explains: {parity.unexplained}."
    )
    if parity.output_equal is not None:
        console.print(_file_line(parity))
    console.print("The law holds." if parity.holds else "[red]The law is broken.[/]")


def print_world(world: WrittenWorld, console: Console | None = None) -> None:
    """Key frames and visible instances of every split."""
    table = Table(title=f"{world.root}, version {world.version}")
    table.add_column("instances in the metric's range")
    for name in world.instances:
        table.add_column(name, justify="right")
    for class_name in next(iter(world.instances.values())):
        table.add_row(class_name, *(str(count[class_name]) for count in world.instances.values()))
    table.add_section()
    table.add_row("key frames", *(str(count) for count in world.key_frames.values()))
    (console or Console()).print(table)


def layer_table(layers: Iterable[Mapping[str, Any]]) -> Table:
    """One row a layer; what was not measured is a dash."""
    table = Table(title="Sparse backbone layer by layer, one frame")
    table.add_column("layer", no_wrap=True)
    for column in ("precision", "SQNR dB", "rel. L2", "flipped codes", "file"):
        table.add_column(column, justify="right")
    for layer in layers:
        sqnr_db, relative_l2 = layer["sqnr_db"], layer["relative_l2"]
        table.add_row(
            layer["path"].removeprefix("backbone."),
            layer["precision"],
            _ABSENT if sqnr_db is None else f"{sqnr_db:.1f}",
            _ABSENT if relative_l2 is None else f"{relative_l2:.4f}",
            f"{layer['differing_codes']} / {layer['codes']}" if layer["codes"] else _ABSENT,
            {True: "=", False: "≠", None: ""}[layer["file_equals_engine"]],
        )
    return table


def _difference_line(difference: PairedDifference) -> str:
    """Both differences with their intervals, as fractions like the table."""
    parts = [
        f"{name} {interval.value:+.4f} [{interval.low:+.4f}, {interval.high:+.4f}]"
        for name, interval in (("mAP", difference.mAP), ("NDS", difference.NDS))
    ]
    # rich would take the brackets for markup.
    return escape(
        f"Against the earlier run: {', '.join(parts)} (95 %, paired bootstrap over "
        f"{counted(difference.frames, 'frame')}, {difference.resamples} resamples)."
    )


def _file_line(parity: ParityResult) -> str:
    if parity.first_difference is not None:
        return f"The file parts from the engine first at [red]{parity.first_difference}[/]."
    if not parity.output_equal:
        return "The file's dense output and the engine's are [red]NOT equal[/], every layer is."
    return "The file, executed from its bytes, equals the engine bit for bit."
