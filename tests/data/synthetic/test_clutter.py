import dataclasses

import torch

from voxelquant.data.synthetic import SceneSpec, WorldConfig
from voxelquant.data.synthetic.layout import Scenes, lay_out
from voxelquant.data.synthetic.returns import Returns, fire
from voxelquant.data.synthetic.sensor import Revolutions, aim, spin

CONFIG = WorldConfig()
LIDAR = CONFIG.lidar


def a_key_frame(ego_speed_mps: float) -> tuple[Scenes, Revolutions, Returns]:
    scenes = lay_out([SceneSpec(5, 0)], CONFIG, torch.device("cpu"))
    speed = torch.full_like(scenes.ego_speed_mps, ego_speed_mps)
    scenes = dataclasses.replace(scenes, ego_speed_mps=speed)
    revolutions = spin(scenes, torch.tensor([0]), torch.tensor([9]), LIDAR, 9)
    return scenes, revolutions, fire(scenes, revolutions, LIDAR)


def test_every_ray_reports_and_those_without_an_answer_lie_close() -> None:
    _, _, returns = a_key_frame(10.0)
    x, y, z = returns.xyz
    range_m = torch.sqrt(x * x + y * y + z * z)
    assert torch.isfinite(range_m).all()
    assert range_m[~returns.answered].max() < 1.7
    assert range_m[returns.answered].min() > 0.3
    assert 0.15 < (~returns.answered).double().mean() < 0.5
    assert torch.isinf(returns.measured_m[~returns.answered]).all()
    assert (returns.thing[~returns.answered] == -1).all()


def test_silent_rays_trail_behind_the_sensor_by_what_is_driven_until_the_stamp() -> None:
    _, revolutions, returns = a_key_frame(10.0)
    silent = ~returns.answered[0] & ~aim(revolutions, LIDAR).blanked[0].flatten()
    column = torch.arange(LIDAR.rays) // LIDAR.rings
    x, y, z = (axis[0][silent] for axis in returns.xyz)
    torch.testing.assert_close(y, -(1 - column[silent] / LIDAR.columns) * 0.5)
    assert x.abs().max() < 1e-6
    assert z.abs().max() == 0
    by_ring = returns.intensity[0].view(-1, LIDAR.rings)[:, 25][silent.view(-1, LIDAR.rings)[:, 25]]
    assert len(torch.unique(by_ring)) == 1


def test_the_roof_hides_the_ground_behind_more_than_beside() -> None:
    _, revolutions, returns = a_key_frame(0.0)
    beams = aim(revolutions, LIDAR)
    hidden = beams.blanked[0].double().mean(0)
    assert hidden[0] > 0.75
    assert hidden[9:].max() == 0
    assert (hidden[:8] >= hidden[1:9]).all()
    roof = beams.blanked[0].flatten()
    torch.testing.assert_close(returns.xyz[2][0][roof], torch.full((int(roof.sum()),), -0.35))
