"""Answers, hearing and range errors, on surfaces made by hand."""

import torch

from voxelquant.data.synthetic import SceneSpec, WorldConfig
from voxelquant.data.synthetic.layout import Scenes, lay_out
from voxelquant.data.synthetic.materials import DIFFUSE_CEILING, MATERIAL_INDEX, MATERIALS
from voxelquant.data.synthetic.reflection import (
    answer,
    is_heard,
    range_error_m,
    reported_intensity,
)
from voxelquant.data.synthetic.sensor import Revolutions, spin
from voxelquant.data.synthetic.surfaces import Surfaces

CONFIG = WorldConfig()
LIDAR = CONFIG.lidar
RAYS = LIDAR.rays
OBJECTS = 40  # fewer than the scene below has


def a_revolution() -> tuple[Scenes, Revolutions]:
    scenes = lay_out([SceneSpec(3, 0)], CONFIG, torch.device("cpu"))
    assert scenes.present.shape[1] >= OBJECTS
    return scenes, spin(scenes, torch.tensor([0]), torch.tensor([9]), LIDAR, 9)


def surfaces_of(material: str, range_m: float, cos: float = 1.0) -> Surfaces:
    """One surface for every ray; each ray meets another patch and another object."""
    number = torch.arange(RAYS)[None]
    return Surfaces(
        range_m=torch.full((1, RAYS), range_m),
        cos=torch.full((1, RAYS), cos),
        material=torch.full((1, RAYS), MATERIAL_INDEX[material]),
        thing=number % OBJECTS,
        patch=number,
    )


def uniforms(seed: int) -> torch.Tensor:
    return torch.rand((1, RAYS), generator=torch.Generator().manual_seed(seed))


def test_only_retro_reflectors_answer_above_a_hundred() -> None:
    scenes, revolutions = a_revolution()
    for material in MATERIALS:
        surfaces = surfaces_of(material.name, 10.0)
        strength = answer(scenes, revolutions, surfaces, uniforms(0) * 2 - 1)
        reported = reported_intensity(surfaces, strength)
        assert torch.equal(reported, reported.round())
        assert reported.min() >= 0
        assert reported.max() <= (255 if material.retro else DIFFUSE_CEILING)
        if material.retro:
            assert (reported > 100).float().mean() > 0.4
        else:
            assert 0.5 < reported.median() / material.intensity < 2


def test_answers_weaken_at_flat_angles_and_glossy_ones_more() -> None:
    scenes, revolutions = a_revolution()
    left = {}
    for name in ("glass", "facade"):
        facing, flat = (
            answer(scenes, revolutions, surfaces_of(name, 10.0, cos), torch.zeros(1, RAYS))
            for cos in (1.0, 0.1)
        )
        torch.testing.assert_close(flat / facing, (flat / facing)[:, :1].expand(1, RAYS))
        left[name] = float((flat / facing)[0, 0])
    assert left["glass"] < left["facade"] < 0.4


def test_hearing_is_limited_by_answer_over_range_squared() -> None:
    heard = {
        (strength, range_m): float(
            is_heard(
                surfaces_of("facade", range_m),
                torch.full((1, RAYS), strength),
                uniforms(1),
                LIDAR,
            )
            .float()
            .mean()
        )
        for strength, range_m in (
            (4.0, 10.0),
            (6.8, 40.0),
            (4.0, 40.0),
            (20.0, 60.0),
            (99.0, 101.0),
        )
    }
    assert heard[4.0, 10.0] > 0.999
    assert 0.45 < heard[6.8, 40.0] < 0.55
    assert heard[4.0, 40.0] < 0.03
    assert heard[20.0, 60.0] > 0.8
    assert heard[99.0, 101.0] == 0  # beyond the sensor's range whatever answers


def test_asphalt_vanishes_at_grazing_angles() -> None:
    scenes, revolutions = a_revolution()
    shares = []
    for range_m in (10.0, 25.0, 50.0, 65.0):
        surfaces = surfaces_of("asphalt", range_m, LIDAR.mount_xyz_m[2] / range_m)
        surfaces.thing.fill_(-1)
        strength = answer(scenes, revolutions, surfaces, torch.zeros(1, RAYS))
        shares.append(float(is_heard(surfaces, strength, uniforms(2), LIDAR).float().mean()))
    assert shares[0] > 0.95
    assert shares[1] > 0.5
    assert shares[2] < 0.2
    assert shares[3] < 0.05


def test_rings_have_a_bias_of_their_own_and_flat_angles_are_noisier() -> None:
    scenes, revolutions = a_revolution()
    noise = (uniforms(3), uniforms(4))
    facing = range_error_m(scenes, revolutions, surfaces_of("paint", 10.0), noise, LIDAR)
    by_ring = facing.view(LIDAR.columns, LIDAR.rings)
    assert 0.5 < by_ring.mean(0).std() / LIDAR.ring_bias_m < 1.6
    assert 0.8 < by_ring.std(0).mean() / LIDAR.range_noise_m < 1.2
    flat = range_error_m(scenes, revolutions, surfaces_of("paint", 10.0, 0.1), noise, LIDAR)
    assert flat.std() > facing.std()
    wall = range_error_m(scenes, revolutions, surfaces_of("facade", 10.0), noise, LIDAR)
    assert 0.04 < wall.std() < 0.07
