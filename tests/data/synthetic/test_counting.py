import math

import pytest
import torch
from torch import Tensor

from voxelquant.data.synthetic import SceneSpec, WorldConfig, generate_frames
from voxelquant.data.synthetic.annotate import annotate
from voxelquant.data.synthetic.layout import lay_out
from voxelquant.data.synthetic.returns import fire
from voxelquant.data.synthetic.sensor import spin

CONFIG = WorldConfig(class_mix="balanced")  # many objects of every class in few frames


def points_in_box(xyz: Tensor, box: Tensor, slack_m: float) -> int:
    """Oracle: every point against one upright box x, y, z, w, l, h, vx, vy, yaw_det3d."""
    theta = -box[8] - math.pi / 2
    local = xyz - box[:3]
    along = local[:, 0] * theta.cos() + local[:, 1] * theta.sin()
    across = local[:, 1] * theta.cos() - local[:, 0] * theta.sin()
    width, length, height = (box[3:6] / 2 + slack_m).tolist()
    inside = (along.abs() < length) & (across.abs() < width) & (local[:, 2].abs() < height)
    return int(inside.sum())


def test_all_points_in_a_box_are_counted_whoever_they_come_from() -> None:
    # Without a lean of the sensor and slopes boxes would be upright in its frame; they nearly are.
    frame = generate_frames(seed=5, scenes=[2], key_frames=1)[0]
    key = frame.points[frame.points[:, 4] == 0][:, :3].double()
    checked = 0
    for box, counted in zip(frame.boxes_det3d.double(), frame.num_lidar_pts.tolist(), strict=True):
        if box[:2].norm() > 40:
            continue
        lean_m = 0.05 * float(box[3:6].max()) / 2 + 0.01
        assert points_in_box(key, box, -lean_m) <= counted <= points_in_box(key, box, lean_m)
        checked += counted
    assert checked > 2000


@pytest.mark.parametrize("scene", [0, 1])
def test_points_of_an_object_lie_in_its_box_and_are_counted(scene: int) -> None:
    scenes = lay_out([SceneSpec(5, scene)], CONFIG, torch.device("cpu"))
    revolutions = spin(scenes, torch.tensor([0]), torch.tensor([9]), CONFIG.lidar, 9)
    returns = fire(scenes, revolutions, CONFIG.lidar)
    truth = annotate(scenes, revolutions, returns, CONFIG)
    points, in_view = truth.points[0], truth.in_view[0]
    of_object = torch.stack([(returns.thing[0] == thing).sum() for thing in range(len(points))])
    many = truth.annotated[0] & (of_object > 30)
    assert many.sum() >= 5
    assert (points[many] > 0.6 * of_object[many]).all()  # noise puts some before the surface
    assert points[many].sum() > 0.85 * of_object[many].sum()
    assert ((in_view >= 0) & (in_view <= 1)).all()
    assert (in_view[many] > 0).all()
    assert not truth.points[0][~truth.annotated[0]].any()


def test_what_stands_behind_a_truck_is_not_in_view() -> None:
    frames = []
    shares = []
    for scene in range(4):
        scenes = lay_out([SceneSpec(5, scene)], CONFIG, torch.device("cpu"))
        revolutions = spin(scenes, torch.tensor([0]), torch.tensor([9]), CONFIG.lidar, 9)
        returns = fire(scenes, revolutions, CONFIG.lidar)
        truth = annotate(scenes, revolutions, returns, CONFIG)
        shares.append(truth.in_view[0][truth.annotated[0]])
        frames.append(truth.points[0][truth.annotated[0]])
    share, points = torch.cat(shares), torch.cat(frames)
    assert (share > 0.9).float().mean() > 0.2
    assert (share < 0.1).float().mean() > 0.1
    assert points[share == 0].sum() == 0
    assert points[share > 0.9].double().median() > points[share < 0.4].double().median()
