"""The figures of docs/performance.md, and its tables."""

from collections.abc import Iterator
from typing import Any

MIB = 2**20
KINDS = {
    "copy": "inputs",
    "maps": "kernel maps",
    "conv": "convolutions",
    "pointwise": "sums, conversions",
    "densify": "dense map",
}
NAMES = {"fp16": "fp16", "int8": "int8", "fp8": "fp8", "spconv_fp16": "spconv fp16"}


class MissingFigureError(Exception):
    """A figure of the text that the result does not hold."""


class Figures:
    """Figures by dotted path, for `str.format`; a missing one or null is an error.

    >>> "{f.backbone_ms.fp16:.2f} ms".format(f=Figures({"backbone_ms": {"fp16": 0.414}}))
    '0.41 ms'
    """

    def __init__(self, values: dict[str, Any], path: str = "") -> None:
        self._values, self._path = values, path

    def __getattr__(self, name: str) -> Any:
        path = f"{self._path}.{name}".lstrip(".")
        value = self._values.get(name)
        if value is None:
            raise MissingFigureError(
                f"got no figure {path} in the result, need it for the page; run `voxelquant bench "
                "--against spconv` with all parts on a GPU"
            )
        return Figures(value, path) if isinstance(value, dict) else value

    def __getitem__(self, name: str) -> Any:
        return getattr(self, name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def items(self) -> Iterator[tuple[str, Any]]:
        """Names and figures."""
        return ((name, self[name]) for name in self._values)

    def optional(self, name: str) -> Any:
        """A figure that may be missing, as it is stored; then None."""
        return self._values.get(name)


def bars_table(f: Figures, derived: dict[str, Any]) -> str:
    """The bars that were set before the work began, and where each was ended."""
    wall = f.backbone_ms
    rows = [
        ("fp16, one frame", "≤ 0.45 ms", f"{wall.fp16:.3f} ms", wall.fp16 <= 0.45),
        ("int8, one frame", "≤ 0.40 ms", f"{wall.int8:.3f} ms", wall.int8 <= 0.40),
        ratio_row("int8 against fp16, batch of 8", 1.3, derived["int8_over_fp16"]),
        ratio_row("fp16 against spconv, batch of 8", 4.0, derived["spconv_over_fp16_b8"]),
        ratio_row("int8 against spconv, batch of 8", 4.0, derived["spconv_over_int8_b8"]),
        (
            "peak memory, one frame",
            "≤ 426 MB",
            f"{derived['peak_mb']:.0f} MB",
            derived["peak_mb"] <= 426,
        ),
    ]
    cells = [
        (what, bar, found, "passed" if met else "**missed**") for what, bar, found, met in rows
    ]
    return markdown_table(("", "bar", "measured", ""), cells) + "\n"


def ratio_row(what: str, bar: float, found: float) -> tuple[str, str, str, bool]:
    return what, f"≥ {bar:.1f}×", f"{found:.2f}×", found >= bar


def stage_table(f: Figures, stages: Figures) -> str:
    """Where the time goes, by precision; `stages` are those of one frame or of a batch."""
    engines = [name for name in ours(f) if stages.optional(name)]
    kinds = dict.fromkeys(kind for name in engines for kind in stages[name].by_kind_ms)
    rows = [
        (KINDS.get(kind, kind), *(figure(stages[n].by_kind_ms.optional(kind)) for n in engines))
        for kind in kinds
    ]
    rows.append(("gaps", *(figure(stages[name].gap_ms) for name in engines)))
    rows.append(("**replay**", *(figure(stages[name].replay_ms) for name in engines)))
    return markdown_table(("ms", *(NAMES[name] for name in engines)), rows) + "\n"


def slowest_table(f: Figures) -> str:
    stages = sorted(f.stages.fp16.each, key=lambda stage: -stage["median_ms"])[:6]
    rows = [(f"`{s['name']}`", KINDS[s["kind"]], figure(s["median_ms"])) for s in stages]
    return markdown_table(("stage", "", "ms"), rows)


def growth_table(f: Figures) -> str:
    engines = [name for name in f.scaling if f.scaling.optional(name)]
    points = zip(*(f.scaling[name] for name in engines), strict=True)
    rows = [(row[0]["what"], f"{row[0]['voxels']:,}", *map(wall_of, row)) for row in points]
    clouds = [f.cloud[name] for name in engines]
    cloud = clouds[0]
    times = (figure(c.timing.wall.median_ms) for c in clouds)
    rows.append((f"{cloud.what}, voxelized", f"{cloud.voxels:,}", *times))
    return markdown_table(("", "voxels", *(NAMES[name] for name in engines)), rows)


def times_table(f: Figures) -> str:
    """Wall and busy time of every engine, one frame and a batch."""
    rows = []
    for name in NAMES:
        if f.backbone_ms.optional(name) is None:
            reason = f.unavailable.optional(name) or "not asked for"
            rows.append((f"{NAMES[name]} (not measured: {reason})", "", "", "", "", ""))
            continue
        latency, batch = f.latency[name].timing, f.throughput[name].timing
        spread = f"{latency.wall.p20_ms:.3f}..{latency.wall.p80_ms:.3f}"
        per_frame = f.throughput_b8_ms_per_frame[name]
        busy = batch.busy.busy_ms / f.throughput[name].batch_size
        rows.append(
            (
                NAMES[name],
                figure(latency.wall.median_ms),
                spread,
                figure(latency.busy.busy_ms),
                figure(per_frame),
                figure(busy),
            )
        )
    head = ("ms", "one frame", "p20..p80", "GPU busy", "a frame of eight", "GPU busy")
    return markdown_table(head, rows)


def memory_table(f: Figures) -> str:
    rows = []
    for name in ours(f):
        memory = f.memory[name]
        purposes = ", ".join(f"{what} {size / MIB:.0f}" for what, size in memory.by_purpose.items())
        values = (memory.held, memory.peak, memory.peak_planning)
        rows.append((NAMES[name], *(f"{value / MIB:.0f}" for value in values), purposes))
    head = ("", "held", "peak of a call", "peak of planning", "by purpose")
    return markdown_table(head, rows)


def ours(f: Figures) -> list[str]:
    """Precisions of our own engine that were measured."""
    return [n for n in ("fp16", "int8", "fp8") if f.backbone_ms.optional(n) is not None]


def wall_of(point: dict[str, Any]) -> str:
    return figure(point["timing"]["wall"]["median_ms"])


def figure(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:.3f}" if abs(value) < 10 else f"{value:.1f}"


def markdown_table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])
