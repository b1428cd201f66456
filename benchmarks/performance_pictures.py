"""The pictures of docs/performance.md."""

from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from performance_tables import KINDS, NAMES, Figures

from voxelquant.atomic_file import atomic_path

INK, FAINT, GROUND = "#1d2433", "#8a97b3", "#ffffff"
COLOURS = {
    "copy": "#9aa7bd",
    "maps": "#46b8ff",
    "conv": "#ffa01e",
    "pointwise": "#b07be0",
    "densify": "#35d07f",
    "gaps": "#c9d1de",
    "busy": "#ffa01e",
    "idle": "#c9d1de",
}
LINES = {"fp16": "#1f6fd6", "int8": "#e07b00", "fp8": "#1d9e5c", "spconv_fp16": "#8a8f99"}
DPI = 144
TIMES_MS = (0.1, 0.2, 0.3, 0.5, 1, 2, 5, 10, 20)  # marked on a logarithmic axis where data lie


def draw_pictures(result: dict[str, Any], folder: Path, digest: str) -> None:
    """Draw both pictures; each carries the digest of the result that it was drawn from.

    Raises:
        MissingFigureError: the result lacks a figure.
    """
    figures = Figures(result)
    drawn = {
        "performance_time.png": draw_time(figures),
        "performance_voxels.png": draw_growth(figures),
    }
    for name, figure in drawn.items():
        with atomic_path(folder / name) as temporary:
            FigureCanvasAgg(figure).print_png(
                temporary, metadata={"Software": None, "Source": digest}
            )


def draw_time(f: Figures) -> Figure:
    """Bars of one frame: spconv by busy and idle above, our own by stages below, magnified."""
    figure = Figure(figsize=(8.4, 4.4), dpi=DPI, facecolor=GROUND, layout="constrained")
    above, below = figure.subplots(2, 1, height_ratios=(1.3, 2))
    peer_ms, peer_busy = f.backbone_ms.spconv_fp16, f.busy_ms.spconv_fp16
    parts = {"busy": peer_busy, "idle": peer_ms - peer_busy}
    draw_bar(above, "spconv fp16", parts, {"busy": "GPU busy", "idle": "GPU waits for the host"})
    draw_bar(above, "fp16", {"busy": f.backbone_ms.fp16}, {})
    above.set_xlim(0, 1.18 * peer_ms)
    labelled: set[str] = set()
    measured = [n for n in ("fp16", "int8", "fp8") if f.stages.optional(n)]
    for name in measured:
        stages = f.stages[name]
        parts = {kind: stages.by_kind_ms[kind] for kind in stages.by_kind_ms}
        parts["gaps"] = max(0.0, stages.gap_ms)
        # Once for each kind: fp16 has no conversions, int8 does.
        labels = {kind: {**KINDS, "gaps": "gaps"}[kind] for kind in parts.keys() - labelled}
        apart = f"{sum(parts.values()):.2f} ms"
        said = f"{apart} apart, {stages.replay_ms:.2f} ms in the graph"
        draw_bar(below, NAMES[name], parts, labels, said)
        labelled |= parts.keys()
    below.set_xlim(0, 1.9 * max(f.stages[name].replay_ms for name in measured))
    below.set_xlabel(
        "ms for one frame; below, stages one by one, which overlap in the graph", color=INK
    )
    for axes in (above, below):
        finish(axes)
        axes.invert_yaxis()
        axes.legend(frameon=False, fontsize=8, ncols=6, loc="upper center",
                    bbox_to_anchor=(0.5, 1.28), labelcolor=INK)  # fmt: skip
    return figure


def draw_bar(
    axes: Any, name: str, parts: dict[str, float], labels: dict[str, str], said: str | None = None
) -> None:
    """Stacked parts of one engine; beside them what is said, by default their sum."""
    left = 0.0
    for kind, value in parts.items():
        label = labels.get(kind)
        axes.barh(name, value, left=left, color=COLOURS[kind], height=0.62, label=label)
        left += value
    said = said or f"{left:.2f} ms"
    axes.text(left, name, f"  {said}", va="center", ha="left", color=INK, fontsize=9)


def draw_growth(f: Figures) -> Figure:
    """Time over the number of voxels, both axes logarithmic."""
    figure = Figure(figsize=(8.4, 4.2), dpi=DPI, facecolor=GROUND, layout="constrained")
    axes = figure.subplots()
    for name in [n for n in NAMES if f.scaling.optional(n)]:
        points = sorted(f.scaling[name], key=lambda point: point["voxels"])
        voxels = [point["voxels"] / 1e3 for point in points]
        wall_ms = [point["timing"]["wall"]["median_ms"] for point in points]
        axes.plot(voxels, wall_ms, marker="o", ms=4, lw=1.8, color=LINES[name], label=NAMES[name])
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xticks([10, 20, 40, 80, 135], labels=["10", "20", "40", "80", "135"])
    low, high = axes.get_ylim()
    marked = [ms for ms in TIMES_MS if low <= ms <= high]
    axes.set_yticks(marked, labels=[f"{ms:g}" for ms in marked])
    axes.minorticks_off()
    axes.set_xlabel("thousand voxels", color=INK)
    axes.set_ylabel("ms a frame (wall)", color=INK)
    finish(axes)
    axes.legend(frameon=False, fontsize=9, labelcolor=INK)
    return figure


def finish(axes: Any) -> None:
    """Quiet axes."""
    axes.grid(visible=True, color="#e6eaf1", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=INK, labelsize=9, length=0)
    for side in axes.spines.values():
        side.set_color(FAINT)
        side.set_linewidth(0.6)
