"""A frame seen from above: points by height, ground truth, float and int8 boxes with heading."""

import io
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from voxelquant.errors import MissingDependencyError
from voxelquant.geometry import bev_rectangles, box_corners_bev
from voxelquant.report.model import FramePicture

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.backends.backend_agg import FigureCanvasAgg

# The picture keeps its night colours on a light page too: points by height need a dark ground.
GROUND = "#0d1320"
GRID = "#26314a"
GRID_TEXT = "#8a97b3"
TRUTH = "#35d07f"
FLOAT = "#46b8ff"
INT8 = "#ffa01e"
# Road, car roofs, walls, tree tops: greys, so that every colour in the picture is a box.
HEIGHTS = ("#2c3a57", "#5a6780", "#808a9d", "#a3acbb")

HEIGHT_RANGE_M = (-2.0, 3.0)
RING_SPACING_M = 10
PIXELS = 1080
DPI = 120


@dataclass(frozen=True)
class _BoxStyle:
    color: str
    width: float
    fill: float = 0.0
    dashes: tuple[float, ...] = ()  # lengths on and off, in line widths; none: a solid line


# Where float and int8 agree, blue shows in the gaps of orange; where they part, both are seen.
_TRUTH_STYLE = _BoxStyle(TRUTH, width=0.9, fill=0.32)
_FLOAT_STYLE = _BoxStyle(FLOAT, width=2.0)
_INT8_STYLE = _BoxStyle(INT8, width=2.0, dashes=(1.7, 1.7))


def draw_bev(picture: FramePicture, *, half_width_m: float) -> bytes:
    """PNG of the square |x|, |y| <= half_width_m, x to the right, y up.

    The same picture gives the same bytes.

    Raises:
        MissingDependencyError: matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingDependencyError(
            "pictures need matplotlib, which is not installed; pip install 'voxelquant[viz]'"
        ) from error
    figure = Figure(figsize=(PIXELS / DPI, PIXELS / DPI), dpi=DPI, facecolor=GROUND)
    canvas = FigureCanvasAgg(figure)
    draw_frame(figure.add_axes((0, 0, 1, 1)), picture, half_width_m=half_width_m)
    return png_bytes(canvas)


def draw_frame(axes: "Axes", picture: FramePicture, *, half_width_m: float) -> None:
    """Draw the frame into square matplotlib axes, whose figure has the colour `GROUND`."""
    axes.set_axis_off()
    axes.set_xlim(-half_width_m, half_width_m)
    axes.set_ylim(-half_width_m, half_width_m)
    axes.set_aspect("equal")
    _draw_rings(axes, half_width_m)
    _draw_points(axes, picture.points, half_width_m)
    _draw_boxes(axes, picture.ground_truth, _TRUTH_STYLE)
    _draw_boxes(axes, picture.float_boxes, _FLOAT_STYLE)
    _draw_boxes(axes, picture.int8_boxes, _INT8_STYLE)


def png_bytes(canvas: "FigureCanvasAgg") -> bytes:
    """The canvas as a PNG of at most 256 colours, a third of the size of one with all of them."""
    from PIL import Image

    canvas.draw()
    pixels = Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3].copy())
    stream = io.BytesIO()
    pixels.quantize(256, dither=Image.Dither.NONE).save(stream, format="PNG", optimize=True)
    return stream.getvalue()


def _draw_rings(axes: "Axes", half_width_m: float) -> None:
    from matplotlib.patches import Circle
    from matplotlib.patheffects import withStroke

    for radius_m in range(RING_SPACING_M, int(half_width_m * 1.4), RING_SPACING_M):
        axes.add_patch(
            Circle((0, 0), radius_m, fill=False, edgecolor=GRID, linewidth=0.8, zorder=0)
        )
        if radius_m < half_width_m:
            axes.annotate(
                f"{radius_m} m",
                (radius_m * 0.7071, -radius_m * 0.7071),
                color=GRID_TEXT,
                fontsize=9,
                ha="center",
                va="center",
                zorder=2,
                path_effects=[withStroke(linewidth=3, foreground=GROUND)],
            )
    axes.plot([0], [0], marker="^", color=GRID_TEXT, markersize=9, zorder=5)


def _draw_points(axes: "Axes", points: NDArray[np.float32], half_width_m: float) -> None:
    from matplotlib.colors import LinearSegmentedColormap

    inside = (np.abs(points[:, :2]) <= half_width_m).all(axis=1)
    seen = points[inside]
    seen = seen[np.argsort(seen[:, 2], kind="stable")]  # what is higher hides what is below
    axes.scatter(
        seen[:, 0],
        seen[:, 1],
        c=seen[:, 2],
        s=1.6,
        linewidths=0,
        cmap=LinearSegmentedColormap.from_list("heights", HEIGHTS),
        vmin=HEIGHT_RANGE_M[0],
        vmax=HEIGHT_RANGE_M[1],
        alpha=0.8,
        zorder=1,
    )


def _draw_boxes(axes: "Axes", boxes_det3d: NDArray[np.float32], style: _BoxStyle) -> None:
    """Outlines, and from each centre to the middle of the front edge a line that is the heading."""
    from matplotlib.collections import LineCollection, PolyCollection
    from matplotlib.colors import to_rgba

    boxes = torch.from_numpy(np.ascontiguousarray(boxes_det3d, dtype=np.float32)).reshape(-1, 9)
    rectangles = bev_rectangles(boxes)
    corners = box_corners_bev(rectangles).numpy()  # [n, 4, 2], front left first, front right last
    front_middles = (corners[:, 0] + corners[:, 3]) / 2
    headings = np.stack((rectangles[:, :2].numpy(), front_middles), axis=1)  # [n, 2, 2]
    line: dict[str, Any] = {
        "linewidths": style.width,
        "linestyle": (0, style.dashes) if style.dashes else "solid",
    }
    axes.add_collection(
        PolyCollection(
            list(corners),
            facecolors=to_rgba(style.color, style.fill),
            edgecolors=style.color,
            joinstyle="miter",
            zorder=3,
            **line,
        )
    )
    axes.add_collection(LineCollection(list(headings), colors=style.color, zorder=3, **line))
