import itertools
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import pytest
import shapely
import torch
from torch import Tensor

from voxelquant.data.frame import Frame
from voxelquant.data.loader import FrameLoader, LoaderOptions
from voxelquant.data.object_sampler import ObjectSampler, distinct_numbers
from voxelquant.data.objects import ObjectIndex
from voxelquant.data.sampling import Draw, seeded_generator
from voxelquant.errors import ConfigError, DatasetError
from voxelquant.geometry import bev_rectangles, box_corners_bev, points_in_boxes

NAMES = ("car", "bus", "cone")
WORKERS = pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")


@dataclass(frozen=True)
class Settings:
    sample_groups: dict[str, int]
    min_points: dict[str, int]
    removed_difficulties: tuple[int, ...] = (-1,)
    rotation_range_rad: tuple[float, float] = (0.0, 0.0)
    rate: float = 1.0


class Objects:
    """n objects, spread over `spread_m` metres; object k holds 3 + k mod 5 points."""

    def __init__(self, n: int, spread_m: float = 100.0, seed: int = 0) -> None:
        generator = seeded_generator(seed)
        boxes = torch.rand((n, 9), generator=generator) - 0.5
        boxes[:, :2] *= 2 * spread_m
        boxes[:, 3:6] = 1 + 8 * torch.rand((n, 3), generator=generator)
        boxes[:, 8] *= 6
        # The file's order of classes is not the detector's.
        self.index = ObjectIndex(
            names=("cone", "car", "ignored", "bus"),
            kinds=torch.tensor([(1, 3, 0)[k % 3] for k in range(n)], dtype=torch.int32),
            boxes_det3d=boxes,
            num_points=torch.tensor([3 + k % 5 for k in range(n)], dtype=torch.int32),
            difficulties=torch.tensor([k % 2 for k in range(n)], dtype=torch.int32),
        )
        self.read: list[int] = []

    def points(self, row: int) -> Tensor:
        """Along the diagonal of a cube that fits any box; the first is the key frame's."""
        self.read.append(row)
        return self.cloud(row)

    def cloud(self, row: int) -> Tensor:
        count = int(self.index.num_points[row])
        points = torch.linspace(-0.3, 0.3, count)[:, None].repeat(1, 5)
        points[:, 3] = row
        points[:, 4] = torch.arange(count) * 0.05
        return points


def frame(boxes: Sequence[Sequence[float]] = (), labels: Sequence[int] = ()) -> Frame:
    return Frame(
        token="scene",
        points=torch.rand((50, 5), generator=seeded_generator(8)) - 2,
        boxes_det3d=torch.tensor(boxes, dtype=torch.float32).reshape(-1, 9),
        labels=torch.tensor(labels, dtype=torch.int64),
        num_lidar_pts=torch.full((len(labels),), 4),
        ref_to_ego=torch.eye(4, dtype=torch.float64),
        ego_to_global=torch.eye(4, dtype=torch.float64),
        timestamp=1.0,
    )


def far_boxes(n: int) -> list[list[float]]:
    """Boxes that no object reaches."""
    return [[1000.0 + 20 * k, 0, 0, 2, 4, 2, 1, 2, 0.3] for k in range(n)]


def sampler(objects: Objects, **changes: object) -> ObjectSampler:
    values: dict[str, object] = {"sample_groups": {"bus": 6, "car": 9, "cone": 4}, "min_points": {}}
    settings = Settings(**{**values, **changes})  # type: ignore[arg-type]
    return ObjectSampler(objects, NAMES, settings)


def rectangles(boxes: Tensor) -> list[shapely.Polygon]:
    return [shapely.Polygon(corners) for corners in box_corners_bev(bev_rectangles(boxes)).tolist()]


def shared_area(a: shapely.Polygon, b: shapely.Polygon) -> float:
    return float(a.intersection(b).area)


@pytest.mark.parametrize(
    ("rate", "present", "expected"),
    [
        (1.0, [], {1: 6, 0: 9, 2: 4}),
        (1.0, [0, 0, 0, 1], {1: 5, 0: 6, 2: 4}),
        (1.0, [2] * 4 + [1] * 7, {0: 9}),  # full and overfull classes get none
        (0.5, [0], {1: 3, 0: 4, 2: 2}),
        (0.5, [0, 0, 1, 2], {1: 2, 0: 4, 2: 2}),  # 3.5, 2.5 and 1.5: halves to even
        (0.1, [], {1: 1, 0: 1}),
    ],
)
def test_each_class_is_filled_up(rate: float, present: list[int], expected: dict[int, int]) -> None:
    objects = Objects(3000, spread_m=100_000.0)  # nothing ever collides
    pasted = sampler(objects, rate=rate)(
        frame(far_boxes(len(present)), present), seeded_generator(0)
    )
    assert pasted.labels is not None
    new = pasted.labels[len(present) :].tolist()
    assert Counter(new) == expected
    assert new == sorted(new, key=(1, 0, 2).index)  # group by group, as the config has them


@pytest.mark.parametrize("rotation", [(0.0, 0.0), (-3.0, 3.0)])
def test_nothing_is_pasted_over_anything(rotation: tuple[float, float]) -> None:
    objects = Objects(400, spread_m=25.0)
    scene = frame(
        [[0, 0, 0, 12, 16, 2, 0, 0, 0.7], [14, -9, 0, 1, 9, 2, 0, 0, -2.0]],
        [1, 0],
    )
    paste = sampler(objects, rotation_range_rad=rotation)
    counts = set()
    for seed in range(60):
        pasted = paste(scene, seeded_generator(seed))
        assert pasted.boxes_det3d is not None
        shapes = rectangles(pasted.boxes_det3d)
        counts.add(len(shapes))
        for i, one in enumerate(shapes):
            assert all(shared_area(one, other) < 1e-4 for other in shapes[:i])
    assert min(counts) > 2
    assert max(counts) < 2 + 17  # there was something to leave out


def test_what_is_left_out_had_no_room() -> None:
    objects = Objects(19 * 3, spread_m=15.0)  # all are tried
    paste = sampler(objects, sample_groups={"car": 20, "bus": 19, "cone": 19})
    pasted = paste(frame([[0, 0, 0, 6, 6, 2, 0, 0, 0.7]], [0]), seeded_generator(1))
    assert pasted.boxes_det3d is not None
    shapes = rectangles(pasted.boxes_det3d)
    left_out = sorted(set(range(57)) - set(objects.read))
    assert len(objects.read) == len(shapes) - 1 > 5
    assert len(left_out) > 20
    for one in rectangles(objects.index.boxes_det3d[left_out]):
        assert max(shared_area(one, other) for other in shapes) > 1e-4


def test_a_box_inside_another_is_left_out() -> None:
    objects = Objects(30, spread_m=2.0)
    wide = frame([[0, 0, 0, 60, 60, 2, 0, 0, 0.3]], [0])
    assert sampler(objects)(wide, seeded_generator(0)) is wide
    assert objects.read == []
    tiny = frame([[0, 0, 0, 0.01, 0.01, 0.1, 0, 0, 0.3]], [0])
    objects.index.boxes_det3d[:, 3:5] = 60
    assert sampler(objects)(tiny, seeded_generator(0)) is tiny


def test_points_stand_in_front_and_boxes_behind() -> None:
    objects = Objects(300)
    scene = frame(far_boxes(2), [0, 1])
    before = (scene.points.clone(), scene.boxes_det3d.clone())  # type: ignore[union-attr]
    pasted = sampler(objects)(scene, seeded_generator(3))
    assert pasted.boxes_det3d is not None
    assert pasted.labels is not None
    assert pasted.num_lidar_pts is not None
    new = len(pasted.labels) - 2
    assert new == len(objects.read) > 10
    assert torch.equal(pasted.boxes_det3d[2:], objects.index.boxes_det3d[objects.read])
    assert torch.equal(pasted.boxes_det3d[:2], before[1])
    assert torch.equal(pasted.points[-50:], before[0])
    start = 0
    for k, row in enumerate(objects.read):
        stored = objects.cloud(row)
        own = pasted.points[start : start + len(stored)]
        assert torch.equal(own[:, 3:], stored[:, 3:])
        assert torch.equal(own[:, :3], stored[:, :3] + objects.index.boxes_det3d[row, :3])
        start += len(stored)
        assert points_in_boxes(own, pasted.boxes_det3d[2 + k : 3 + k]).all()
    assert start + 50 == len(pasted.points)
    assert pasted.num_lidar_pts.tolist() == [4, 4] + [1] * new
    assert (pasted.token, pasted.timestamp) == (scene.token, scene.timestamp)
    # What was given is as it was.
    assert torch.equal(scene.points, before[0])
    assert torch.equal(scene.boxes_det3d, before[1])  # type: ignore[arg-type]
    assert pasted.points.dtype == torch.float32
    bare = sampler(Objects(300))(replace(scene, num_lidar_pts=None), seeded_generator(3))
    assert bare.num_lidar_pts is None


def test_points_of_the_scene_inside_a_pasted_box_stay() -> None:
    objects = Objects(3, spread_m=1.0)
    scene = frame()
    scene.points[:, :3] = objects.index.boxes_det3d[0, :3]
    pasted = sampler(objects)(scene, seeded_generator(0))
    assert len(pasted.points) > 50


def test_one_seed_gives_one_result() -> None:
    paste = sampler(Objects(300), rotation_range_rad=(-1.0, 1.0))
    first, second, other = (paste(frame(), seeded_generator(seed)) for seed in (7, 7, 8))
    assert torch.equal(first.points, second.points)
    assert torch.equal(first.boxes_det3d, second.boxes_det3d)  # type: ignore[arg-type]
    assert len(first.points) != len(other.points) or not torch.equal(first.points, other.points)
    # Not even frames before it in the same process make a difference.
    assert torch.equal(paste(frame(), seeded_generator(7)).points, first.points)


def test_every_object_comes_equally_often_and_never_twice() -> None:
    objects = Objects(60, spread_m=100_000.0)  # 20 of each class
    paste = sampler(objects, sample_groups={"bus": 6})
    for seed in range(1000):
        objects.read.clear()
        paste(frame(), seeded_generator(seed))
        assert len(set(objects.read)) == len(objects.read) == 6
    drawn: Counter[int] = Counter()
    for seed in range(1000):
        objects.read.clear()
        paste(frame(), seeded_generator(10_000 + seed))
        drawn.update(objects.read)
    # Binomial, 1000 draws of probability 6/20: five standard deviations.
    spread = 5 * math.sqrt(1000 * 0.3 * 0.7)
    assert set(drawn) == set(range(1, 60, 3))
    assert all(abs(count - 300) < spread for count in drawn.values())


def test_every_subset_is_as_likely() -> None:
    steps = 12  # of which 3, 4 and 5 numbers take whole shares
    grid = [(k + 0.5) / steps for k in range(steps)]
    pairs = Counter(frozenset(distinct_numbers(4, pair)) for pair in itertools.product(grid, grid))
    assert set(pairs) == {frozenset(pair) for pair in itertools.combinations(range(4), 2)}
    assert set(pairs.values()) == {steps**2 // 6}


def test_fewer_objects_than_asked_for_come_all() -> None:
    objects = Objects(6, spread_m=100_000.0)
    pasted = sampler(objects)(frame(), seeded_generator(0))
    assert pasted.labels is not None
    assert Counter(pasted.labels.tolist()) == {0: 2, 1: 2, 2: 2}
    assert distinct_numbers(0, []) == []


def test_objects_with_few_points_or_difficult_ones_are_never_pasted() -> None:
    objects = Objects(300, spread_m=100_000.0)
    objects.index.num_points[:9] = 0
    paste = sampler(objects, min_points={"car": 6, "cone": 0}, removed_difficulties=(1, 7))
    for seed in range(200):
        paste(frame(), seeded_generator(seed))
    read = set(objects.read)
    expected = {
        row
        for row in range(9, 300)
        if row % 2 == 0 and (row % 3 != 0 or 3 + row % 5 >= 6)  # cars are 0, 3, 6, ...
    }
    assert read <= expected
    assert len(read) > 0.95 * len(expected)


def test_a_turned_object_stays_whole() -> None:
    objects = Objects(300)
    paste = sampler(objects, rotation_range_rad=(0.2, 0.5))
    pasted = paste(frame(), seeded_generator(2))
    assert pasted.boxes_det3d is not None
    boxes, stored = pasted.boxes_det3d, objects.index.boxes_det3d[objects.read]
    assert len(boxes) > 8
    azimuth = torch.atan2(boxes[:, 0], boxes[:, 1])
    assert ((azimuth >= 0.2 - 1e-5) & (azimuth <= 0.5 + 1e-5)).all()
    assert azimuth.std() > 0.03
    assert torch.allclose(boxes[:, :2].norm(dim=1), stored[:, :2].norm(dim=1), rtol=1e-5)
    assert torch.equal(boxes[:, 2:6], stored[:, 2:6])
    # The angle between velocity and yaw', and between centre and yaw', is what it was.
    for x in (0, 6):
        turn = torch.atan2(boxes[:, x], boxes[:, x + 1]) - torch.atan2(
            stored[:, x], stored[:, x + 1]
        )
        off = turn - (boxes[:, 8] - stored[:, 8])
        assert torch.allclose(off.cos(), torch.ones(len(off)), atol=1e-4)
    start = 0
    for box, row in zip(boxes, objects.read, strict=True):
        count = int(objects.index.num_points[row])
        own = pasted.points[start : start + count]
        start += count
        # Where a point lies along the box's own axes does not change.
        assert torch.allclose(own_axes(own, box), own_axes_of_stored(objects, row), atol=1e-4)


def own_axes(points: Tensor, box: Tensor) -> Tensor:
    theta = -float(box[8]) - math.pi / 2
    dx, dy, dz = (points[:, :3] - box[:3]).unbind(1)
    return torch.stack(
        (
            dx * math.cos(theta) + dy * math.sin(theta),
            dy * math.cos(theta) - dx * math.sin(theta),
            dz,
        ),
        1,
    )


def own_axes_of_stored(objects: Objects, row: int) -> Tensor:
    box = objects.index.boxes_det3d[row].clone()
    box[:3] = 0
    return own_axes(objects.cloud(row), box)


def test_what_is_lacking_is_known() -> None:
    objects = Objects(300)
    objects.index.kinds[objects.index.kinds == 0] = 1  # no cones any more
    assert sampler(objects).lacking == ("cone",)
    assert sampler(objects, min_points={"bus": 8}).lacking == ("bus", "cone")
    assert sampler(objects, sample_groups={"bus": 3, "cone": 0}).lacking == ()
    with pytest.raises(DatasetError, match=r"none of 300 objects can be pasted \(classes cone,"):
        sampler(objects, sample_groups={"cone": 4})
    with pytest.raises(ConfigError, match="got class buss, need some of car, bus, cone"):
        sampler(objects, sample_groups={"buss": 4})


def test_a_frame_without_annotations_is_refused() -> None:
    bare = replace(frame(), boxes_det3d=None, labels=None, num_lidar_pts=None)
    with pytest.raises(DatasetError, match="frame scene has no annotations"):
        sampler(Objects(30))(bare, seeded_generator(0))


class Unreadable(Objects):
    def points(self, row: int) -> Tensor:
        raise DatasetError("object.bin: cut off")


@WORKERS
@pytest.mark.parametrize("num_workers", [0, 1])
def test_an_object_that_cannot_be_read_is_one_clear_error(num_workers: int) -> None:
    options = LoaderOptions(num_workers=num_workers)
    loader = FrameLoader([frame()], [Draw(0, seed=1)], [sampler(Unreadable(30))], options)
    with pytest.raises(DatasetError) as caught:
        list(loader)
    assert str(caught.value) == "object.bin: cut off"
