import math

import pytest
import torch

from voxelquant.data.frame import Frame
from voxelquant.data.synthetic import SceneSpec, WorldConfig, generate_frames
from voxelquant.data.synthetic.annotate import annotate
from voxelquant.data.synthetic.layout import lay_out, object_poses
from voxelquant.data.synthetic.materials import material_table
from voxelquant.data.synthetic.parts import BOX
from voxelquant.data.synthetic.returns import fire
from voxelquant.data.synthetic.road import KERB_HEIGHT_M
from voxelquant.data.synthetic.sensor import spin
from voxelquant.data.synthetic.solids import collect_solids, poses_under_the_beam
from voxelquant.errors import DatasetError

CONFIG = WorldConfig(class_mix="balanced")  # many objects of every class in few frames
# Triangular noise is bounded, and so is the streak that adds to it with range.
NOISE_LIMIT_M = 2.45 * (CONFIG.lidar.range_noise_m + CONFIG.lidar.ring_bias_m)
STREAK_LIMIT = 2.45 * 9e-5 / 0.08
GRASS_LIMIT_M = 2.45 * 0.006 + 0.08  # its relief and its bumps
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def frames() -> list[Frame]:
    return generate_frames(seed=5, scenes=[0, 1, 2], key_frames=2, config=CONFIG)


def assert_equal_frames(first: Frame, second: Frame) -> None:
    assert first.token == second.token
    for name, value in vars(first).items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(value, getattr(second, name)), name


def test_a_scene_does_not_depend_on_its_batch(frames: list[Frame]) -> None:
    alone = generate_frames(seed=5, scenes=[1], key_frames=2, config=CONFIG)
    assert_equal_frames(alone[0], frames[2])
    assert_equal_frames(alone[1], frames[3])


def test_seeds_and_scenes_differ(frames: list[Frame]) -> None:
    other = generate_frames(seed=6, scenes=[0], key_frames=1, config=CONFIG)[0]
    tokens = {frame.token for frame in [*frames, other]}
    assert len(tokens) == 7
    assert other.points.shape != frames[0].points.shape
    assert not torch.equal(other.boxes_det3d[:5], frames[0].boxes_det3d[:5])


def test_a_frame_is_what_the_contract_says(frames: list[Frame]) -> None:
    for frame in frames:
        points = frame.points
        assert points.dtype == torch.float32
        assert points.shape[1] == 5
        assert torch.isfinite(points).all()
        assert points[:, 3].min() >= 0
        assert points[:, 3].max() <= 255
        expected_dt = (torch.arange(10, dtype=torch.float64) * 0.05).float()
        assert torch.equal(torch.unique_consecutive(points[:, 4]), expected_dt)
        key = points[:, 4] == 0
        assert key.sum() == CONFIG.lidar.rays  # every ray reports, as in nuScenes' files
        clutter = key & (points[:, :2].norm(dim=1) < 1.5)
        assert 5_000 < clutter.sum() < 20_000
        count = len(frame.labels)
        assert frame.boxes_det3d.shape == (count, 9)
        assert frame.boxes_det3d.dtype == torch.float32
        assert frame.labels.dtype == frame.num_lidar_pts.dtype == torch.int64
        assert frame.num_lidar_pts.shape == (count,)
        assert 30 <= count <= 150
        assert (frame.boxes_det3d[:, 3:6] > 0).all()
        assert (frame.boxes_det3d[:, 8].abs() <= math.pi + 1e-6).all()


def test_returns_lie_where_their_objects_are_when_the_beam_passes() -> None:
    scenes = lay_out([SceneSpec(5, 0)], CONFIG, CPU)
    revolutions = spin(scenes, torch.tensor([0]), torch.tensor([9]), CONFIG.lidar, 9)
    returns = fire(scenes, revolutions, CONFIG.lidar)
    truth = annotate(scenes, revolutions, returns, CONFIG)
    poses = poses_under_the_beam(scenes, revolutions, CONFIG.lidar)
    stamped = object_poses(scenes, revolutions.rows, revolutions.time_s)
    lag_m = torch.hypot(poses.x - stamped.x, poses.y - stamped.y)
    speed = truth.velocity_mps.norm(dim=-1)
    assert (lag_m <= speed * 0.0505).all()
    assert lag_m[truth.annotated].max() > 0.2
    pose = revolutions.sensor_to_world[0]
    checked = 0
    for thing in torch.nonzero(truth.annotated[0])[:, 0].tolist():
        hit = returns.thing[0] == thing
        xyz = torch.stack([axis[0][hit] for axis in returns.xyz], dim=1).double()
        local = xyz @ pose[:3, :3].T + pose[:3, 3]
        local = local - truth.centre_xyz_m[0, thing]
        angle = truth.heading_rad[0, thing]
        along = local[:, 0] * angle.cos() + local[:, 1] * angle.sin()
        across = local[:, 1] * angle.cos() - local[:, 0] * angle.sin()
        limit = scenes.size_wlh_m[0, thing] / 2 + NOISE_LIMIT_M + 0.005  # [3]
        limit = limit + STREAK_LIMIT * xyz.norm(dim=1, keepdim=True)
        assert (across.abs() <= limit[:, 0]).all()
        assert (along.abs() <= limit[:, 1]).all()
        assert (local[:, 2].abs() <= limit[:, 2]).all()
        checked += len(xyz)
    assert checked > 1500


def test_nothing_is_measured_inside_a_solid_or_below_the_ground() -> None:
    scenes = lay_out([SceneSpec(5, 1)], CONFIG, CPU)
    revolutions = spin(scenes, torch.tensor([0]), torch.tensor([12]), CONFIG.lidar, 9)
    returns = fire(scenes, revolutions, CONFIG.lidar)
    xyz = torch.stack([axis[0][returns.answered[0]] for axis in returns.xyz], dim=1)
    solids = collect_solids(scenes, revolutions, CONFIG.lidar)
    smooth = material_table(CPU).relief_m[solids.material] == 0
    hard = (solids.solid == BOX) & ~solids.leafy & (solids.taper == 0).all(1) & smooth
    hard = torch.nonzero(hard)[:, 0]
    streak_m = STREAK_LIMIT * xyz.norm(dim=1)
    for row in hard.tolist():
        unit = xyz @ solids.to_unit[row].T + solids.origin[row]
        depth_m = ((1 - unit.abs()) * solids.half_m[row]).amin(1)
        assert (depth_m - streak_m).max() < NOISE_LIMIT_M + 0.005
    world = xyz.double() @ revolutions.sensor_to_world[0, :3, :3].T
    world = world + revolutions.sensor_to_world[0, :3, 3]
    height = world[:, 2:] - scenes.road.height(world[:, :1], world[:, 1:2])
    assert height.min() > -NOISE_LIMIT_M - GRASS_LIMIT_M
    on_road = height.abs() < NOISE_LIMIT_M
    on_walk = (height - KERB_HEIGHT_M).abs() < NOISE_LIMIT_M
    assert on_road.double().mean() > 0.25
    assert on_walk.double().mean() > 0.02


def test_the_ground_is_measured_where_it_is_on_hills_and_at_crossings() -> None:
    scenes = lay_out([SceneSpec(5, scene) for scene in range(12)], CONFIG, CPU)
    rows = torch.arange(12)
    revolutions = spin(scenes, rows, torch.full_like(rows, 9), CONFIG.lidar, 9)
    returns = fire(scenes, revolutions, CONFIG.lidar)
    far = 0
    for row in range(12):
        ground = returns.answered[row] & (returns.thing[row] < 0)
        xyz = torch.stack([axis[row][ground] for axis in returns.xyz], dim=1).double()
        pose = revolutions.sensor_to_world[row]
        world = xyz @ pose[:3, :3].T + pose[:3, 3]
        road = scenes.road.at(torch.tensor([row]))
        above = world[:, 2] - road.height(world[None, :, 0], world[None, :, 1])[0]
        assert above.min() > -NOISE_LIMIT_M - GRASS_LIMIT_M
        assert above.max() < KERB_HEIGHT_M + NOISE_LIMIT_M + GRASS_LIMIT_M
        far += int((xyz.norm(dim=1) > 30).sum())
    assert scenes.road.side_street.here.any()
    assert far > 12 * 100


def test_moving_objects_smear_along_their_velocity_across_sweeps() -> None:
    frame = generate_frames(seed=5, scenes=[3], key_frames=1, config=CONFIG)[0]
    points, boxes = frame.points, frame.boxes_det3d
    speed = boxes[:, 6:8].norm(dim=1)
    moved = 0
    for box, pace, hits in zip(boxes, speed, frame.num_lidar_pts, strict=True):
        if pace < 4 or hits < 30 or box[:2].norm() > 30 or box[2] < -3:
            continue
        theta = -box[8] - math.pi / 2
        for dt_s in (0.0, 0.45):
            centre = box[:2] - box[6:8] * dt_s
            offset = points[(points[:, 4] - dt_s).abs() < 1e-3][:, :3]
            local = offset[:, :2] - centre
            along = local[:, 0] * theta.cos() + local[:, 1] * theta.sin()
            across = local[:, 1] * theta.cos() - local[:, 0] * theta.sin()
            near = (along.abs() < box[4] / 2 + 0.1) & (across.abs() < box[3] / 2 + 0.1)
            upper = near & (offset[:, 2] > box[2] - box[5] / 4)
            assert upper.sum() > hits / 10  # of all points in the box
        moved += 1
    assert moved >= 1


def test_velocities_are_those_of_the_boxes_between_key_frames(frames: list[Frame]) -> None:
    first, second = frames[0], frames[1]
    to_global = [frame.ego_to_global @ frame.ref_to_ego for frame in (first, second)]
    centres = [
        frame.boxes_det3d[:, :3].double() @ pose[:3, :3].T + pose[:3, 3]
        for frame, pose in zip((first, second), to_global, strict=True)
    ]
    still = first.boxes_det3d[:, 6:8].norm(dim=1) == 0
    distance = torch.cdist(centres[0][still], centres[1]).amin(1)
    near = first.boxes_det3d[still, :2].norm(dim=1) < 50
    assert distance[near].max() < 1e-3
    fast = first.boxes_det3d[:, 6:8].norm(dim=1) > 1
    rotation = to_global[0][:3, :3]
    velocity = torch.nn.functional.pad(first.boxes_det3d[fast, 6:8].double(), (0, 1))
    expected = centres[0][fast] + velocity @ rotation.T * 0.5
    near = first.boxes_det3d[fast, :2].norm(dim=1) < 40
    assert near.sum() >= 3
    assert torch.cdist(expected, centres[1]).amin(1)[near].max() < 0.25  # 7 m along a curve


@pytest.mark.parametrize(
    ("seed", "scene", "key_frames"), [(-1, 0, 2), (0, -1, 2), (0, 0, 0), (0, 0, 99)]
)
def test_impossible_scenes_are_refused(seed: int, scene: int, key_frames: int) -> None:
    with pytest.raises(DatasetError):
        generate_frames(seed=seed, scenes=[scene], key_frames=key_frames)
