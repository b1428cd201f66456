import dataclasses
import math

import torch

from voxelquant.data.synthetic import SceneSpec, WorldConfig
from voxelquant.data.synthetic.layout import Scenes, lay_out, object_poses
from voxelquant.data.synthetic.sensor import Revolutions, spin
from voxelquant.data.synthetic.solids import collect_solids, poses_under_the_beam
from voxelquant.data.synthetic.taxonomy import KIND_INDEX, N_CLASSES

CONFIG = WorldConfig()
LIDAR = CONFIG.lidar


def two_revolutions(scene: int) -> tuple[Scenes, Revolutions]:
    scenes = lay_out([SceneSpec(5, scene)], CONFIG, torch.device("cpu"))
    return scenes, spin(scenes, torch.tensor([0, 0]), torch.tensor([5, 9]), LIDAR, 9)


def test_every_part_of_an_annotated_object_stays_within_its_box() -> None:
    for scene in range(3):
        scenes, revolutions = two_revolutions(scene)
        solids = collect_solids(scenes, revolutions, LIDAR)
        poses = poses_under_the_beam(scenes, revolutions, LIDAR)
        annotated = scenes.slots.kind[0][solids.thing] < N_CLASSES
        at = (solids.revolution, solids.thing)
        sensor = revolutions.sensor_to_world[solids.revolution]
        corners = solids.corners_m.double() @ sensor[:, :3, :3].mT + sensor[:, None, :3, 3]
        dx, dy = corners[..., 0] - poses.x[at][:, None], corners[..., 1] - poses.y[at][:, None]
        cos, sin = (turn(poses.heading_rad[at])[:, None] for turn in (torch.cos, torch.sin))
        width, length, height = scenes.size_wlh_m[0][solids.thing].unbind(-1)
        along, across = dx * cos + dy * sin, dy * cos - dx * sin
        up = corners[..., 2] - poses.z[at][:, None]
        slack = 0.004 + 2e-5  # the thinnest parts are 8 mm thick
        assert (along.abs().amax(1) < length / 2 + slack)[annotated].all()
        assert (across.abs().amax(1) < width / 2 + slack)[annotated].all()
        assert (up.amax(1) < height + slack)[annotated].all()
        assert (up.amin(1) > -slack)[annotated].all()


def test_walking_people_move_their_legs_and_standing_ones_do_not() -> None:
    scenes, revolutions = two_revolutions(1)
    solids = collect_solids(scenes, revolutions, LIDAR)
    poses = poses_under_the_beam(scenes, revolutions, LIDAR)
    person = (scenes.slots.kind[0] == KIND_INDEX["pedestrian"]) & scenes.present[0]
    moved = {True: [], False: []}
    for thing in torch.nonzero(person)[:, 0].tolist():
        offsets = []
        for revolution in (0, 1):
            leg = (solids.thing == thing) & (solids.part == 0) & (solids.revolution == revolution)
            if leg.sum() != 1:
                break
            sensor = revolutions.sensor_to_world[revolution]
            centre = sensor[:3, :3] @ solids.corners_m[leg][0].mean(0).double() + sensor[:3, 3]
            heading = poses.heading_rad[revolution, thing]
            dx, dy = centre[0] - poses.x[revolution, thing], centre[1] - poses.y[revolution, thing]
            offsets.append(float(dx * heading.cos() + dy * heading.sin()))
        else:
            walks = bool(scenes.slots.speed_mps[0, thing] != 0)
            moved[walks].append(abs(offsets[1] - offsets[0]))
    assert len(moved[True]) >= 3
    assert max(moved[True]) > 0.1
    assert all(distance < 1e-4 for distance in moved[False])


def test_the_beam_meets_objects_in_the_order_of_their_azimuth() -> None:
    scenes, revolutions = two_revolutions(0)
    moving = dataclasses.replace(scenes.slots, speed_mps=torch.full_like(scenes.slots.d_m, 10.0))
    scenes = dataclasses.replace(scenes, slots=moving)
    stamped = object_poses(scenes, revolutions.rows, revolutions.time_s)
    met = poses_under_the_beam(scenes, revolutions, LIDAR)
    way = torch.hypot(met.x - stamped.x, met.y - stamped.y)[1]
    inside = 1 - scenes.road.curvature_per_m[0] * scenes.slots.d_m[0]  # shorter inside of curves
    left = way / (10.0 * 0.05 * inside)  # share of the revolution that was left
    sensor = revolutions.sensor_to_world[1]
    dx, dy = stamped.x[1] - sensor[0, 3], stamped.y[1] - sensor[1, 3]
    x = sensor[0, 0] * dx + sensor[1, 0] * dy
    y = sensor[0, 1] * dx + sensor[1, 1] * dy
    turned = (revolutions.phase_rad[1] - torch.atan2(y, x)) / (2 * math.pi)
    far = torch.hypot(dx, dy) > 5
    torch.testing.assert_close((1 - turned % 1.0)[far], left[far], rtol=0, atol=2e-2)
