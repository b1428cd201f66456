"""Draw docs/pictures/demo.png, the README's picture, from the folder of a finished demo.

python docs/pictures/make.py runs/demo
"""

import sys
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from voxelquant.recipes.artifacts import atomic_path
from voxelquant.recipes.report import load_report_data
from voxelquant.report.bev import FLOAT, GRID, GRID_TEXT, GROUND, INT8, TRUTH, draw_frame, png_bytes
from voxelquant.report.model import EngineScore, LayerParity, RunReport

TARGET = Path(__file__).with_name("demo.png")
WIDTH_PX, HEIGHT_PX, DPI = 1760, 960, 120
BEV_SHARE = HEIGHT_PX / WIDTH_PX  # the frame is a square as high as the picture
HALF_WIDTH_M = 36
PICTURE = 0  # which of the report's frames
INK, WIDE = "#e6ebf5", "#7d8aa5"
LEFT, RIGHT = BEV_SHARE + 0.035, 0.975  # of the panel with the numbers


def main(folder: str) -> None:
    """Draw the picture of the run in this folder."""
    report = load_report_data(folder)
    figure = Figure(figsize=(WIDTH_PX / DPI, HEIGHT_PX / DPI), dpi=DPI, facecolor=GROUND)
    canvas = FigureCanvasAgg(figure)
    bev = figure.add_axes((0, 0, BEV_SHARE, 1))
    draw_frame(bev, report.pictures[PICTURE], half_width_m=HALF_WIDTH_M)
    draw_legend(figure)
    draw_scores(figure, report)
    draw_layers(figure, report.layers)
    draw_verdict(figure, report.layers)
    with atomic_path(TARGET) as temporary:
        temporary.write_bytes(png_bytes(canvas))
    print(f"Written: {TARGET}")


def draw_legend(figure: Figure) -> None:
    """What the colours of the boxes mean, in the lower left corner of the frame."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    handles = [
        Patch(facecolor=TRUTH + "52", edgecolor=TRUTH, label="ground truth"),
        Line2D([], [], color=FLOAT, linewidth=2.4, label="float"),
        Line2D([], [], color=INT8, linewidth=2.4, linestyle=(0, (1.7, 1.7)), label="int8 engine"),
    ]
    legend = figure.legend(
        handles=handles, loc="lower left", bbox_to_anchor=(0.008, 0.012), fontsize=14,
        labelcolor=INK, facecolor=GROUND, edgecolor=GRID, framealpha=0.92, borderpad=0.7,
    )  # fmt: skip
    legend.set_zorder(10)


def draw_scores(figure: Figure, report: RunReport) -> None:
    """The headline: mAP and NDS of every engine."""
    kind = "synthetic " if report.dataset.synthetic else ""
    title = f"nuScenes metric, {report.dataset.frames} {kind}frames"
    figure.text(LEFT, 0.935, title, color=INK, fontsize=17, weight="bold", va="center")
    columns = (LEFT, RIGHT - 0.115, RIGHT)
    for x, name in zip(columns[1:], ("mAP, %", "NDS, %"), strict=True):
        figure.text(x, 0.872, name, color=GRID_TEXT, fontsize=13, ha="right", va="center")
    for row, score in enumerate(report.scores):
        y = 0.815 - 0.068 * row
        draw_engine_name(figure, score, columns[0], y)
        for x, value in zip(columns[1:], (score.mean_ap, score.nds), strict=True):
            figure.text(x, y, f"{100 * value:.2f}", color=INK, fontsize=21, weight="bold",
                        ha="right", va="center")  # fmt: skip


def draw_engine_name(figure: Figure, score: EngineScore, x: float, y: float) -> None:
    """The engine, and behind it whether its numbers were simulated or executed."""
    color = INT8 if score.execution.value == "executed" else INK
    color = FLOAT if score.execution.value == "float" else color
    figure.text(x, y, score.name, color=color, fontsize=17, va="center")
    if score.execution.value != score.name:
        figure.text(x + 0.125, y, score.execution.value, color=GRID_TEXT, fontsize=13, va="center")


def draw_layers(figure: Figure, layers: tuple[LayerParity, ...]) -> None:
    """One bar per layer: signal to quantization noise of the integer engine."""
    axes = figure.add_axes((LEFT + 0.018, 0.235, RIGHT - LEFT - 0.018, 0.29), facecolor=GROUND)
    heights = [layer.sqnr_db or 0.0 for layer in layers]
    colors = [INT8 if layer.precision.endswith("int8") else WIDE for layer in layers]
    axes.bar(range(len(layers)), heights, color=colors, width=0.72, zorder=2)
    axes.set_xlim(-0.7, len(layers) - 0.3)
    axes.set_xticks([])
    axes.yaxis.grid(True, color=GRID, linewidth=0.9)
    axes.tick_params(axis="y", colors=GRID_TEXT, labelsize=12.5, length=0)
    for side in axes.spines.values():
        side.set_visible(False)
    title = "int8 against float, SQNR"
    figure.text(LEFT, 0.572, title, color=INK, fontsize=17, weight="bold", va="center")
    for x, name, color in ((RIGHT - 0.105, "fp16", WIDE), (RIGHT - 0.035, "int8", INT8)):
        figure.text(x, 0.572, "■", color=color, fontsize=17, va="center", ha="right")
        figure.text(x + 0.035, 0.572, name, color=INK, fontsize=13, va="center", ha="right")
    caption = f"dB; outputs of the {len(layers)} layers of the sparse backbone, in order"
    figure.text(LEFT, 0.203, caption, color=GRID_TEXT, fontsize=13, va="center")


def draw_verdict(figure: Figure, layers: tuple[LayerParity, ...]) -> None:
    """Whether file, engine and fake-quant agree."""
    equal = sum(layer.file_equals_engine is True for layer in layers)
    differing = sum(layer.differing_codes for layer in layers)
    codes = sum(layer.codes for layer in layers)
    gap = max(layer.largest_code_difference for layer in layers)
    lines = (
        (f"{equal} of {len(layers)}", "layers: exported file = engine, bit for bit"),
        (f"{differing} of {codes / 1e6:.0f} M", f"codes: fake-quant and engine differ, by {gap}"),
    )
    for row, (number, text) in enumerate(lines):
        y = 0.115 - 0.062 * row
        figure.text(LEFT, y, number, color=INK, fontsize=16, weight="bold", va="center")
        figure.text(LEFT + 0.105, y, text, color=INK, fontsize=14, va="center")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "runs/demo")
