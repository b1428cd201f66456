"""From rays to points: the ground, noise, intensity, and the rays that never come back."""

from dataclasses import dataclass

import torch
from torch import Tensor

from voxelquant.data.synthetic.casting import cast, unpack
from voxelquant.data.synthetic.config import LidarConfig
from voxelquant.data.synthetic.hashing import hash_counters, mix_bits, quarter_uniforms
from voxelquant.data.synthetic.layout import Scenes
from voxelquant.data.synthetic.materials import MATERIAL_INDEX, material_table
from voxelquant.data.synthetic.parts import BOX
from voxelquant.data.synthetic.road import KERB_HEIGHT_M, LANE_M
from voxelquant.data.synthetic.sensor import Beams, Revolutions, aim
from voxelquant.data.synthetic.solids import Solids, collect_solids

_LEAF_FREE_PATH_M = 0.7
_GROUND_ROUGHNESS = 3.0  # rough ground answers at grazing angles as if seen this much steeper
_DETECTION = 0.55  # signal at which half of the returns are lost, in units of _signal
_TRIANGLE = 6.0**0.5  # (u + v - 1) sqrt(6) has unit deviation


@dataclass(frozen=True)
class Returns:
    """What a batch of revolutions reports, [r, rays] in firing order."""

    valid: Tensor  # bool
    xyz: tuple[Tensor, Tensor, Tensor]  # float32 metres in the LiDAR frame of the revolution
    intensity: Tensor  # float32, whole numbers 0..255
    thing: Tensor  # int64, column of the scene's objects; -1 for the ground

    def at(self, chosen: Tensor) -> "Returns":
        """The returns of some of the revolutions."""
        x, y, z = self.xyz
        xyz = (x[chosen], y[chosen], z[chosen])
        return Returns(self.valid[chosen], xyz, self.intensity[chosen], self.thing[chosen])


def fire(scenes: Scenes, revolutions: Revolutions, lidar: LidarConfig) -> Returns:
    """All returns of the given revolutions."""
    beams = aim(revolutions, lidar)
    ray_count = torch.arange(lidar.rays, device=revolutions.rows.device)
    words = hash_counters(revolutions.ray_keys, ray_count)  # [r, rays]
    first, second, lost, gain = quarter_uniforms(words)
    leaf, patch, _, _ = quarter_uniforms(mix_bits(words))
    solids = collect_solids(scenes, revolutions, lidar.max_range_m)
    leaf_depth = -torch.log1p(-leaf) * _LEAF_FREE_PATH_M
    keys = cast(solids, beams, revolutions.phase_rad, leaf_depth.view(-1), lidar)
    solid_range, solid = (part.view(words.shape) for part in unpack(keys))
    direction = _directions(beams)
    ground_range, ground_cos, offsets = _meet_ground(scenes, revolutions, direction)
    on_ground = ground_range < solid_range
    solid = torch.where(on_ground, -1, solid)
    true_range = torch.minimum(ground_range, solid_range)
    cos, material, owner = _surface(solids, solid, true_range, direction)
    cos = torch.where(on_ground, (ground_cos * _GROUND_ROUGHNESS).clamp_max(1.0), cos)
    ground = _ground_material(scenes, revolutions, offsets)
    material = torch.where(on_ground, ground, material)
    reflectivity = _reflectivity(scenes, revolutions, material, owner, (patch, gain))
    table = material_table(words.device)
    signal = reflectivity * cos.clamp_min(0.05) * (30.0 / true_range.clamp_min(5.0)) ** 2
    heard = lost > table[:, 2][material] + (1 - table[:, 2][material]) * _lost_share(signal)
    valid = heard & (true_range < lidar.max_range_m) & ~beams.blanked.view(words.shape)
    noise = (first + second - 1.0) * (_TRIANGLE * lidar.range_noise_m)
    measured = true_range + noise
    answer = reflectivity * (0.45 + 0.55 * cos) * (1.25 - true_range / 160.0)
    return Returns(
        valid=valid,
        xyz=(direction[0] * measured, direction[1] * measured, direction[2] * measured),
        intensity=torch.round(answer.clamp(1.0, 255.0)),
        thing=torch.where(on_ground, -1, owner),
    )


def _directions(beams: Beams) -> tuple[Tensor, Tensor, Tensor]:
    """Unit directions in the LiDAR frame, three [r, rays]."""
    x = beams.cos_azimuth[..., None] * beams.cos_elevation
    y = beams.sin_azimuth[..., None] * beams.cos_elevation
    z = beams.sin_elevation.expand_as(x)
    return x.flatten(1), y.flatten(1), z.flatten(1)


def _meet_ground(
    scenes: Scenes, revolutions: Revolutions, direction: tuple[Tensor, Tensor, Tensor]
) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor]]:
    """Range to the ground (inf: none), cosine of incidence, and `Road.offsets` there, [r, rays]."""
    pose = revolutions.sensor_to_world.float()[:, :3, :, None]  # [r, 3, 4, 1]
    x, y, z = direction
    dx, dy, dz = (
        pose[:, axis, 0] * x + pose[:, axis, 1] * y + pose[:, axis, 2] * z for axis in range(3)
    )
    origin = revolutions.sensor_to_world[:, :3, 3]
    road = scenes.road.at(revolutions.rows)
    above = (origin[:, 2:] - road.height(origin[:, :1], origin[:, 1:2])).float()
    slope_x, slope_y = (s.float() for s in road.gradient(origin[:, :1], origin[:, 1:2]))
    quadratic = road.bend_x_per_m.float() * dx * dx + road.bend_y_per_m.float() * dy * dy
    linear = dz - slope_x * dx - slope_y * dy
    x, y = (origin[:, axis : axis + 1].float() for axis in (0, 1))
    # The roadway, and beyond the kerb a level above it; between the two stands the kerb's face.
    low_m, low_cos = _meet_level(above, linear, quadratic)
    reach = torch.where(torch.isinf(low_m), 0.0, low_m)
    offset, beyond = road.offsets(x + reach * dx, y + reach * dy)
    top_m, top_cos = _meet_level((above - KERB_HEIGHT_M).clamp_min(0.1), linear, quadratic)
    reach = torch.where(torch.isinf(top_m), 0.0, top_m)
    _, beyond_on_top = road.offsets(x + reach * dx, y + reach * dy)
    on_top = beyond_on_top > 0
    overshoot = (beyond / (beyond - beyond_on_top).clamp_min(1e-3)).clamp(0, 1)
    face_m = low_m - torch.where(beyond > 0, overshoot * (low_m - top_m), 0.0)
    range_m = torch.where(on_top, top_m, face_m)
    cos = torch.where(on_top, top_cos, low_cos)
    return range_m, cos, (offset, torch.maximum(beyond, beyond_on_top))


def _meet_level(above: Tensor, linear: Tensor, quadratic: Tensor) -> tuple[Tensor, Tensor]:
    """Range at which a ray has lost `above` metres on the ground (inf: never), and how steeply.

    Solves above + linear t = quadratic t^2, written so that no term cancels; the slope of the
    height above the ground at the solution is the root of the discriminant.
    """
    discriminant = linear * linear + 4 * quadratic * above
    root = torch.sqrt(discriminant.clamp_min(0.0))
    reachable = (discriminant > 0) & (root > linear)  # in a valley also a little upwards
    range_m = 2 * above / torch.where(reachable, root - linear, 1.0)
    return torch.where(reachable, range_m, torch.inf), root


def _surface(
    solids: Solids, solid: Tensor, range_m: Tensor, direction: tuple[Tensor, Tensor, Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    """Cosine of incidence, material and object where rays meet solids, [r, rays] each."""
    hits = torch.nonzero(solid.view(-1) >= 0)[:, 0]
    rows = solid.view(-1)[hits]
    reach = range_m.view(-1)[hits]
    ray = [axis.reshape(-1)[hits] for axis in direction]
    to_unit = solids.to_unit.view(-1, 9).T.contiguous()
    half, origin = solids.half_m.T.contiguous(), solids.origin.T.contiguous()
    best = torch.zeros_like(reach)
    cos_box, along, square = best, best, best
    for axis in range(3):
        unit = sum(to_unit[3 * axis + part][rows] * ray[part] for part in range(3))
        place = origin[axis][rows] + reach * unit
        extent = half[axis][rows]
        closer = place.abs() >= best
        cos_box = torch.where(closer, (unit * extent).abs(), cos_box)
        best = torch.maximum(best, place.abs())
        along = along + place * unit  # gradient of |p|^2 in metres, times the direction
        square = square + (place / extent) ** 2
    cos_round = (along.abs() / torch.sqrt(square + 1e-9)).clamp_max(1.0)
    cos_hit = torch.where(solids.solid[rows] == BOX, cos_box, cos_round)
    cos_hit = torch.where(solids.leafy[rows], 0.7, cos_hit)
    cos = torch.zeros_like(range_m).view(-1).index_copy(0, hits, cos_hit)
    none = torch.full_like(solid, -1).view(-1)
    owner = none.index_copy(0, hits, solids.thing[rows])
    material = torch.zeros_like(none).index_copy(0, hits, solids.material[rows])
    return cos.view_as(range_m), material.view_as(solid), owner.view_as(solid)


def _ground_material(
    scenes: Scenes, revolutions: Revolutions, offsets: tuple[Tensor, Tensor]
) -> Tensor:
    """Asphalt, lane markings, and pavement beyond the parking strip, [r, rays]."""
    kerb = scenes.road.kerb_m[revolutions.rows].float()
    across, beyond = offsets
    edge = torch.where(across < 0, kerb[:, :1], kerb[:, 1:])
    beside = across.abs()
    to_line = (beside - LANE_M * torch.round(beside / LANE_M)).abs()
    marking = (to_line < 0.09) & (beside < edge)
    material = torch.where(marking, MATERIAL_INDEX["marking"], MATERIAL_INDEX["asphalt"])
    return torch.where(beyond > 0, MATERIAL_INDEX["pavement"], material)


def _reflectivity(
    scenes: Scenes,
    revolutions: Revolutions,
    material: Tensor,
    owner: Tensor,
    noise: tuple[Tensor, Tensor],
) -> Tensor:
    """Raw intensity at normal incidence: material, the object's own gloss, and speckle."""
    count = scenes.size_wlh_m.shape[1]
    counters = torch.arange(count + 1, device=material.device)  # the first is the ground's
    gloss = quarter_uniforms(hash_counters(scenes.keys ^ 0x5A5A, counters))[0] * 2 - 1  # [b, n + 1]
    own_gloss = gloss[revolutions.rows].gather(1, owner + 1)
    table = material_table(material.device)
    exponent = own_gloss * table[:, 1][material] + (noise[0] + noise[1] - 1.0) * 1.3
    return table[:, 0][material] * torch.exp2(exponent)


def _lost_share(signal: Tensor) -> Tensor:
    """Share of rays that are not heard back; half of them at the detection limit."""
    ratio = signal / _DETECTION
    return 1 / (1 + ratio * ratio)
