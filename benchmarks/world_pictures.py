"""The plots of docs/world.md, from a result of world.py alone."""

from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator
from world_gaps import Result, real_answers

INK, FAINT, GROUND = "#1d2433", "#8a97b3", "#ffffff"
OURS, HALF, BAND = "#1f6fd6", "#8db8ee", "#cfe0f7"  # the mean, half of the frames, nine of ten
# Real frames, in the order of the result.
REAL = ("#e07b00", "#b3126d", "#1d8a4f")
VALIDATION = "#1d2433"
DPI = 130
PERCENT = FuncFormatter(lambda share, _: f"{100 * share:g} %")


def draw_distributions(result: Result) -> Figure:
    """Points, voxels and returns over range, height and beam."""
    figure = Figure(figsize=(11, 9.4), dpi=DPI, facecolor=GROUND, layout="constrained")
    axes = figure.subplots(3, 3)
    names = (
        ("points_over_range", "voxels_over_range", "returns_over_range"),
        ("points_over_height", "voxels_over_height", "returns_over_height"),
        ("returns_over_beam", "points_per_voxel", None),
    )
    for row, line in zip(axes, names, strict=True):
        for cell, name in zip(row, line, strict=True):
            if name is None:
                explain(cell, result)
            elif "beam" in name:
                draw_beams(cell, result)
            else:
                draw_histogram(cell, result, name, logarithmic="over" in name)
    return figure


def draw_voxels(result: Result) -> Figure:
    """Voxels a frame, sites of every level, and the neighbours of a site."""
    figure = Figure(figsize=(11, 6.6), dpi=DPI, facecolor=GROUND, layout="constrained")
    axes = figure.subplots(2, 3)
    draw_counts(axes[0, 0], result)
    draw_sites(axes[0, 1], result)
    for level, cell in enumerate((axes[0, 2], *axes[1])):
        draw_histogram(cell, result, f"neighbours_level_{level}", axis="active cells of the 27")
        cell.set_title(f"neighbours, level {level}", color=INK, fontsize=10)
    return figure


def draw_counts(axes: Any, result: Result) -> None:
    """Cumulative share of frames over the number of voxels."""
    counts = result["voxel_counts"]
    shares = [place / 100 for place in range(101)]
    for key, color, name in (
        ("nuscenes", VALIDATION, f"nuScenes, {counts['nuscenes']['frames']:,} frames"),
        ("synthetic", OURS, f"synthetic, {result['frames']} frames"),
    ):
        thousands = [count / 1e3 for count in counts[key]["percentiles"]]
        axes.plot(thousands, shares, color=color, lw=1.8, label=name)
    axes.yaxis.set_major_formatter(PERCENT)
    axes.set_xlabel("thousand voxels", color=INK, fontsize=9)
    axes.set_title("frames with at most so many voxels", color=INK, fontsize=10)
    axes.set_xlim(0, None)
    axes.legend(frameon=False, fontsize=8, labelcolor=INK, loc="upper left")
    finish(axes)


def draw_sites(axes: Any, result: Result) -> None:
    """Sites of every level: the spread of synthetic frames, and the real ones."""
    spreads = [result["synthetic"]["scalars"][f"sites_level_{level}"] for level in range(4)]
    levels = list(range(len(spreads)))
    for level, spread in enumerate(spreads):
        for low, high, color in (("p5", "p95", BAND), ("p25", "p75", HALF)):
            height = (spread[high] - spread[low]) / 1e3
            axes.bar(level, height, bottom=spread[low] / 1e3, width=0.5, color=color)
        axes.plot([level - 0.25, level + 0.25], [spread["p50"] / 1e3] * 2, color=OURS, lw=2)
    for (name, real), color in zip(result["nuscenes"]["frames"].items(), REAL, strict=True):
        if "sites_level_0" in real["scalars"]:
            sites = [real["scalars"][f"sites_level_{level}"] / 1e3 for level in levels]
            axes.plot(levels, sites, "o", color=color, ms=6, mec="white", label=name)
    axes.set_xticks(levels, labels=[f"level {level}" for level in levels])
    axes.set_ylim(0, None)
    axes.set_title("thousand sites", color=INK, fontsize=10)
    axes.legend(frameon=False, fontsize=8, labelcolor=INK)
    finish(axes)


def draw_histogram(
    axes: Any, result: Result, name: str, *, logarithmic: bool = False, axis: str | None = None
) -> None:
    """One measure: the synthetic mean with the band of nine of ten frames, and real frames."""
    measure = result["measures"]["histograms"][name]
    ours = result["synthetic"]["histograms"][name]
    edges = measure["edges"]
    axes.stairs(ours["p95"], edges, baseline=ours["p5"], fill=True, color=BAND)
    axes.stairs(ours["share"], edges, color=OURS, lw=1.6)
    for frame, color in zip(result["nuscenes"]["frames"].values(), REAL, strict=True):
        if name in frame["histograms"]:
            axes.stairs(frame["histograms"][name], edges, color=color, lw=1.2)
    if logarithmic:
        axes.set_yscale("log")
        axes.set_ylim(1e-4, 0.6)
        axes.minorticks_off()
    else:
        axes.set_ylim(0, None)
    axes.yaxis.set_major_formatter(PERCENT)
    axes.set_xlim(edges[0], edges[-1])
    axes.xaxis.set_major_locator(MaxNLocator(8, steps=[1, 2, 5, 10], integer=True))
    axes.set_xlabel(axis or measure["axis"], color=INK, fontsize=9)
    axes.set_title(f"{measure['counted']}{bin_width(edges)}", color=INK, fontsize=10)
    finish(axes)


def bin_width(edges: list[float]) -> str:
    """Width of a bin in metres, in words, where bins are not whole numbers of something."""
    width = edges[1] - edges[0]
    return ", share of each number" if width == 1 else f", share of each {width:.3g} m"


def draw_beams(axes: Any, result: Result) -> None:
    """Share of each beam's firings that come back, the ego vehicle's own left out."""
    name = "returns_over_beam"
    edges = result["measures"]["histograms"][name]["edges"]
    ours = result["synthetic"]["answers"]
    axes.stairs(ours["p95"], edges, baseline=ours["p5"], fill=True, color=BAND)
    axes.stairs(ours["mean"], edges, color=OURS, lw=1.6)
    for frame, color in zip(result["nuscenes"]["frames"].values(), REAL, strict=True):
        if name in frame["histograms"]:
            axes.stairs(real_answers(result, frame), edges, color=color, lw=1.2)
    axes.set_ylim(0, 1.05)
    axes.set_xlim(edges[0], edges[-1])
    axes.yaxis.set_major_formatter(PERCENT)
    axes.set_xlabel("beam, 0 looks lowest", color=INK, fontsize=9)
    axes.set_title("firings that come back", color=INK, fontsize=10)
    finish(axes)


def explain(axes: Any, result: Result) -> None:
    """What the colours mean, in a cell of its own."""
    axes.set_axis_off()
    axes.fill_between([], [], color=BAND, label="nine of ten synthetic frames")
    axes.plot([], [], color=OURS, lw=1.8, label=f"synthetic, {result['frames']} frames together")
    for name, color in zip(result["nuscenes"]["frames"], REAL, strict=True):
        axes.plot([], [], color=color, lw=1.4, label=f"nuScenes, {name} (one frame)")
    axes.legend(frameon=False, fontsize=10, labelcolor=INK, loc="center")


def draw_intensity(result: Result) -> Figure:
    """Intensities on a logarithmic scale, and their quantiles over range."""
    figure = Figure(figsize=(11, 4.3), dpi=DPI, facecolor=GROUND, layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1.25, 1))
    draw_histogram(left, result, "intensity", logarithmic=True)
    left.set_ylim(1e-6, 0.3)
    left.set_xlim(0, 256)
    left.set_title("returns of the key frame, share of each intensity", color=INK, fontsize=10)
    explain_lines(left, result, "intensity")
    ours = result["synthetic"]["intensity_over_range"]
    real = result["nuscenes"]["intensity_over_range"]
    edges_m = ours["edges_m"]
    for summary, color, name in ((ours, OURS, "synthetic"), (real, REAL[0], "nuScenes, 2 frames")):
        for level, style in ((0.5, "-"), (0.95, "--"), (0.99, ":")):
            place = summary["levels"].index(level)
            heights = [ring["quantiles"][place] for ring in summary["ranges"]]
            label = f"{name}, {100 * level:.0f} %"
            edges_m = summary["edges_m"]
            right.stairs(
                heights, edges_m, baseline=None, color=color, lw=1.6, ls=style, label=label
            )
    right.set_xlim(0, edges_m[-1])
    right.set_ylim(0, None)
    right.set_xlabel("distance from the sensor, m", color=INK, fontsize=9)
    right.set_title("quantiles of the intensity over range", color=INK, fontsize=10)
    right.legend(frameon=False, fontsize=8, ncols=2, labelcolor=INK, loc="upper center",
                 bbox_to_anchor=(0.5, -0.14))  # fmt: skip
    finish(right)
    return figure


def explain_lines(axes: Any, result: Result, name: str) -> None:
    """A legend of the frames that have this measure."""
    axes.plot([], [], color=OURS, lw=1.6, label="synthetic (shaded: nine of ten frames)")
    for (frame, real), color in zip(result["nuscenes"]["frames"].items(), REAL, strict=True):
        if name in real["histograms"]:
            axes.plot([], [], color=color, lw=1.2, label=f"nuScenes, {frame}")
    axes.legend(frameon=False, fontsize=8, labelcolor=INK, loc="upper right")


def finish(axes: Any) -> None:
    """Quiet axes."""
    axes.grid(visible=True, color="#e6eaf1", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=INK, labelsize=8, length=0)
    for side in axes.spines.values():
        side.set_color(FAINT)
        side.set_linewidth(0.6)
