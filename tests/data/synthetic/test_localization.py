import torch

from voxelquant.data.synthetic import SceneSpec, WorldConfig
from voxelquant.data.synthetic.layout import lay_out
from voxelquant.data.synthetic.localization import reported_ego_to_world
from voxelquant.data.synthetic.sensor import spin

CONFIG = WorldConfig()


def test_key_frames_are_exact_and_sweeps_drift_steadily_in_height_and_tilt_alone() -> None:
    scenes = lay_out([SceneSpec(5, number) for number in range(40)], CONFIG, torch.device("cpu"))
    rows = torch.arange(40).repeat_interleave(20)
    numbers = torch.arange(20).repeat(40)
    revolutions = spin(scenes, rows, numbers, CONFIG.lidar, CONFIG.sweeps - 1)
    reported = reported_ego_to_world(scenes, revolutions, CONFIG)
    error = torch.linalg.inv(revolutions.ego_to_world) @ reported
    key = (numbers == 9) | (numbers == 19)
    eye = torch.eye(4, dtype=torch.float64)
    torch.testing.assert_close(error[key], eye.expand(80, 4, 4), rtol=0, atol=1e-12)
    torch.testing.assert_close(
        error[:, :3, :3] @ error[:, :3, :3].mT, eye[:3, :3].expand(800, 3, 3)
    )
    assert error[:, :2, 3].abs().max() < 1e-9
    height = error[:, 2, 3].view(40, 20)
    torch.testing.assert_close(height[:, 0], height[:, 5] * 9 / 4)  # ages 0.45 and 0.2 s
    assert 0.015 < height[:, 0].std() < 0.045
    assert (error[:, 0, 2].view(40, 20)[:, 0]).std() < 0.003
