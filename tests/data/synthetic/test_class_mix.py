import pytest
import torch

from voxelquant.data.synthetic import CLASS_NAMES, WorldConfig, generate_frames
from voxelquant.data.synthetic.config import ClassMix, SceneSpec
from voxelquant.data.synthetic.layout import Scenes, lay_out, object_poses
from voxelquant.data.synthetic.scene_kinds import KINDS_OF_SCENES

# Boxes a key frame of nuScenes' training set: its annotations, divided by its 28,130 key frames.
NUSCENES = {
    "car": 14.7,
    "pedestrian": 6.6,
    "barrier": 4.4,
    "traffic_cone": 2.9,
    "truck": 2.6,
    "trailer": 0.74,
    "bus": 0.47,
    "construction_vehicle": 0.43,
    "motorcycle": 0.36,
    "bicycle": 0.34,
}
CPU = torch.device("cpu")
FRAMES = 240


def visible_boxes(class_mix: ClassMix, frames: int) -> torch.Tensor:
    """Boxes with a point by frame and class, [frames, 10]; one sweep shows what is visible."""
    config = WorldConfig(class_mix=class_mix, sweeps=1)
    made = generate_frames(31, range(frames), key_frames=1, config=config)
    counts = [torch.bincount(f.labels[f.num_lidar_pts > 0], minlength=10) for f in made]
    return torch.stack(counts).double()


@pytest.fixture(scope="module")
def boxes() -> torch.Tensor:
    return visible_boxes("nuscenes", FRAMES)


def test_classes_are_as_frequent_as_in_nuscenes(boxes: torch.Tensor) -> None:
    """Within 15 %, and as much as so few frames can tell (two standard errors)."""
    error = boxes.std(0) / FRAMES**0.5
    for label, name in enumerate(CLASS_NAMES):
        found, wanted = float(boxes[:, label].mean()), NUSCENES[name]
        assert abs(found - wanted) < 0.15 * wanted + 2 * float(error[label]), (name, found)


def test_classes_are_clustered(boxes: torch.Tensor) -> None:
    by_name = {name: boxes[:, label] for label, name in enumerate(CLASS_NAMES)}
    assert (by_name["barrier"] == 0).double().mean() > 0.6
    assert by_name["barrier"].max() >= 30
    assert (by_name["traffic_cone"] == 0).double().mean() > 0.4
    assert (by_name["trailer"] == 0).double().mean() > 0.6
    assert (by_name["pedestrian"] == 0).double().mean() > 0.1
    assert by_name["pedestrian"].max() >= 25
    assert by_name["car"].max() >= 30


def test_a_balanced_world_holds_more_of_what_is_rare(boxes: torch.Tensor) -> None:
    balanced = visible_boxes("balanced", 24).mean(0)
    for name in ("bus", "construction_vehicle", "trailer", "motorcycle", "bicycle"):
        label = CLASS_NAMES.index(name)
        assert balanced[label] > 2 * boxes[:, label].mean(), name


def test_frames_of_two_mixes_have_different_tokens_and_content() -> None:
    first, second = (
        generate_frames(31, [0], key_frames=1, config=WorldConfig(class_mix=mix, sweeps=1))[0]
        for mix in ("nuscenes", "balanced")
    )
    assert first.token != second.token
    assert not torch.equal(first.points, second.points)


@pytest.fixture(scope="module")
def scenes() -> Scenes:
    return lay_out([SceneSpec(31, n, 1) for n in range(100)], WorldConfig(), CPU)


def test_every_kind_of_scene_occurs(scenes: Scenes) -> None:
    counts = torch.bincount(scenes.kind[:, 0], minlength=len(KINDS_OF_SCENES))
    assert (counts > 4).all()
    assert 0.3 < scenes.road.side_street.here.double().mean() < 0.55


def test_attributes_are_as_frequent_as_in_nuscenes(scenes: Scenes) -> None:
    slots, moving = scenes.slots, scenes.slots.speed_mps != 0

    def share(chosen: torch.Tensor, name: str) -> float:
        of_class = scenes.present & (slots.kind == CLASS_NAMES.index(name))
        return float((of_class & chosen).sum() / of_class.sum())

    assert 0.18 < share(moving, "car") < 0.30
    assert 0.08 < share(~moving & slots.in_traffic, "car") < 0.20
    assert 0.65 < share(moving, "pedestrian") < 0.85
    assert 0.01 < share(slots.sitting, "pedestrian") < 0.08
    for name in ("bicycle", "motorcycle"):
        assert 0.15 < share(slots.in_traffic, name) < 0.6


def test_traffic_does_not_thin_out_within_twenty_seconds() -> None:
    scenes = lay_out([SceneSpec(5, n, 41) for n in range(16)], WorldConfig(), CPU)
    rows = torch.arange(16)
    counts = []
    for time_s in (0.0, 10.0, 20.0):
        time = torch.full((16,), time_s, dtype=torch.float64)
        poses = object_poses(scenes, rows, time)
        ahead_m = scenes.ego_speed_mps * time_s
        x, y, _ = scenes.road.place(ahead_m, torch.zeros_like(ahead_m))
        near = torch.hypot(poses.x - x, poses.y - y) < 60.0
        driving = scenes.slots.in_traffic & ~scenes.slots.across & scenes.present
        counts.append(int((near & driving & (scenes.slots.speed_mps != 0)).sum()))
    assert min(counts) > 0.7 * max(counts), counts
