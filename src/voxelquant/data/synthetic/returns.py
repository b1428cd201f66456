"""From rays to points: the nearest surface, what is heard of it, and what is reported."""

from dataclasses import dataclass

import torch
from torch import Tensor

from voxelquant.data.hashing import hash_counters, mix_bits, quarter_uniforms
from voxelquant.data.synthetic.casting import cast, unpack
from voxelquant.data.synthetic.clutter import report_clutter
from voxelquant.data.synthetic.config import LidarConfig
from voxelquant.data.synthetic.ground import Vector, ground_material, meet_ground
from voxelquant.data.synthetic.layout import Scenes
from voxelquant.data.synthetic.reflection import (
    answer,
    is_heard,
    range_error_m,
    reported_intensity,
)
from voxelquant.data.synthetic.sensor import Beams, Revolutions, aim
from voxelquant.data.synthetic.solids import collect_solids
from voxelquant.data.synthetic.surfaces import Surfaces, nearest_surfaces

_LEAF_FREE_PATH_M = 0.1  # within a clump


@dataclass(frozen=True)
class Returns:
    """What a batch of revolutions reports, [r, rays] in firing order; every ray reports."""

    answered: Tensor  # bool: by a surface of the scene; else clutter near the sensor
    xyz: Vector  # float32 metres in the LiDAR frame of the revolution
    intensity: Tensor  # float32, whole numbers 0..255
    thing: Tensor  # int64, column of the scene's objects; -1 for the ground and for clutter
    surface_m: Tensor  # float32, range to the nearest surface, heard or not; inf: the sky
    measured_m: Tensor  # float32, measured range; inf where not answered

    def at(self, chosen: Tensor) -> "Returns":
        """The returns of some of the revolutions."""
        x, y, z = self.xyz
        return Returns(
            answered=self.answered[chosen],
            xyz=(x[chosen], y[chosen], z[chosen]),
            intensity=self.intensity[chosen],
            thing=self.thing[chosen],
            surface_m=self.surface_m[chosen],
            measured_m=self.measured_m[chosen],
        )


def fire(scenes: Scenes, revolutions: Revolutions, lidar: LidarConfig) -> Returns:
    """All returns of the given revolutions."""
    beams = aim(revolutions, lidar)
    ray_count = torch.arange(lidar.rays, device=revolutions.rows.device)
    words = hash_counters(revolutions.ray_keys, ray_count)  # [r, rays]
    first, second, chance, speckle = quarter_uniforms(words)
    leaf, _, _, _ = quarter_uniforms(mix_bits(words))
    direction = _directions(beams)
    surfaces = _find_surfaces(scenes, revolutions, beams, direction, leaf, lidar)
    strength = answer(scenes, revolutions, surfaces, speckle * 2 - 1)
    heard = is_heard(surfaces, strength, chance, lidar)
    answered = heard & ~beams.blanked.view(words.shape)
    error_m = range_error_m(scenes, revolutions, surfaces, (first, second), lidar)
    measured_m = surfaces.range_m + error_m
    clutter = report_clutter(scenes, revolutions, beams, direction, chance, lidar)
    x, y, z = (
        torch.where(answered, along * measured_m, near)
        for along, near in zip(direction, clutter.xyz, strict=True)
    )
    intensity = reported_intensity(surfaces, strength)
    return Returns(
        answered=answered,
        xyz=(x, y, z),
        intensity=torch.where(answered, intensity, clutter.intensity),
        thing=torch.where(answered, surfaces.thing, -1),
        surface_m=surfaces.range_m,
        measured_m=torch.where(answered, measured_m, torch.inf),
    )


def _find_surfaces(
    scenes: Scenes,
    revolutions: Revolutions,
    beams: Beams,
    direction: Vector,
    leaf: Tensor,
    lidar: LidarConfig,
) -> Surfaces:
    """What each ray meets first; `leaf` [r, rays] is uniform."""
    solids = collect_solids(scenes, revolutions, lidar)
    leaf_depth = -torch.log1p(-leaf) * _LEAF_FREE_PATH_M
    keys = cast(solids, beams, revolutions.phase_rad, leaf_depth.view(-1), lidar)
    range_m, solid = (part.view(leaf.shape) for part in unpack(keys))
    ground = meet_ground(scenes, revolutions, direction)
    material = ground_material(scenes, revolutions, ground)
    return nearest_surfaces(solids, (range_m, solid), ground, material, direction)


def _directions(beams: Beams) -> Vector:
    """Unit directions in the LiDAR frame, three [r, rays]."""
    x = beams.cos_azimuth[..., None] * beams.cos_elevation
    y = beams.sin_azimuth[..., None] * beams.cos_elevation
    z = beams.sin_elevation.expand_as(x)
    return x.flatten(1), y.flatten(1), z.flatten(1)
