"""What each layer costs, as bars: the worst on top."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from voxelquant.errors import MissingDependencyError
from voxelquant.report.bev import png_bytes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BAR = "#3b7dd8"
KEPT = "#d9622b"
INTERVAL = "#1d2733"
TEXT = "#1d2733"
GRID = "#e3e7ee"
DPI = 120
_WIDTH_IN = 9.0
_BAR_IN = 0.24  # height of one layer
_FRAME_IN = 1.5  # title, axes and margins


@dataclass(frozen=True)
class LayerBar:
    """One layer of the chart; costs are positive where quantizing hurts."""

    name: str
    proxy: float
    points: float | None = None  # of mAP lost, with its 95 % interval; None where not measured
    low: float | None = None
    high: float | None = None
    kept: bool = False  # the suggested recipe keeps it in fp16


def draw_sensitivity(bars: Sequence[LayerBar], *, title: str) -> bytes:
    """PNG with a row for every layer, in the order given: mAP where it is known, and the proxy.

    The same bars give the same bytes.

    Raises:
        MissingDependencyError: matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingDependencyError(
            "charts need matplotlib, which is not installed; pip install 'voxelquant[viz]'"
        ) from error
    measured = any(bar.points is not None for bar in bars)
    height = _FRAME_IN + _BAR_IN * max(1, len(bars))
    figure = Figure(figsize=(_WIDTH_IN, height), dpi=DPI, facecolor="white", layout="constrained")
    canvas = FigureCanvasAgg(figure)
    panels = figure.subplots(1, 2 if measured else 1, sharey=True, squeeze=False)[0]
    if measured:
        _draw_panel(panels[0], bars, [bar.points or 0.0 for bar in bars], "mAP lost, points")
        _draw_intervals(panels[0], bars)
    _draw_panel(panels[-1], bars, [bar.proxy for bar in bars], "proxy: head error + box churn")
    names = [bar.name for bar in bars]
    panels[0].set_yticks(range(len(bars)), names, fontsize=8, family="monospace", color=TEXT)
    panels[0].set_ylim(len(bars) - 0.4, -0.6)
    figure.suptitle(title, fontsize=11, color=TEXT)
    if any(bar.kept for bar in bars):
        _explain_colours(figure)
    return png_bytes(canvas)


def _draw_panel(axes: Axes, bars: Sequence[LayerBar], values: list[float], label: str) -> None:
    colours = [KEPT if bar.kept else BAR for bar in bars]
    axes.barh(range(len(bars)), values, height=0.68, color=colours, zorder=2)
    axes.axvline(0, color=TEXT, linewidth=0.8, zorder=3)
    axes.set_xlabel(label, fontsize=9, color=TEXT)
    axes.grid(axis="x", color=GRID, linewidth=0.8, zorder=0)
    axes.tick_params(axis="x", labelsize=8, colors=TEXT)
    axes.tick_params(axis="y", length=0)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)


def _draw_intervals(axes: Axes, bars: Sequence[LayerBar]) -> None:
    for row, bar in enumerate(bars):
        if bar.low is not None and bar.high is not None:
            axes.plot([bar.low, bar.high], [row, row], color=INTERVAL, linewidth=1.1, zorder=4)


def _explain_colours(figure: object) -> None:
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    assert isinstance(figure, Figure)
    figure.legend(
        handles=[Patch(color=KEPT, label="kept in fp16 by suggested.yaml"), Patch(color=BAR)],
        labels=["kept in fp16 by suggested.yaml", "8 bits"],
        loc="outside lower center",
        ncols=2,
        frameon=False,
        fontsize=8,
    )
