"""Calibration histograms: what a tensor holds, and where its range was cut."""

from html import escape

import numpy as np
from numpy.typing import NDArray

from voxelquant.report.model import TensorHistogram

WIDTH, HEIGHT = 320, 132
LEFT, RIGHT, TOP, BOTTOM = 6, 6, 20, 18
BARS = 96


def draw_histograms(histograms: tuple[TensorHistogram, ...]) -> str:
    """A grid of small multiples."""
    return f'<div class="multiples">{"".join(map(draw_histogram, histograms))}</div>'


def draw_histogram(histogram: TensorHistogram) -> str:
    """One tensor: occurrences of |x| on a logarithmic axis, what amax clips in another colour."""
    bars = merge_bins(histogram.counts, BARS)
    peak = np.log10(bars.max() + 1) or 1.0
    plot_width, plot_height = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM
    baseline = HEIGHT - BOTTOM
    bar_width = plot_width / len(bars)
    bar_value = histogram.top / len(bars)
    shapes = []
    for index, count in enumerate(bars):
        if count == 0:
            continue
        height = max(1.0, plot_height * np.log10(count + 1) / peak)
        kind = "clipped" if (index + 0.5) * bar_value > histogram.amax else "kept"
        shapes.append(
            f'<rect class="{kind}" x="{LEFT + index * bar_width:.1f}" '
            f'y="{baseline - height:.1f}" width="{bar_width * 0.86:.2f}" height="{height:.1f}"/>'
        )
    cut = LEFT + plot_width * min(histogram.amax / histogram.top, 1.0)
    anchor = "end" if cut > WIDTH / 2 else "start"
    label = cut - 4 if anchor == "end" else cut + 4
    return f"""<figure class="histogram">
<figcaption><code>{escape(histogram.name)}</code>\
<span>{escape(histogram.method)} · {clipped_text(histogram)}</span></figcaption>
<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(histogram.name)}: histogram">
{"".join(shapes)}
<line class="axis" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{baseline}" y2="{baseline}"/>
<line class="cut" x1="{cut:.1f}" x2="{cut:.1f}" y1="6" y2="{baseline}"/>
<text class="cut-label" x="{label:.1f}" y="13" text-anchor="{anchor}">\
amax {histogram.amax:.3g}</text>
<text x="{LEFT}" y="{HEIGHT - 4}">0</text>
<text x="{WIDTH - RIGHT}" y="{HEIGHT - 4}" text-anchor="end">{histogram.top:.3g}</text>
</svg></figure>"""


def merge_bins(counts: NDArray[np.float64], bars: int) -> NDArray[np.float64]:
    """Sum neighbouring bins until at most `bars` are left; the last may span fewer.

    >>> merge_bins(np.array([1.0, 2.0, 3.0, 4.0, 5.0]), 3)
    array([3., 7., 5.])
    """
    per_bar = -(-len(counts) // bars)
    return np.add.reduceat(counts, np.arange(0, len(counts), per_bar))


def clipped_text(histogram: TensorHistogram) -> str:
    """The share of values beyond amax, to the resolution of the bins."""
    edges = np.arange(len(histogram.counts)) * histogram.top / len(histogram.counts)
    total = histogram.counts.sum()
    share = histogram.counts[edges >= histogram.amax].sum() / total if total else 0.0
    if share == 0:
        return "nothing clipped"
    return f"{100 * share:.2g} % clipped"
