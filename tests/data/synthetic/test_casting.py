import dataclasses

import torch
from torch import Tensor

from voxelquant.data.synthetic import SceneSpec, WorldConfig, casting
from voxelquant.data.synthetic.casting import Windows, cast, unpack
from voxelquant.data.synthetic.layout import lay_out
from voxelquant.data.synthetic.materials import MATERIAL_INDEX
from voxelquant.data.synthetic.parts import BOX, DISC
from voxelquant.data.synthetic.returns import _directions
from voxelquant.data.synthetic.sensor import Beams, Revolutions, aim, spin
from voxelquant.data.synthetic.solids import Solids, collect_solids

CONFIG = WorldConfig()
LIDAR = CONFIG.lidar


def a_revolution(scene: int = 1) -> tuple[Solids, Revolutions, Beams]:
    scenes = lay_out([SceneSpec(3, scene)], CONFIG, torch.device("cpu"))
    rows, numbers = torch.tensor([0]), torch.tensor([9])
    revolutions = spin(scenes, rows, numbers, LIDAR, CONFIG.sweeps - 1)
    return collect_solids(scenes, revolutions, LIDAR), revolutions, aim(revolutions, LIDAR)


def boxes_at(centres: list[list[float]], halves: list[list[float]]) -> Solids:
    """Upright boxes along the axes of the LiDAR frame."""
    centre, half = torch.tensor(centres), torch.tensor(halves)
    count = len(centre)
    signs = torch.tensor([[i, j, k] for i in (-1, 1) for j in (-1, 1) for k in (-1, 1)])
    number = torch.arange(count)
    return Solids(
        revolution=torch.zeros(count, dtype=torch.int64),
        thing=number,
        part=number * 0,
        solid=number * 0 + BOX,
        material=number * 0 + MATERIAL_INDEX["metal"],
        taper=torch.zeros(count, 2),
        half_m=half,
        to_unit=torch.diag_embed(1 / half),
        origin=-centre / half,
        corners_m=centre[:, None] + signs * half[:, None],
    )


def nearest_of(solids: Solids, revolutions: Revolutions, beams: Beams) -> tuple[Tensor, Tensor]:
    no_leaves = torch.zeros(LIDAR.rays)
    return unpack(cast(solids, beams, revolutions.phase_rad, no_leaves, LIDAR))


def test_angular_windows_lose_no_hit(monkeypatch) -> None:
    solids, revolutions, beams = a_revolution()
    culled = cast(solids, beams, revolutions.phase_rad, torch.zeros(LIDAR.rays), LIDAR)

    def everywhere(solids: Solids, phase_rad: Tensor, lidar: object) -> Windows:
        zero = torch.zeros_like(solids.thing)
        return Windows(zero, zero + LIDAR.columns, zero, zero + LIDAR.rings)

    monkeypatch.setattr(casting, "angular_windows", everywhere)
    nearest = torch.full_like(culled, casting.NOTHING)
    for start in range(0, len(solids.thing), 100):  # 35,000 rays a solid: in pieces
        piece = Solids(**{k: v[start : start + 100] for k, v in vars(solids).items()})
        keys = cast(piece, beams, revolutions.phase_rad, torch.zeros(LIDAR.rays), LIDAR)
        nearest = torch.minimum(nearest, torch.where(unpack(keys)[1] < 0, keys, keys + start))
    assert torch.equal(unpack(culled)[0], unpack(nearest)[0])
    assert torch.equal(unpack(culled)[1], unpack(nearest)[1])
    assert (unpack(culled)[1] >= 0).sum() > 5000


def test_a_car_behind_a_wall_gets_no_ray() -> None:
    _, revolutions, beams = a_revolution()
    car = [[0.0, 20.0, -1.0], [2.0, 1.0, 0.8]]
    wall = [[0.0, 10.0, 0.0], [3.0, 0.2, 2.5]]
    _, alone = nearest_of(boxes_at([car[0]], [car[1]]), revolutions, beams)
    assert (alone == 0).sum() > 50
    _, solid = nearest_of(boxes_at([car[0], wall[0]], [car[1], wall[1]]), revolutions, beams)
    assert (solid == 0).sum() == 0
    assert (solid == 1).sum() > 500


def test_ranges_to_a_wall_are_those_of_the_plane() -> None:
    _, revolutions, beams = a_revolution()
    solids = boxes_at([[0.0, 12.0, 0.0]], [[200.0, 2.0, 200.0]])
    range_m, solid = nearest_of(solids, revolutions, beams)
    ahead = _directions(beams)[1][0]
    expected = 10.0 / ahead
    hit = solid == 0
    assert torch.equal(hit, (ahead > 0) & (expected * _directions(beams)[0][0].abs() < 200.0))
    torch.testing.assert_close(range_m[hit], expected[hit], rtol=1e-5, atol=1e-4)


def test_a_solid_that_straddles_the_seam_of_the_turn_is_seen_whole() -> None:
    _, revolutions, beams = a_revolution()
    seam = float(revolutions.phase_rad[0])
    centre = torch.tensor([seam]).cos().item() * 15, torch.tensor([seam]).sin().item() * 15
    _, solid = nearest_of(boxes_at([[*centre, 0.0]], [[2.0, 2.0, 1.0]]), revolutions, beams)
    columns = (solid.view(LIDAR.columns, LIDAR.rings) == 0).any(1)
    assert columns[:3].all()
    assert columns[-3:].all()
    assert columns.sum() < 120


def test_a_ceiling_overhead_is_seen_all_around() -> None:
    _, revolutions, beams = a_revolution()
    _, solid = nearest_of(boxes_at([[0.3, 0.2, 4.0]], [[60.0, 60.0, 0.2]]), revolutions, beams)
    upward = (beams.sin_elevation > 0.08).expand(LIDAR.columns, -1)
    assert (solid.view(LIDAR.columns, LIDAR.rings) == 0)[upward].all()


def test_a_disc_is_round_from_the_side_and_flat_from_the_front() -> None:
    _, revolutions, beams = a_revolution()
    wheel = boxes_at([[10.0, 0.0, 0.0]], [[0.1, 1.0, 1.0]])  # a box; its axis is turned to x
    turn = torch.tensor([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    wheel = dataclasses.replace(
        wheel,
        to_unit=turn @ wheel.to_unit,
        half_m=wheel.half_m @ turn,
        origin=wheel.origin @ turn,
        solid=wheel.solid * 0 + DISC,
    )
    range_m, solid = nearest_of(wheel, revolutions, beams)
    hit = solid == 0
    x, y, z = (axis[0][hit] * range_m[hit] for axis in _directions(beams))
    assert hit.sum() > 150
    assert (y * y + z * z).max() < 1.0 + 1e-3
    assert ((x - 9.9).abs() < 1e-3).double().mean() > 0.95


def test_leaves_let_rays_in_by_the_given_depth_and_through_beyond_their_thickness(
    monkeypatch,
) -> None:
    monkeypatch.setattr(casting, "_CLUMP_FREE_PATH_M", 0.0)
    _, revolutions, beams = a_revolution()
    solids = boxes_at([[0.0, 12.0, 0.0]], [[4.0, 2.0, 2.0]])
    bark, _ = nearest_of(solids, revolutions, beams)
    leafy = dataclasses.replace(solids, material=solids.material * 0 + MATERIAL_INDEX["leaves"])
    deep = torch.full((LIDAR.rays,), 1.5)
    inside, _ = unpack(cast(leafy, beams, revolutions.phase_rad, deep, LIDAR))
    both = torch.isfinite(bark) & torch.isfinite(inside)
    assert both.sum() > 100
    torch.testing.assert_close(inside[both], bark[both] + 1.5)
    _, solid = unpack(cast(leafy, beams, revolutions.phase_rad, deep * 10, LIDAR))
    assert (solid >= 0).sum() == 0


def test_clumps_of_leaves_stay_where_they_are_and_leave_gaps() -> None:
    _, revolutions, beams = a_revolution()
    hedge = boxes_at([[0.0, 12.0, 0.0]], [[4.0, 1.0, 2.0]])
    hull, _ = nearest_of(hedge, revolutions, beams)
    leafy = dataclasses.replace(hedge, material=hedge.material * 0 + MATERIAL_INDEX["leaves"])
    first, solid = nearest_of(leafy, revolutions, beams)
    again, _ = nearest_of(leafy, revolutions, beams)
    assert torch.equal(first, again)
    met = torch.isfinite(hull)
    passed = (solid[met] < 0).double().mean()
    assert 0.005 < passed < 0.2  # e^-4 where rays cross the whole hedge, more at its corners
    depth = (first - hull)[met & (solid >= 0)]
    assert depth.min() >= -1e-5
    assert 0.3 < depth.mean() < 0.6
    assert len(torch.unique((depth * 1e3).round())) < met.sum() / 4  # many rays share a clump
