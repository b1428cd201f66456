"""Pictures of synthetic scenes: from above with their boxes, and in perspective."""

import math
from typing import Any

import numpy as np
import torch
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

from voxelquant.data.frame import Frame
from voxelquant.data.synthetic import WorldConfig, generate_frames
from voxelquant.geometry import box_corners_3d
from voxelquant.report.bev import GRID_TEXT, GROUND, HEIGHTS, TRUTH, draw_frame
from voxelquant.report.model import FramePicture

SCENES = (0, 5, 11, 17)
DPI = 110
HALF_WIDTH_M = 50
# A camera behind and above the sensor, which looks forward (y) and down.
EYE_M, PITCH_RAD, FOCAL = (0.0, -17.0, 11.0), math.radians(21), 1.15
EDGES = (
    (0, 1),
    (1, 2),
    (2, 3),
    (3, 0),
    (4, 5),
    (5, 6),
    (6, 7),
    (7, 4),
    (0, 4),
    (1, 5),
    (2, 6),
    (3, 7),
)
COLD = LinearSegmentedColormap.from_list("heights", ["#1c2740", *HEIGHTS, "#e6ebf5"])


def draw_scenes(seed: int, config: WorldConfig) -> tuple[Figure, Figure]:
    """Four scenes from above, and the same in perspective."""
    frames = generate_frames(seed, SCENES, key_frames=1, config=config)
    above = Figure(figsize=(11, 11), dpi=DPI, facecolor=GROUND)
    view = Figure(figsize=(11, 7.2), dpi=DPI, facecolor=GROUND)
    for place, frame in enumerate(frames):
        column, row = place % 2, place // 2
        box = (column * 0.5 + 0.004, 0.504 - row * 0.5, 0.492, 0.492)
        draw_above(above.add_axes(box), frame)
        draw_perspective(view.add_axes(box), frame)
        for figure in (above, view):
            figure.text(box[0] + 0.008, box[1] + 0.47, f"scene {SCENES[place]}", color=GRID_TEXT,
                        fontsize=10, va="center")  # fmt: skip
    return above, view


def draw_above(axes: Any, frame: Frame) -> None:
    """The key frame and its sweeps from above, and the boxes with a point."""
    none = np.zeros((0, 9), dtype=np.float32)
    boxes = seen_boxes(frame).numpy()
    picture = FramePicture("", frame.points.numpy(), boxes, none, none)
    draw_frame(axes, picture, half_width_m=HALF_WIDTH_M)


def seen_boxes(frame: Frame) -> Tensor:
    """Boxes with at least one point, [n, 9]."""
    assert frame.boxes_det3d is not None
    assert frame.num_lidar_pts is not None
    return frame.boxes_det3d[frame.num_lidar_pts > 0]


def draw_perspective(axes: Any, frame: Frame) -> None:
    """The key frame and its sweeps as a camera behind the vehicle would see them."""
    axes.set_axis_off()
    axes.set_xlim(-1, 1)
    axes.set_ylim(-0.62, 0.62)
    points = frame.points.double()
    picture, depth = project(points[:, :3])
    ahead = depth > 2.0
    order = np.argsort(-depth[ahead])  # what is near hides what is far
    seen, height = picture[ahead][order], points[:, 2].numpy()[ahead][order]
    sizes = np.clip(26.0 / depth[ahead][order], 0.25, 2.5)
    axes.scatter(seen[:, 0], seen[:, 1], c=height, s=sizes, lw=0, cmap=COLD, vmin=-2.2, vmax=4)
    for corners in box_corners_3d(seen_boxes(frame).double()):
        spots, away = project(corners)
        if away.min() > 2.0:
            for first, last in EDGES:
                axes.plot(*spots[[first, last]].T, color=TRUTH, lw=0.8, alpha=0.85)


def project(xyz_m: Tensor) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Pinhole projection of points [p, 3]: picture coordinates [p, 2] and depth [p] in metres."""
    moved = xyz_m - torch.tensor(EYE_M, dtype=torch.float64)
    cos, sin = math.cos(PITCH_RAD), math.sin(PITCH_RAD)
    depth = moved[:, 1] * cos - moved[:, 2] * sin
    up = moved[:, 1] * sin + moved[:, 2] * cos
    picture = FOCAL * torch.stack([moved[:, 0], up], dim=1) / depth.clamp_min(0.1)[:, None]
    return picture.numpy(), depth.numpy()
