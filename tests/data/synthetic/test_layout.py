import pytest
import torch
from shapely.geometry import Polygon

from voxelquant.data.synthetic import SceneSpec, WorldConfig
from voxelquant.data.synthetic.layout import Scenes, ego_poses, lay_out, object_poses
from voxelquant.data.synthetic.taxonomy import CLASS_NAMES, KIND_INDEX, N_CLASSES

CONFIG = WorldConfig()
CPU = torch.device("cpu")


def footprints(scenes: Scenes, row: int, time_s: float) -> dict[int, Polygon]:
    """What each annotated object and each wall covers of the ground; trees only by their trunk."""
    poses = object_poses(scenes, torch.tensor([row]), torch.tensor([time_s]).double())
    shapes = {}
    for thing in torch.nonzero(scenes.present[row])[:, 0].tolist():
        if int(scenes.slots.kind[row, thing]) in (KIND_INDEX["tree"], KIND_INDEX["tall_tree"]):
            continue
        width, length, _ = scenes.size_wlh_m[row, thing].tolist()
        x, y, heading = (float(v[0, thing]) for v in (poses.x, poses.y, poses.heading_rad))
        cos, sin = torch.cos(torch.tensor(heading)).item(), torch.sin(torch.tensor(heading)).item()
        corners = [
            (length / 2, width / 2),
            (length / 2, -width / 2),
            (-length / 2, -width / 2),
            (-length / 2, width / 2),
        ]
        shapes[thing] = Polygon(
            [(x + cos * a - sin * b, y + sin * a + cos * b) for a, b in corners]
        )
    return shapes


@pytest.mark.parametrize(("key_frames", "times_s"), [(2, (-0.45, 0.0, 0.2, 0.5)), (21, (0.0, 9.7))])
def test_nothing_overlaps_at_any_time(key_frames: int, times_s: tuple[float, ...]) -> None:
    scenes = lay_out([SceneSpec(7, n, key_frames) for n in range(3)], CONFIG, CPU)
    for row in range(3):
        for time_s in times_s:
            shapes = footprints(scenes, row, time_s)
            assert len(shapes) > 80
            items = list(shapes.items())
            overlaps = [
                (a, b)
                for index, (a, first) in enumerate(items)
                for b, second in items[index + 1 :]
                if first.intersects(second)
            ]
            assert not overlaps


def test_nothing_comes_near_the_ego_vehicle() -> None:
    scenes = lay_out([SceneSpec(7, n) for n in range(20)], CONFIG, CPU)
    rows = torch.arange(20)
    for time_s in (-0.45, 0.0, 0.5):
        time = torch.full((20,), time_s, dtype=torch.float64)
        ego, objects = ego_poses(scenes, rows, time), object_poses(scenes, rows, time)
        distance = torch.hypot(objects.x - ego.x, objects.y - ego.y)
        assert distance[scenes.present].min() > 0.95


def test_layout_does_not_depend_on_the_batch_and_depends_on_the_seed() -> None:
    together = lay_out([SceneSpec(1, n) for n in (0, 5, 9)], CONFIG, CPU)
    alone = lay_out([SceneSpec(1, 5)], CONFIG, CPU)
    own = alone.present.shape[1]  # the batch is as wide as its fullest scene
    for name in ("s_m", "d_m", "kind", "present", "speed_mps", "across"):
        assert torch.equal(getattr(together.slots, name)[1, :own], getattr(alone.slots, name)[0])
    assert not together.present[1, own:].any()
    assert torch.equal(together.size_wlh_m[1, :own], alone.size_wlh_m[0])
    other = lay_out([SceneSpec(2, 5)], CONFIG, CPU)
    assert not torch.equal(other.size_wlh_m, alone.size_wlh_m)


def test_sizes_follow_the_published_class_means() -> None:
    scenes = lay_out([SceneSpec(4, n) for n in range(64)], CONFIG, CPU)
    means = {"car": (1.95, 4.62, 1.73), "trailer": (2.90, 12.29, 3.87), "bus": (2.94, 10.5, 3.47)}
    for name, mean in means.items():
        of_class = scenes.size_wlh_m[scenes.slots.kind == KIND_INDEX[name]]
        assert torch.allclose(of_class.mean(0), torch.tensor(mean).double(), rtol=0.03)
        assert (of_class.std(0) > 0.015 * of_class.mean(0)).all()


def test_every_class_occurs_and_moves_as_it_should() -> None:
    balanced = WorldConfig(class_mix="balanced")
    scenes = lay_out([SceneSpec(4, n) for n in range(16)], balanced, CPU)
    kind, speed = scenes.slots.kind[scenes.present], scenes.slots.speed_mps[scenes.present].abs()
    counts = torch.bincount(kind[kind < N_CLASSES], minlength=N_CLASSES)
    assert (counts >= 2 * 16).all(), dict(zip(CLASS_NAMES, counts.tolist(), strict=True))
    assert counts[0] == counts.max()
    for name, low, high in (("car", 0.2, 15.0), ("pedestrian", 0.7, 1.8), ("bicycle", 0.2, 15.0)):
        moving = speed[(kind == KIND_INDEX[name]) & (speed > 0)]
        assert len(moving) > 10
        assert moving.min() >= low
        assert moving.max() <= high
    still = ("barrier", "traffic_cone", "building", "tree")
    assert all((speed[kind == KIND_INDEX[name]] == 0).all() for name in still)
