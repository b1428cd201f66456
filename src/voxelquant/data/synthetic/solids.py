"""The solids that a batch of revolutions can see, each in the frame where it is a unit solid."""

from dataclasses import dataclass

import torch
from torch import Tensor

from voxelquant.data.synthetic.layout import Scenes, object_poses
from voxelquant.data.synthetic.materials import MATERIAL_INDEX
from voxelquant.data.synthetic.sensor import Revolutions
from voxelquant.data.synthetic.shapes import shape_table


@dataclass(frozen=True)
class Solids:
    """`q` solids, one row for each revolution that may see it.

    `to_unit` maps directions of the LiDAR frame into the solid's unit frame, where it fills
    [-1, 1]^3; `origin` is the LiDAR there. A ray's parameter stays in metres.
    """

    revolution: Tensor  # [q] int64
    thing: Tensor  # [q] int64, column of the scene's objects
    part: Tensor  # [q] int64
    solid: Tensor  # [q] int64: parts.BOX, CYLINDER, ELLIPSOID
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


def collect_solids(scenes: Scenes, revolutions: Revolutions, max_range_m: float) -> Solids:
    """Every part of every present object within range of each revolution."""
    device = revolutions.rows.device
    table = shape_table(device)
    poses = object_poses(scenes, revolutions.rows, revolutions.time_s)
    sensor = revolutions.sensor_to_world  # [r, 4, 4]
    dx, dy = poses.x - sensor[:, 0, 3, None], poses.y - sensor[:, 1, 3, None]
    near = (dx * dx + dy * dy) < (max_range_m + 12.0) ** 2
    seen = scenes.present[revolutions.rows] & near  # [r, n]
    parts = table.solid[scenes.variant[revolutions.rows]] >= 0  # [r, n, p]
    revolution, thing, part = torch.nonzero(seen[..., None] & parts, as_tuple=True)
    row = revolutions.rows[revolution]
    variant = scenes.variant[row, thing]
    size = scenes.size_wlh_m[row, thing]
    centre, half = _part_box(table.spans[variant, part], scenes.bend[row, thing], size)
    heading = poses.heading_rad[revolution, thing]
    cos, sin = torch.cos(heading), torch.sin(heading)
    x = poses.x[revolution, thing] + cos * centre[:, 0] - sin * centre[:, 1]
    y = poses.y[revolution, thing] + sin * centre[:, 0] + cos * centre[:, 1]
    z = poses.z[revolution, thing] + centre[:, 2]
    to_solid = _turn(cos, sin) @ sensor[revolution, :3, :3]  # LiDAR directions -> solid's axes
    from_lidar = torch.stack([x, y, z], dim=-1) - sensor[revolution, :3, 3]
    offset = (_turn(cos, sin) @ from_lidar[..., None])[..., 0]  # centre seen from the LiDAR
    signs = _corner_signs(device)
    in_solid = offset[:, None] + signs * half[:, None]  # [q, 8, 3]
    return Solids(
        revolution=revolution,
        thing=thing,
        part=part,
        solid=table.solid[variant, part],
        material=table.material[variant, part],
        taper=table.taper[variant, part].float(),
        half_m=half.float(),
        to_unit=(to_solid / half[..., None]).float(),
        origin=(-offset / half).float(),
        corners_m=(in_solid @ to_solid).float(),
    )


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
