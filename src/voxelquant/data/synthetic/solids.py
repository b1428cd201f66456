"""The solids that a batch of revolutions can see, each in the frame where it is a unit solid."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from voxelquant.data.hashing import hash_counters, purpose_code, quarter_uniforms
from voxelquant.data.synthetic.config import LidarConfig
from voxelquant.data.synthetic.layout import Poses, Scenes, object_poses
from voxelquant.data.synthetic.materials import MATERIAL_INDEX
from voxelquant.data.synthetic.parts import BOX
from voxelquant.data.synthetic.sensor import Revolutions
from voxelquant.data.synthetic.shapes import shape_table

# Boxes are drawn around points, so surfaces lie a little within: 3 to 12 cm behind the rear face of
# the cars that drive in the real key frame.
_MARGIN_M, _MARGIN_SHARE = 0.04, 0.05
_STRIDES_PER_S = 0.9  # of a walking person: two steps each


@dataclass(frozen=True)
class Solids:
    """`q` solids, one row for each revolution that may see it.

    `to_unit` maps directions of the LiDAR frame into the solid's unit frame, where it fills
    [-1, 1]^3; `origin` is the LiDAR there. A ray's parameter stays in metres.
    """

    revolution: Tensor  # [q] int64
    thing: Tensor  # [q] int64, column of the scene's objects
    part: Tensor  # [q] int64
    solid: Tensor  # [q] int64: parts.BOX and its siblings
    material: Tensor  # [q] int64
    taper: Tensor  # [q, 2] float32
    half_m: Tensor  # [q, 3] float32, half extents
    to_unit: Tensor  # [q, 3, 3] float32
    origin: Tensor  # [q, 3] float32
    corners_m: Tensor  # [q, 8, 3] float32, of its bounding box in the LiDAR frame

    @property
    def leafy(self) -> Tensor:
        """Solids that a ray can enter or even cross, [q] bool."""
        return self.material == MATERIAL_INDEX["leaves"]


def collect_solids(scenes: Scenes, revolutions: Revolutions, lidar: LidarConfig) -> Solids:
    """Every part of every present object within range of each revolution, as the beam meets it."""
    table = shape_table(revolutions.rows.device)
    poses = poses_under_the_beam(scenes, revolutions, lidar)
    sensor = revolutions.sensor_to_world  # [r, 4, 4]
    dx, dy = poses.x - sensor[:, 0, 3, None], poses.y - sensor[:, 1, 3, None]
    near = (dx * dx + dy * dy) < (lidar.max_range_m + 12.0) ** 2
    seen = scenes.present[revolutions.rows] & near  # [r, n]
    parts = table.solid[scenes.variant[revolutions.rows]] >= 0  # [r, n, p]
    revolution, thing, part = torch.nonzero(seen[..., None] & parts, as_tuple=True)
    row = revolutions.rows[revolution]
    variant = scenes.variant[row, thing]
    size, bend = scenes.size_wlh_m[row, thing], scenes.bend[row, thing]
    size = size - 2 * (size * _MARGIN_SHARE).clamp_max(_MARGIN_M)
    centre, half = _part_box(table.spans[variant, part], bend, size)
    step = _steps(scenes, revolutions)[revolution, thing] * table.swing[variant, part]
    centre[:, 0] = centre[:, 0] + step * size[:, 1] / 2
    return Solids(
        revolution=revolution,
        thing=thing,
        part=part,
        solid=table.solid[variant, part],
        material=table.material[variant, part],
        taper=table.taper[variant, part].float(),
        **_unit_frames(poses, sensor, (revolution, thing), centre, half),
    )


def poses_under_the_beam(scenes: Scenes, revolutions: Revolutions, lidar: LidarConfig) -> Poses:
    """Pose of each object at the moment at which the beam passes its centre, [r, n].

    A revolution is stamped with its end. nuScenes compensates its points for the motion of the ego
    vehicle but not for that of objects, so what moves lies where it was when it was seen, and so
    do the boxes, which people drew around points: in the real key frame the rear of a car that
    drives at 11 m/s lies within 4 cm of its box, not the 0.4 m that it drove until the stamp.
    """
    rows, time_s = revolutions.rows, revolutions.time_s
    poses = object_poses(scenes, rows, time_s)
    sensor = revolutions.sensor_to_world[..., None]
    dx, dy, dz = poses.x - sensor[:, 0, 3], poses.y - sensor[:, 1, 3], poses.z - sensor[:, 2, 3]
    x, y = (sensor[:, 0, i] * dx + sensor[:, 1, i] * dy + sensor[:, 2, i] * dz for i in range(2))
    turned = (revolutions.phase_rad[:, None] - torch.atan2(y, x)) / (2 * math.pi)
    left = 1 - (turned - torch.floor(turned))  # of the revolution, when the beam passes
    left = torch.round(left * 2**20) * 2.0**-20  # atan2 ends differently on other devices
    return object_poses(scenes, rows, time_s[:, None] - left * (lidar.period_us * 1e-6))


def box_solids(scenes: Scenes, revolutions: Revolutions, poses: Poses, chosen: Tensor) -> Solids:
    """The boxes of the `chosen` objects [r, n] at the given poses, as solids."""
    revolution, thing = torch.nonzero(chosen, as_tuple=True)
    width, length, height = scenes.size_wlh_m[revolutions.rows[revolution], thing].unbind(-1)
    half = torch.stack([length, width, height], dim=-1) / 2
    centre = half * torch.tensor([0.0, 0.0, 1.0], dtype=half.dtype, device=half.device)
    none = torch.zeros_like(thing)
    return Solids(
        revolution=revolution,
        thing=thing,
        part=none,
        solid=none + BOX,
        material=none,
        taper=torch.zeros_like(half[:, :2]).float(),
        **_unit_frames(poses, revolutions.sensor_to_world, (revolution, thing), centre, half),
    )


def _unit_frames(
    poses: Poses, sensor: Tensor, which: tuple[Tensor, Tensor], centre: Tensor, half: Tensor
) -> dict[str, Tensor]:
    """Fields of `Solids` for boxes given in the axes of objects; `which` is revolution, object."""
    revolution = which[0]
    heading = poses.heading_rad[which]
    cos, sin = torch.cos(heading), torch.sin(heading)
    x = poses.x[which] + cos * centre[:, 0] - sin * centre[:, 1]
    y = poses.y[which] + sin * centre[:, 0] + cos * centre[:, 1]
    z = poses.z[which] + centre[:, 2]
    to_solid = _turn(cos, sin) @ sensor[revolution, :3, :3]  # LiDAR directions -> solid's axes
    from_lidar = torch.stack([x, y, z], dim=-1) - sensor[revolution, :3, 3]
    offset = (_turn(cos, sin) @ from_lidar[..., None])[..., 0]  # centre seen from the LiDAR
    in_solid = offset[:, None] + _corner_signs(half.device) * half[:, None]  # [q, 8, 3]
    return {
        "half_m": half.float(),
        "to_unit": (to_solid / half[..., None]).float(),
        "origin": (-offset / half).float(),
        "corners_m": (in_solid @ to_solid).float(),
    }


def _steps(scenes: Scenes, revolutions: Revolutions) -> Tensor:
    """Where in their step people are, -1 to 1, [r, n] float64; who stands keeps the foot there."""
    rows = revolutions.rows
    things = torch.arange(scenes.size_wlh_m.shape[1], device=rows.device)
    words = hash_counters(scenes.keys[rows] ^ purpose_code("step"), things)
    start = quarter_uniforms(words)[0].double()
    walks = scenes.slots.speed_mps[rows] != 0
    strides = torch.where(walks, revolutions.time_s[:, None] * _STRIDES_PER_S, 0.0)
    return torch.sin(2 * math.pi * (start + strides))


def _part_box(spans: Tensor, bend: Tensor, size_wlh: Tensor) -> tuple[Tensor, Tensor]:
    """Centre and half extents of parts in metres, in the axes of their object, [q, 3] each.

    Inner borders move with the object's own proportions: b -> sign(b) |b|^bend keeps 0 and 1.
    """
    spans = spans.view(-1, 3, 2)
    spans = torch.sign(spans) * spans.abs() ** bend[..., None]
    scale = torch.stack([size_wlh[:, 1] / 2, size_wlh[:, 0] / 2, size_wlh[:, 2]], dim=-1)
    low, high = spans[..., 0] * scale, spans[..., 1] * scale
    return (low + high) / 2, ((high - low) / 2).clamp_min(0.004)


def _turn(cos: Tensor, sin: Tensor) -> Tensor:
    """Rotation of the world into axes turned by the heading, [q, 3, 3]."""
    zero, one = torch.zeros_like(cos), torch.ones_like(cos)
    rows = [cos, sin, zero, -sin, cos, zero, zero, zero, one]
    return torch.stack(rows, dim=-1).view(-1, 3, 3)


def _corner_signs(device: torch.device) -> Tensor:
    corner = torch.arange(8, device=device)
    signs = [((corner >> axis) & 1) * 2.0 - 1.0 for axis in range(3)]
    return torch.stack(signs, dim=-1).double()  # [8, 3]
