import torch

from voxelquant.data.synthetic import SceneSpec, WorldConfig
from voxelquant.data.synthetic.ground import ground_material, meet_ground
from voxelquant.data.synthetic.layout import lay_out
from voxelquant.data.synthetic.materials import MATERIALS
from voxelquant.data.synthetic.returns import _directions
from voxelquant.data.synthetic.road import KERB_HEIGHT_M
from voxelquant.data.synthetic.sensor import aim, spin

CONFIG = WorldConfig()


def test_the_street_is_even_and_the_grass_beyond_is_not() -> None:
    scenes = lay_out([SceneSpec(5, 1)], CONFIG, torch.device("cpu"))
    revolutions = spin(scenes, torch.tensor([0]), torch.tensor([9]), CONFIG.lidar, 9)
    direction = _directions(aim(revolutions, CONFIG.lidar))
    ground = meet_ground(scenes, revolutions, direction)
    material = ground_material(scenes, revolutions, ground)[0]
    reach = ground.range_m[0]
    near = (reach < 20) & (ground.cos[0] > 0.1)
    pose = revolutions.sensor_to_world[0]
    xyz = torch.stack([axis[0] * reach for axis in direction], dim=1).double()[near]
    world = xyz @ pose[:3, :3].T + pose[:3, 3]
    height = world[:, 2:] - scenes.road.height(world[:, :1], world[:, 1:2])
    names = [MATERIALS[index].name for index in material[near].tolist()]
    for name, level_m, most_m in (("asphalt", 0.0, 0.016), ("grass", KERB_HEIGHT_M, 0.081)):
        chosen = torch.tensor([found == name for found in names])
        rise = (height[chosen, 0] - level_m).abs()
        assert chosen.sum() > 300
        assert rise.max() < most_m
        assert rise.max() > most_m / 2


def test_rays_above_the_horizon_meet_no_ground() -> None:
    scenes = lay_out([SceneSpec(5, 1)], CONFIG, torch.device("cpu"))
    revolutions = spin(scenes, torch.tensor([0]), torch.tensor([9]), CONFIG.lidar, 9)
    beams = aim(revolutions, CONFIG.lidar)
    ground = meet_ground(scenes, revolutions, _directions(beams))
    upward = (beams.sin_elevation > 0.1).repeat(CONFIG.lidar.columns)
    assert torch.isinf(ground.range_m[0][upward]).all()
    downward = (beams.sin_elevation < -0.15).repeat(CONFIG.lidar.columns)
    assert torch.isfinite(ground.range_m[0][downward]).all()
