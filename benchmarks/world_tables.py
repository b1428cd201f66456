"""The tables of docs/world.md, from a result of world.py alone."""

import itertools
import statistics
from typing import Any

from world_box_pictures import attribute_share
from world_gaps import (
    Gap,
    Result,
    as_printed,
    histogram_gaps,
    mean_rank,
    real_answers,
    single_figures,
)

PERCENTILES = (1, 5, 25, 50, 75, 95, 99)
UPPER_BEAMS = 21  # from this beam on, fewer firings come back than in the real frames
NAMES = {
    "points": "points, ten sweeps",
    "voxels": "voxels",
    "voxels_of_key_frame": "voxels of the key frame alone",
    "returns": "returns of the key frame",
    "intensity_from_80": "of them with intensity ≥ 80, %",
    "intensity_from_100": "of them with intensity ≥ 100, %",
    "intensity_from_101": "of them with intensity > 100, %",
    "intensity_from_200": "of them with intensity ≥ 200, %",
    "intensity_from_255": "of them with intensity 255, %",
    **{f"sites_level_{level}": f"sites of level {level}" for level in range(4)},
    **{f"neighbours_level_{level}": f"neighbours of a site, level {level}" for level in range(4)},
}


def table(head: list[str], rows: list[list[str]]) -> str:
    """A table in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def gap_table(result: Result) -> str:
    """Histograms of real frames, those that would be rarest in the synthetic world first."""
    head = ["histogram", "real frame", "in other bins", "synthetic frames, p50 (p95)", "ratio",
            "too few at", "too many at"]  # fmt: skip
    return table(head, [gap_row(gap) for gap in histogram_gaps(result)])


def gap_row(gap: Gap) -> list[str]:
    distance, ratio = f"{100 * gap.distance:.1f} %", f"{gap.ratio:.2f}"
    return [
        gap.title,
        gap.frame,
        f"**{distance}**" if gap.differs else distance,
        f"{100 * gap.usual:.1f} ({100 * gap.rare:.1f}) %",
        f"**{ratio}**" if gap.differs else ratio,
        gap.too_few,
        gap.too_many,
    ]


def scalar_table(result: Result) -> str:
    """Single figures of real frames beside their spread over synthetic ones."""
    frames = list(result["nuscenes"]["frames"])
    outside = {(figure.name, figure.frame) for figure in single_figures(result) if figure.outside}
    rows = []
    for name, title in NAMES.items():
        spread = result["synthetic"]["scalars"][name]
        ours = [number(name, spread[key]) for key in ("p5", "p50", "p95")]
        cells = []
        for frame in frames:
            scalars = result["nuscenes"]["frames"][frame]["scalars"]
            cell = number(name, scalars[name]) if name in scalars else ""
            cells.append(f"**{cell}**" if (name, frame) in outside else cell)
        rows.append([title, *ours, *cells])
    return table(["", "p5", "median", "p95", *frames], rows)


def number(name: str, value: float) -> str:
    shown = as_printed(name, value)
    if name.startswith("intensity"):
        return f"{shown:.3f}"
    return f"{shown:.2f}" if name.startswith("neighbours") else f"{shown:,.0f}"


def sight_table(result: Result) -> str:
    """Returns close to the sensor's height, and how often firings of the upper beams come back."""
    over_height, upper = "returns_over_height", slice(UPPER_BEAMS, None)
    edges = result["measures"]["histograms"][over_height]["edges"]
    frames = {
        name: frame
        for name, frame in result["nuscenes"]["frames"].items()
        if over_height in frame["histograms"]
    }
    heights = [result["synthetic"]["histograms"][over_height]["share"]]
    heights += [frame["histograms"][over_height] for frame in frames.values()]
    answers = [result["synthetic"]["answers"]["mean"]]
    answers += [real_answers(result, frame) for frame in frames.values()]
    rows = {
        "returns 0 to 0.25 m above the sensor": [share_between(h, edges, 0, 0.25) for h in heights],
        "returns 0 to 0.25 m below it": [share_between(h, edges, -0.25, 0) for h in heights],
        f"firings of beams {UPPER_BEAMS} to {len(answers[0]) - 1} that come back": [
            statistics.fmean(beams[upper]) for beams in answers
        ],
    }
    cells = [[what, *(f"{100 * share:.1f} %" for share in row)] for what, row in rows.items()]
    return table(["key frame", "synthetic", *frames], cells)


def count_table(result: Result) -> str:
    """Quantiles of the number of voxels."""
    ours, real = result["voxel_counts"]["synthetic"], result["voxel_counts"]["nuscenes"]
    rows = [["mean", f"{ours['mean']:,.0f}", f"{real['mean']:,.0f}"]]
    for level in PERCENTILES:
        one, other = ours["percentiles"][level], real["percentiles"][level]
        rows.append([f"p{level}", f"{one:,.0f}", f"{other:,.0f}"])
    names = [f"synthetic, {result['frames']} frames", f"nuScenes, {real['frames']:,} frames"]
    return table(["voxels", *names], rows)


def share_table(result: Result, names: list[str], edges: tuple[float, ...]) -> str:
    """Shares in coarse bins: synthetic, then every real frame that has the measure."""
    measures = [result["measures"]["histograms"][name] for name in names]
    head, columns = [measures[0]["axis"]], []  # columns: fine edges and shares
    for name, measure in zip(names, measures, strict=True):
        head.append(f"{measure['counted']}: synthetic")
        columns.append((measure["edges"], result["synthetic"]["histograms"][name]["share"]))
        for frame, real in result["nuscenes"]["frames"].items():
            if name in real["histograms"]:
                head.append(f"{measure['counted']}: {frame}")
                columns.append((measure["edges"], real["histograms"][name]))
    rows = [
        [
            f"{low:g} to {high:g}",
            *(f"{100 * share_between(share, fine, low, high):.1f} %" for fine, share in columns),
        ]
        for low, high in itertools.pairwise(edges)
    ]
    return table(head, rows)


def share_between(share: list[float], edges: list[float], low: float, high: float) -> float:
    """Sum of the shares of the bins within [low, high)."""
    bins = zip(share, edges[:-1], edges[1:], strict=True)
    return sum(part for part, first, last in bins if first >= low - 1e-9 and last <= high + 1e-9)


def intensity_table(result: Result) -> str:
    """Quantiles of the intensity over range."""
    ours, real = (result[side]["intensity_over_range"] for side in ("synthetic", "nuscenes"))
    levels = (0.05, 0.5, 0.95, 0.99)
    rows = []
    for place, (low, high) in enumerate(itertools.pairwise(ours["edges_m"])):
        cells = [f"{low:g} to {high:g} m"]
        for side in (ours, real):
            picks = side["ranges"][place]["quantiles"]
            cells += [f"{picks[side['levels'].index(level)]:.0f}" for level in levels]
        rows.append(cells)
    names = [
        f"{side} {100 * level:.0f} %" for side in ("synthetic", "nuScenes") for level in levels
    ]
    return table(["range", *names], rows)


def brightness_table(result: Result) -> str:
    """Quantiles of the intensity of points in boxes."""
    rows = []
    for name in result["synthetic"]["boxes"]:
        row = [name]
        for side in ("synthetic", "nuscenes"):
            found = result[side]["intensity_in_boxes"][name]
            picks = " / ".join(f"{value:.0f}" for value in found["quantiles"] or [])
            row += [picks or "–", f"{found['points']:,.0f}"]
        rows.append(row)
    levels = " / ".join(f"{100 * level:.0f}" for level in result["measures"]["boxes"]["quantiles"])
    head = ["class", f"synthetic, {levels} %", "points", "scene 0061", "points"]
    return table(head, rows)


def class_mix(result: Result) -> str:
    """How many times as frequent each class is as in nuScenes, the most exaggerated first."""
    published = result["nuscenes"]["published"]["boxes_per_frame"]
    boxes = result["synthetic"]["boxes"]
    ratios = {n: boxes[n]["visible_per_frame"] / real for n, real in published.items()}
    worst = sorted(ratios, key=lambda name: -max(ratios[name], 1 / max(ratios[name], 1e-9)))
    return ", ".join(f"{name.replace('_', ' ')} {ratios[name]:.1f}" for name in worst)


def class_table(result: Result) -> str:
    """Boxes a frame, what moves, and how real boxes rank among synthetic ones by points."""
    published = result["nuscenes"]["published"]["boxes_per_frame"]
    rows = []
    for name, real in published.items():
        ours: dict[str, Any] = result["synthetic"]["boxes"][name]
        rank = mean_rank(result, name)
        rows.append(
            [
                name,
                f"{ours['per_frame']:.2f}",
                f"{ours['visible_per_frame']:.2f}",
                f"{real:g}",
                f"{ours['visible_per_frame'] / real:.2f}",
                f"{100 * ours['moving']:.0f} %",
                f"{ours['speed_quantiles'][2]:.1f}" if ours["speed_quantiles"] else "–",
                f"{rank[1]:.2f} ({rank[0]})" if rank else "–",
            ]
        )
    return table(
        ["class", "boxes a frame", "with a point", "nuScenes", "with a point / nuScenes", "moving",
         "median speed, m/s", "rank of real boxes"],
        rows,
    )  # fmt: skip


def attribute_table(result: Result) -> str:
    """Attributes within their kind."""
    ours, real = result["synthetic"]["attributes"], result["nuscenes"]["published"]["attributes"]
    rows = [
        [n, *(f"{100 * attribute_share(counts, n):.0f} %" for counts in (ours, real))] for n in real
    ]
    return table(["attribute", "synthetic", "nuScenes mini"], rows)


def point_table(result: Result) -> str:
    """Median points in a box over distance, real ones after the slash."""
    bins = result["measures"]["boxes"]
    step, middle = bins["distance_step_m"], bins["quantiles"].index(0.5)
    rings = range(10)
    rows = []
    for name, ours in result["synthetic"]["boxes"].items():
        real = result["nuscenes"]["boxes"][name]
        row = [name]
        for ring in rings:
            sides = [side["point_quantiles"][ring] for side in (ours, real)]
            row.append(" / ".join(f"{side[middle]:.0f}" for side in sides if side))
        rows.append(row)
    return table(["class", *(f"{step * r}-{step * (r + 1)} m" for r in rings)], rows)


def speed_table(results: list[Result]) -> str:
    """Time of one frame on every machine that was measured."""
    rows = []
    for result in results:
        machine, seconds = result["machine"], result["seconds_per_frame"]
        if "gpu" in machine:
            name = machine["gpu"]
        else:
            load = machine["load_average"]
            threads = f"{machine['threads']} thread" + "s" * (machine["threads"] != 1)
            name = f"CPU, {threads}, {machine['cores']} cores"
            name += f" (load average {load:.1f} while measured)"
        times = [f"{1000 * seconds[key]:.1f}" for key in ("median", "p20", "p80")]
        rows.append(
            [name, str(result["batch"]), *times, str(result["world_version"]), result["commit"]]
        )
    head = ["machine", "frames a call", "median, ms a frame", "p20", "p80", "world", "commit"]
    return table(head, rows)
