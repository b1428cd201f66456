"""A benchmark on a terminal."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import Path

from rich.console import Console
from rich.table import Table

from voxelquant.recipes.bench_measure import StageBreakdown
from voxelquant.recipes.bench_result import PEER, RESULT_FILE, BenchResult, EngineResult, gpu_facts

_ABSENT = "–"
_MIB = 2**20


def print_bench(result: BenchResult, folder: Path, console: Console | None = None) -> None:
    """Tables of times, stages and growth, what was checked, and what is missing."""
    console = console or Console()
    console.print(times_table(result))
    engines = result.engines.items()
    for what, stages in (
        ("one frame", {name: e.stages for name, e in engines if e.stages}),
        ("a batch", {name: e.batch_stages for name, e in engines if e.batch_stages}),
    ):
        if stages:
            console.print(stage_table(what, stages))
    if any(engine.growth for engine in result.engines.values()):
        console.print(growth_table(result))
    for line in _remarks(result):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    console.print(f"Written: {folder / RESULT_FILE}.", soft_wrap=True)


def times_table(result: BenchResult) -> Table:
    """One row an engine: one frame, a batch, memory; what was measured of none is left out."""
    name, voxels = result.frame
    table = Table(title=f"{name}, {voxels:,} voxels, ms (executed)")
    rows = {label: _times(engine) for label, engine in result.engines.items()}
    columns = [
        c for c in next(iter(rows.values())) if any(row[c] != _ABSENT for row in rows.values())
    ]
    table.add_column("", no_wrap=True)
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    for label, row in rows.items():
        table.add_row(_label(label), *(row[column] for column in columns))
    for label in result.unavailable:
        table.add_row(label, *(_ABSENT for _ in columns))
    return table


def stage_table(what: str, stages: Mapping[str, StageBreakdown]) -> Table:
    """One row a kind of stage: where the time goes, by engine."""
    table = Table(title=f"Where the time of {what} goes, in ms")
    table.add_column("")
    for label in stages:
        table.add_column(label, justify="right")
    for kind in dict.fromkeys(kind for one in stages.values() for kind in one.by_kind):
        table.add_row(kind, *(_ms(one.by_kind.get(kind)) for one in stages.values()))
    table.add_row("gaps", *(_ms(one.gap_ms) for one in stages.values()))
    table.add_section()
    table.add_row("replay", *(_ms(one.replay_ms) for one in stages.values()))
    return table


def growth_table(result: BenchResult) -> Table:
    """One row a number of voxels."""
    engines = {name: engine for name, engine in result.engines.items() if engine.growth}
    table = Table(title="Over the number of voxels, ms (wall)")
    for column in ("", "voxels", *map(_label, engines)):
        table.add_column(column, justify="right")
    for points in zip(*(engine.growth for engine in engines.values()), strict=True):
        times = (_ms(point.timing.wall.median_ms) for point in points)
        table.add_row(points[0].what, f"{points[0].voxels:,}", *times)
    clouds = [engine.cloud for engine in engines.values() if engine.cloud is not None]
    if clouds:
        table.add_section()
        times = (_ms(point.timing.wall.median_ms) for point in clouds)
        table.add_row(clouds[0].what, f"{clouds[0].voxels:,}", *times)
    return table


def _times(engine: EngineResult) -> dict[str, str]:
    timing, batch = engine.latency.timing, engine.throughput
    peak = engine.memory.peak if engine.memory else None
    return {
        "one frame": _ms(timing.wall.median_ms),
        "p20..p80": f"{_ms(timing.wall.p20_ms)}..{_ms(timing.wall.p80_ms)}",
        "cold cache": _ms(timing.wall_cold.median_ms if timing.wall_cold else None),
        "GPU busy": _ms(timing.busy.busy_ms if timing.busy else None),
        "launches": f"{timing.busy.launches:.0f}" if timing.busy else _ABSENT,
        "of a batch": _ms(batch.wall_ms_per_frame if batch else None),
        "peak MiB": _ABSENT if peak is None else f"{peak / _MIB:.0f}",
    }


def _remarks(result: BenchResult) -> Iterable[str]:
    equal = sum(math.isinf(check.sqnr_db) for check in result.gate)
    yield (
        f"Checked before timing: {len(result.gate)} dense maps against the reference backend, "
        f"{equal} of them equal bit for bit."
    )
    if PEER in result.engines:
        tried = ", ".join(
            f"{name} {_ms(ms) if isinstance(ms, float) else 'did not run'}"
            for name, ms in result.tried.items()
        )
        yield f"spconv: {result.engines[PEER].how}, the fastest of {tried}."
    for name, reason in result.unavailable.items():
        yield f"{name}: not measured, {reason}."
    facts = gpu_facts(result.device)
    where = "the reference backend on a CPU" if facts is None else facts["name"]
    yield f"On {where}; fresh weights, which do not change the time."


def _label(name: str) -> str:
    return "spconv fp16" if name == PEER else name


def _ms(value: float | None) -> str:
    if value is None:
        return _ABSENT
    return f"{value:.3f}" if abs(value) < 10 else f"{value:.1f}"
