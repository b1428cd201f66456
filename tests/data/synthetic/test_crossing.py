import math

import pytest
import torch
from shapely import STRtree
from shapely.geometry import Polygon

from voxelquant.data.synthetic import SceneSpec, WorldConfig
from voxelquant.data.synthetic.layout import Scenes, ego_poses, lay_out, object_poses
from voxelquant.data.synthetic.slots import Slots
from voxelquant.data.synthetic.taxonomy import KIND_INDEX

CONFIG = WorldConfig()
CPU = torch.device("cpu")
TREES = (KIND_INDEX["tree"], KIND_INDEX["tall_tree"])


@pytest.fixture(scope="module")
def scenes() -> Scenes:
    return lay_out([SceneSpec(11, n, key_frames=2) for n in range(120)], CONFIG, CPU)


def rectangles(scenes: Scenes, row: int, time_s: float) -> dict[int, Polygon]:
    """What each object but a tree covers of the ground."""
    poses = object_poses(scenes, torch.tensor([row]), torch.tensor([time_s], dtype=torch.float64))
    shapes = {}
    for thing in torch.nonzero(scenes.present[row])[:, 0].tolist():
        if int(scenes.slots.kind[row, thing]) in TREES:
            continue
        half = scenes.size_wlh_m[row, thing, :2] / 2
        heading = float(poses.heading_rad[0, thing])
        along = (float(half[1]) * math.cos(heading), float(half[1]) * math.sin(heading))
        aside = (-float(half[0]) * math.sin(heading), float(half[0]) * math.cos(heading))
        x, y = float(poses.x[0, thing]), float(poses.y[0, thing])
        shapes[thing] = Polygon(
            (x + a * along[0] + b * aside[0], y + a * along[1] + b * aside[1])
            for a, b in ((1, 1), (1, -1), (-1, -1), (-1, 1))
        )
    return shapes


def overlapping(scenes: Scenes, row: int, time_s: float) -> list[tuple[int, int]]:
    shapes = rectangles(scenes, row, time_s)
    things = list(shapes)
    first, second = STRtree(list(shapes.values())).query(
        list(shapes.values()), predicate="intersects"
    )
    pairs = zip(first.tolist(), second.tolist(), strict=True)
    return [(things[a], things[b]) for a, b in pairs if a < b]


def crossings(scenes: Scenes, *, main_waits: bool) -> list[int]:
    side_street = scenes.road.side_street
    chosen = side_street.here & (side_street.main_waits == main_waits)
    return torch.nonzero(chosen[:, 0])[:, 0].tolist()


@pytest.mark.parametrize("main_waits", [False, True])
def test_nothing_overlaps_between_the_checks_of_a_crossing(
    scenes: Scenes, main_waits: bool
) -> None:
    rows = crossings(scenes, main_waits=main_waits)
    assert len(rows) >= 5
    for row in rows[:5]:
        for step in range(-9, 11):
            assert overlapping(scenes, row, step * 0.05) == []


def test_nothing_overlaps_while_cross_traffic_passes_for_ten_seconds() -> None:
    scenes = lay_out([SceneSpec(12, n, key_frames=21) for n in range(12)], CONFIG, CPU)
    row = crossings(scenes, main_waits=True)[0]
    assert moving(scenes, scenes.slots.across)[row].sum() >= 3
    for step in range(40):
        assert overlapping(scenes, row, step * 0.25 + 0.13) == []


def moving(scenes: Scenes, chosen: torch.Tensor) -> torch.Tensor:
    return scenes.present & chosen & (scenes.slots.speed_mps != 0)


def test_only_the_street_with_green_is_in_motion(scenes: Scenes) -> None:
    slots: Slots = scenes.slots
    driving, across = slots.in_traffic & (slots.speed_mps != 0) & scenes.present, slots.across
    waits = scenes.road.side_street.here & scenes.road.side_street.main_waits
    assert not (driving & ~across & waits).any()
    assert not (driving & across & ~waits).any()
    assert (scenes.ego_speed_mps[waits] == 0).all()
    assert (driving & across & waits).sum() > 20
    standing = slots.in_traffic & (slots.speed_mps == 0) & scenes.present
    assert (standing & across & ~waits).sum() > 20


def test_people_cross_where_they_have_green(scenes: Scenes) -> None:
    walkers = moving(scenes, scenes.slots.kind == KIND_INDEX["pedestrian"])
    inner_m = scenes.road.walk_start_m.amin(1, keepdim=True)
    on_the_main_street = walkers & scenes.slots.across & (scenes.slots.s_m.abs() < inner_m)
    waits = scenes.road.side_street.here & scenes.road.side_street.main_waits
    assert on_the_main_street.any()
    assert not (on_the_main_street & ~waits).any()


def test_the_ego_vehicle_waits_before_the_junction(scenes: Scenes) -> None:
    rows = torch.tensor(crossings(scenes, main_waits=True))
    ego = ego_poses(scenes, rows, torch.zeros(len(rows), dtype=torch.float64))
    side_street = scenes.road.side_street.at(rows)
    distance_m = side_street.offset(ego.x, ego.y)  # the side street's left is behind
    front_m = distance_m - 4.0
    assert (front_m[:, 0] > side_street.walk_end_m.amax(1)).all()


def test_the_side_streets_roadway_has_no_kerb(scenes: Scenes) -> None:
    rows = torch.tensor(crossings(scenes, main_waits=False))
    road = scenes.road.at(rows)
    s_m = torch.tensor([[-40.0, -20.0, 0.0, 20.0, 40.0]], dtype=torch.float64).expand(len(rows), 5)
    middle = road.side_street.place(s_m, torch.zeros_like(s_m))
    assert (road.rise(*middle) == 0).all()
    edge_m = road.side_street.walk_start_m[:, 1:] + 0.5
    rise = road.rise(*road.side_street.place(s_m, edge_m.expand_as(s_m)))
    assert (rise[:, [0, 1, 3, 4]] > 0).all()
    assert (rise[:, 2] == 0).all()  # on the main street's roadway
