"""How strongly surfaces answer, which answers are heard, and how well ranges are measured.

An HDL-32E reports intensity corrected for distance, so the answer of a surface depends on its
material and on incidence alone; what limits its hearing is the light that arrives, answer over
range squared. That is why the dark disappears first: no return beyond 60 m is weaker than 16.
"""

import torch
from torch import Tensor

from voxelquant.data.hashing import (
    hash_counters,
    mix_bits,
    purpose_code,
    quarter_uniforms,
)
from voxelquant.data.synthetic.config import LidarConfig
from voxelquant.data.synthetic.layout import Scenes
from voxelquant.data.synthetic.materials import material_table
from voxelquant.data.synthetic.sensor import Revolutions
from voxelquant.data.synthetic.surfaces import Surfaces

_GROUND_ROUGHNESS = 4.0  # rough ground answers at grazing angles as if seen this much steeper
_HEARING_M2 = 235.0  # answer a at range r is heard half of the time where a = r^2 / this
_SPECKLE = 0.25  # of single returns, as an exponent of two
_STREAK = 9e-5  # range noise for each metre of range, over the cosine of incidence
_FLATTEST_COS = 0.08  # no streak and no relief is drawn out further than at this incidence
_TRIANGLE = 6.0**0.5  # (u + v - 1) sqrt(6) has unit deviation


def answer(scenes: Scenes, revolutions: Revolutions, surfaces: Surfaces, speckle: Tensor) -> Tensor:
    """Calibrated intensity before it saturates, [r, rays] float32; `speckle` in [-1, 1]."""
    table = material_table(speckle.device)
    material, thing = surfaces.material, surfaces.thing
    count = scenes.size_wlh_m.shape[1]
    # The first is the ground's: how many objects follow depends on the batch.
    counters = torch.arange(count + 1, device=thing.device)
    gloss = quarter_uniforms(hash_counters(scenes.keys ^ purpose_code("gloss"), counters))[0]
    own = (gloss * 2 - 1)[revolutions.rows].gather(1, thing + 1)
    first, second, _, _ = quarter_uniforms(mix_bits(scenes.keys[revolutions.rows] + surfaces.patch))
    patch = (first + second - 1) * table.texture[material]
    exponent = own * table.spread[material] + patch + speckle * _SPECKLE
    cos = torch.where(thing < 0, surfaces.cos * _GROUND_ROUGHNESS, surfaces.cos)
    facing = torch.log2(cos.clamp(0.02, 1.0)) * table.falloff[material]
    return table.intensity[material] * torch.exp2(exponent + facing)


def is_heard(surfaces: Surfaces, strength: Tensor, chance: Tensor, lidar: LidarConfig) -> Tensor:
    """Which rays come back, [r, rays] bool; `chance` is uniform."""
    lost = material_table(chance.device).lost[surfaces.material]
    ratio = (strength * _HEARING_M2 / (surfaces.range_m * surfaces.range_m)).clamp_max(16.0)
    power_4 = (ratio * ratio) ** 2
    heard = (1 - lost) * (1 - 1 / (1 + power_4 * power_4))
    return (chance < heard) & (surfaces.range_m < lidar.max_range_m)


def reported_intensity(surfaces: Surfaces, strength: Tensor) -> Tensor:
    """Whole numbers 0..255, [r, rays] float32."""
    ceiling = material_table(strength.device).ceiling[surfaces.material]
    return torch.round(torch.minimum(strength, ceiling))


def range_error_m(
    scenes: Scenes,
    revolutions: Revolutions,
    surfaces: Surfaces,
    noise: tuple[Tensor, Tensor],
    lidar: LidarConfig,
) -> Tensor:
    """Error of each range, [r, rays] float32: of the ring, the pulse, its streak, the relief.

    A pulse that meets a surface at a flat angle comes back as long as its streak on it. Relief is
    no error of the sensor: it stands for the parts of a surface that its plane leaves out.
    """
    rings = torch.arange(lidar.rings, device=revolutions.rows.device)
    keys = scenes.keys[revolutions.rows] ^ purpose_code("ring bias")
    first, second, _, _ = quarter_uniforms(hash_counters(keys, rings))  # [r, rings]
    bias = (first + second - 1) * (_TRIANGLE * lidar.ring_bias_m)
    cos = surfaces.cos.clamp_min(_FLATTEST_COS)
    streak = surfaces.range_m.clamp_max(lidar.max_range_m) / cos
    relief = material_table(bias.device).relief_m[surfaces.material]
    relief = relief / cos
    deviation = torch.sqrt(lidar.range_noise_m**2 + (streak * _STREAK) ** 2 + relief * relief)
    noisy = (noise[0] + noise[1] - 1) * _TRIANGLE * deviation
    return noisy + bias.repeat(1, lidar.columns)
