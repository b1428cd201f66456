import builtins
import io
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.image import imread

from voxelquant.errors import MissingDependencyError
from voxelquant.report import bev
from voxelquant.report.model import FramePicture, RunReport

NONE = np.zeros((0, 9), dtype=np.float32)
HALF_WIDTH_M = 45.0  # what the tests look up lies on whole pixels


def box(x_m: float, y_m: float, theta_rad: float) -> np.ndarray:
    """A det3d box, 4 m wide and 12 m long."""
    yaw_det3d_rad = -theta_rad - np.pi / 2
    return np.array([[x_m, y_m, 0, 4, 12, 2, 0, 0, yaw_det3d_rad]], dtype=np.float32)


def draw(**boxes: np.ndarray) -> Callable[[float, float], np.ndarray]:
    """Draws the boxes over no points; the result looks up the colour at x_m, y_m."""
    layers = {"ground_truth": NONE, "float_boxes": NONE, "int8_boxes": NONE, **boxes}
    picture = FramePicture("", np.zeros((0, 3), dtype=np.float32), **layers)
    png = bev.draw_bev(picture, half_width_m=HALF_WIDTH_M)
    image = imread(io.BytesIO(png))[..., :3]
    assert image.shape == (bev.PIXELS, bev.PIXELS, 3)

    def colour_at(x_m: float, y_m: float) -> np.ndarray:
        column = round((x_m / HALF_WIDTH_M + 1) / 2 * bev.PIXELS)
        row = round((1 - y_m / HALF_WIDTH_M) / 2 * bev.PIXELS)
        return image[row - 1 : row + 1, column - 1 : column + 1].mean(axis=(0, 1))

    return colour_at


def is_colour(seen: np.ndarray, name: str) -> bool:
    return bool(np.abs(seen - np.array(to_rgb(name))).max() < 0.06)


def test_a_box_stands_where_it_is_and_points_where_it_heads() -> None:
    colour_at = draw(float_boxes=box(12, 5, theta_rad=0.0))  # along +x: 6..18, 3..7
    assert is_colour(colour_at(18, 4), bev.FLOAT)  # front edge
    assert is_colour(colour_at(6, 4), bev.FLOAT)  # rear edge
    assert is_colour(colour_at(15, 7), bev.FLOAT)  # left edge
    assert is_colour(colour_at(15, 5), bev.FLOAT)  # heading line, from the centre forward
    assert is_colour(colour_at(9, 5), bev.GROUND)  # and not backward


def test_y_points_up() -> None:
    colour_at = draw(float_boxes=box(0, 25, theta_rad=np.pi / 2))  # along +y: 19..31
    assert is_colour(colour_at(0.0, 28), bev.FLOAT)
    assert is_colour(colour_at(0.0, 22), bev.GROUND)
    assert is_colour(colour_at(0.0, -28), bev.GROUND)


def test_where_float_and_int8_agree_both_show_in_turn_on_top_of_truth() -> None:
    same = box(12, 5, theta_rad=0.0)
    colour_at = draw(ground_truth=same, float_boxes=same, int8_boxes=same)
    left_edge = [colour_at(x_m, 7) for x_m in np.arange(6.5, 17.5, 0.05)]
    assert any(is_colour(seen, bev.FLOAT) for seen in left_edge)
    assert any(is_colour(seen, bev.INT8) for seen in left_edge)
    filled = colour_at(9, 4)
    assert filled[1] > to_rgb(bev.GROUND)[1] + 0.15  # green


def test_a_float_box_that_int8_misses_is_solid() -> None:
    colour_at = draw(float_boxes=box(12, 5, theta_rad=0.0))
    assert all(is_colour(colour_at(x_m, 7), bev.FLOAT) for x_m in np.arange(6.5, 17.5, 0.05))


def test_the_same_picture_gives_the_same_bytes(run_report: RunReport) -> None:
    picture = run_report.pictures[0]
    first = bev.draw_bev(picture, half_width_m=HALF_WIDTH_M)
    assert bev.draw_bev(picture, half_width_m=HALF_WIDTH_M) == first


def test_without_matplotlib_the_extra_is_named(
    run_report: RunReport, monkeypatch: pytest.MonkeyPatch
) -> None:
    real_import = builtins.__import__

    def no_matplotlib(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return real_import(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", no_matplotlib)
    with pytest.raises(MissingDependencyError, match=r"voxelquant\[viz\]"):
        bev.draw_bev(run_report.pictures[0], half_width_m=HALF_WIDTH_M)
