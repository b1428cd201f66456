"""The plots of docs/world.md that are about boxes, from a result of world.py alone."""

import math
from typing import Any

from matplotlib.figure import Figure
from world_gaps import FEWEST_BOXES
from world_pictures import BAND, DPI, GROUND, HALF, INK, OURS, REAL, Result, finish

KEY_FRAME = REAL[1]


def draw_points(result: Result) -> Figure:
    """Points in a box over its distance, a panel for each class."""
    classes = list(result["synthetic"]["boxes"])
    figure = Figure(figsize=(11, 5.6), dpi=DPI, facecolor=GROUND, layout="constrained")
    for cell, name in zip(figure.subplots(2, 5, sharey=True).flat, classes, strict=False):
        draw_class(cell, result, name)
    figure.supxlabel("distance of the box, m", color=INK, fontsize=9)
    figure.supylabel("points of the key frame in the box", color=INK, fontsize=9)
    return figure


def draw_class(axes: Any, result: Result, name: str) -> None:
    """Quantiles of the synthetic boxes of a class with a point, and every real one at its bin.

    A ring of distance with too few synthetic boxes stays empty.
    """
    bins, step = result["measures"]["boxes"], result["measures"]["boxes"]["distance_step_m"]
    ours = result["synthetic"]["boxes"][name]
    enough = [sum(counts[1:]) >= FEWEST_BOXES for counts in ours["points_by_distance"]]
    edges = [step * ring for ring in range(len(enough) + 1)]
    nothing = [math.nan] * len(bins["quantiles"])
    rings = [
        values if drawn else nothing
        for values, drawn in zip(ours["point_quantiles"], enough, strict=True)
    ]
    low, lower, middle, upper, high = zip(*rings, strict=True)
    axes.stairs(high, edges, baseline=low, fill=True, color=BAND)
    axes.stairs(upper, edges, baseline=lower, fill=True, color=HALF)
    axes.stairs(middle, edges, baseline=None, color=OURS, lw=1.6)
    if not any(enough):
        said = f"fewer than {FEWEST_BOXES} synthetic\nboxes in any {step} m"
        axes.text(0.5, 0.9, said, transform=axes.transAxes, ha="center", va="top",
                  color=INK, fontsize=8, bbox={"fc": GROUND, "ec": "none", "pad": 2})  # fmt: skip
    real = result["nuscenes"]["boxes"][name]["points_by_distance"]
    for spot in real_spots(real, step, bins["point_edges"]):
        axes.plot(*spot, "o", color=KEY_FRAME, ms=3.6, alpha=0.75, mew=0, zorder=3)
    axes.axvline(bins["ranges_m"][name], color="#8a97b3", lw=0.9, ls=":")
    axes.set_yscale("log")
    axes.set_ylim(0.7, 2e4)
    axes.set_xlim(0, 75)
    axes.set_yticks([1, 10, 100, 1000, 10000], labels=["1", "10", "100", "1,000", "10,000"])
    axes.minorticks_off()
    axes.set_title(name.replace("_", " "), color=INK, fontsize=10)
    finish(axes)


def real_spots(
    counts: list[list[int]], step_m: float, point_edges: list[int]
) -> list[tuple[float, float]]:
    """A spot for each real box with a point: side by side in its ring, amid its bin of points."""
    spots = []
    for ring, row in enumerate(counts):
        for place, count in enumerate(row[1:-1], start=1):
            middle = (point_edges[place] * (point_edges[place + 1] - 1)) ** 0.5
            spots += [
                (step_m * (ring + (index + 1) / (count + 1)), middle) for index in range(count)
            ]
    return spots


def draw_classes(result: Result) -> Figure:
    """Boxes a frame by class, attributes, and speeds of what moves."""
    figure = Figure(figsize=(11, 4.3), dpi=DPI, facecolor=GROUND, layout="constrained")
    left, middle, right = figure.subplots(1, 3, width_ratios=(1.35, 1.1, 1))
    draw_boxes_per_frame(left, result)
    draw_attributes(middle, result)
    draw_speeds(right, result)
    return figure


def draw_boxes_per_frame(axes: Any, result: Result) -> None:
    """All boxes, and those with a point, beside nuScenes' training set."""
    published = result["nuscenes"]["published"]["boxes_per_frame"]
    names = list(published)
    ours = result["synthetic"]["boxes"]
    places = range(len(names))
    every = [ours[name]["per_frame"] for name in names]
    seen = [ours[name]["visible_per_frame"] for name in names]
    axes.barh([p - 0.19 for p in places], every, height=0.36, color=BAND, label="synthetic")
    axes.barh(
        [p - 0.19 for p in places], seen, height=0.36, color=OURS, label="of them with a point"
    )
    axes.barh([p + 0.19 for p in places], list(published.values()), height=0.36, color=REAL[0],
              label="nuScenes, training set")  # fmt: skip
    axes.set_yticks(list(places), labels=[name.replace("_", " ") for name in names])
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.set_xticks([0.1, 1, 10], labels=["0.1", "1", "10"])
    axes.set_title("boxes a key frame", color=INK, fontsize=10)
    axes.minorticks_off()
    below(axes, columns=2)
    finish(axes)


def draw_attributes(axes: Any, result: Result) -> None:
    """Share of each attribute among the annotations of its kind."""
    ours, real = result["synthetic"]["attributes"], result["nuscenes"]["published"]["attributes"]
    names = list(real)
    for shift, counts, color, label in (
        (-0.19, ours, OURS, "synthetic"),
        (0.19, real, REAL[0], "nuScenes mini"),
    ):
        shares = [attribute_share(counts, name) for name in names]
        places = [place + shift for place in range(len(names))]
        axes.barh(places, shares, height=0.36, color=color, label=label)
    axes.set_yticks(
        range(len(names)), labels=[name.replace("_", " ").replace(".", ", ") for name in names]
    )
    axes.invert_yaxis()
    axes.set_xlim(0, 1)
    axes.set_xticks([0, 0.5, 1], labels=["0", "50 %", "100 %"])
    axes.set_title("attributes, within their kind", color=INK, fontsize=10)
    below(axes, columns=2)
    finish(axes)


def below(axes: Any, *, columns: int) -> None:
    """A legend below the axes."""
    axes.legend(frameon=False, fontsize=8, labelcolor=INK, loc="upper center", ncols=columns,
                bbox_to_anchor=(0.4, -0.07))  # fmt: skip


def attribute_share(counts: dict[str, int], name: str) -> float:
    """Share of an attribute among those that begin alike (vehicle, cycle, pedestrian)."""
    kind = name.split(".")[0]
    return counts[name] / max(1, sum(n for other, n in counts.items() if other.startswith(kind)))


def draw_speeds(axes: Any, result: Result) -> None:
    """Quantiles of the speed of what moves."""
    boxes = {n: b for n, b in result["synthetic"]["boxes"].items() if b["speed_quantiles"]}
    for place, figures in enumerate(boxes.values()):
        low, lower, middle, upper, high = figures["speed_quantiles"]
        axes.barh(place, high - low, left=low, height=0.5, color=BAND)
        axes.barh(place, upper - lower, left=lower, height=0.5, color=HALF)
        axes.plot([middle] * 2, [place - 0.25, place + 0.25], color=OURS, lw=2)
    for place, name in enumerate(boxes):
        real = result["nuscenes"]["boxes"][name]["speed_quantiles"]
        if real:
            axes.plot(real[2], place, "o", color=KEY_FRAME, ms=6, mec="white")
    axes.set_yticks(range(len(boxes)), labels=[name.replace("_", " ") for name in boxes])
    axes.invert_yaxis()
    axes.set_xlim(0, None)
    axes.set_xlabel("m/s; dot: median in scene 0061", color=INK, fontsize=9)
    axes.set_title("speed of what moves", color=INK, fontsize=10)
    finish(axes)
