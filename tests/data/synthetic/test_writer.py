import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from voxelquant.data.synthetic import (
    CLASS_NAMES,
    TABLE_VERSION,
    SceneSpec,
    WorldConfig,
    count_visible_instances,
    generate_frames,
    unfinished_copies,
    write_dataset,
)
from voxelquant.data.synthetic.parameters import differences, world_parameters
from voxelquant.errors import DatasetError
from voxelquant.geometry.rigid import pose_matrix, quaternion_to_yaw

BALANCED = WorldConfig(class_mix="balanced")
SPLITS = {
    "calibration": [SceneSpec(21, 0, key_frames=1)],
    "validation": [SceneSpec(22, 0, key_frames=3)],
}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    calls: list[tuple[int, int]] = []
    folder = tmp_path_factory.mktemp("world") / "data"
    written = write_dataset(
        folder, SPLITS, config=BALANCED, progress=lambda *call: calls.append(call)
    )
    assert written == folder
    assert calls == [(1, 2), (2, 2)]
    return folder


@pytest.fixture(scope="module")
def devkit(root: Path):  # type: ignore[no-untyped-def]
    nuscenes = pytest.importorskip("nuscenes.nuscenes", reason="needs nuscenes-devkit")
    return nuscenes.NuScenes(TABLE_VERSION, str(root), verbose=False)


def table(root: Path, name: str) -> list[dict]:
    return json.loads((root / TABLE_VERSION / f"{name}.json").read_text())


def load_as_nuscenes_loaders_do(root: Path, sample_token: str) -> np.ndarray:
    """Key frame and nine sweeps in the key frame's LiDAR frame, from the files alone."""
    poses = {pose["token"]: pose for pose in table(root, "ego_pose")}
    mounts = {mount["token"]: mount for mount in table(root, "calibrated_sensor")}
    data = {record["token"]: record for record in table(root, "sample_data")}
    (key,) = [r for r in data.values() if r["sample_token"] == sample_token and r["is_key_frame"]]

    def to_global(record: dict) -> np.ndarray:
        ego, mount = poses[record["ego_pose_token"]], mounts[record["calibrated_sensor_token"]]
        matrices = [pose_matrix(p["translation"], p["rotation"]).numpy() for p in (ego, mount)]
        return matrices[0] @ matrices[1]

    clouds, record = [], key
    for _ in range(10):
        points = np.fromfile(root / record["filename"], dtype=np.float32).reshape(-1, 5)
        if record is not key:
            points = points[~((np.abs(points[:, 0]) < 1) & (np.abs(points[:, 1]) < 1))]
        change = np.linalg.inv(to_global(key)) @ to_global(record)
        xyz = points[:, :3].astype(np.float64) @ change[:3, :3].T + change[:3, 3]
        age = np.full((len(xyz), 1), 1e-6 * (key["timestamp"] - record["timestamp"]))
        clouds.append(np.concatenate([xyz, points[:, 3:4], age], axis=1))
        record = data[record["prev"]] if record["prev"] else None
    return np.concatenate(clouds)


def test_points_on_disk_equal_points_in_memory(root: Path) -> None:
    frames = generate_frames(seed=22, scenes=[0], key_frames=3, config=BALANCED)
    for frame in frames:
        loaded = load_as_nuscenes_loaders_do(root, frame.token)
        torch.testing.assert_close(
            frame.points, torch.from_numpy(loaded).float(), rtol=0, atol=2e-5
        )
        assert np.array_equal(frame.points[:, 3].numpy(), loaded[:, 3].astype(np.float32))


def test_every_key_frame_has_nine_true_sweeps(devkit) -> None:  # type: ignore[no-untyped-def]
    for sample in devkit.sample:
        record = devkit.get("sample_data", sample["data"]["LIDAR_TOP"])
        assert record["is_key_frame"]
        assert record["filename"].startswith("samples/LIDAR_TOP/")
        for age in range(1, 10):
            record = devkit.get("sample_data", record["prev"])
            assert not record["is_key_frame"]
            assert record["filename"].startswith("sweeps/LIDAR_TOP/")
            assert sample["timestamp"] - record["timestamp"] == age * 50_000


def test_the_devkit_reads_boxes_as_they_are_in_memory(devkit) -> None:  # type: ignore[no-untyped-def]
    frames = {
        frame.token: frame for frame in generate_frames(22, [0], key_frames=3, config=BALANCED)
    }
    seen = 0
    for token, frame in frames.items():
        record = devkit.get("sample", token)["data"]["LIDAR_TOP"]
        _, boxes, _ = devkit.get_sample_data(record)
        # The order of annotations is the order of objects in both.
        ours = frame.boxes_det3d.numpy()
        assert len(boxes) == len(ours)
        for box, mine, label in zip(boxes, ours, frame.labels.tolist(), strict=True):
            np.testing.assert_allclose(box.center, mine[:3], atol=2e-5)
            np.testing.assert_allclose(box.wlh, mine[3:6], atol=1e-6)
            turn = quaternion_to_yaw(list(box.orientation.elements)) + mine[8] + np.pi / 2
            assert abs(np.sin(turn)) < 1e-5
            assert np.cos(turn) > 0
            class_name = CLASS_NAMES[label].replace("traffic_cone", "trafficcone")
            assert class_name.split("_")[0] in box.name
            seen += 1
    assert seen > 100


def test_devkit_velocities_are_the_objects_speeds(devkit) -> None:  # type: ignore[no-untyped-def]
    frame = generate_frames(22, [0], key_frames=3, config=BALANCED)[1]
    annotations = devkit.get("sample", frame.token)["anns"]
    expected = frame.boxes_det3d[:, 6:8].norm(dim=1).tolist()
    measured = [float(np.linalg.norm(devkit.box_velocity(token)[:2])) for token in annotations]
    # The beam meets an object a little earlier or later in the next revolution.
    np.testing.assert_allclose(measured, expected, atol=0.08)
    assert max(expected) > 2


def test_annotations_carry_what_the_metric_reads(devkit) -> None:  # type: ignore[no-untyped-def]
    for annotation in devkit.sample_annotation:
        names = [devkit.get("attribute", t)["name"] for t in annotation["attribute_tokens"]]
        category = annotation["category_name"]
        speed = np.linalg.norm(devkit.box_velocity(annotation["token"]))
        if category.startswith("movable_object"):
            assert names == []
        else:
            assert len(names) == 1
        if category.startswith("human"):
            assert names[0].startswith("pedestrian.")
        if category in ("vehicle.bicycle", "vehicle.motorcycle"):
            assert names[0].startswith("cycle.")
        if category.startswith("vehicle") and names[0] == "vehicle.moving":
            assert not speed < 0.2
        assert annotation["visibility_token"] in {"1", "2", "3", "4"}
        assert annotation["num_lidar_pts"] >= 0
    first = [a for a in devkit.sample_annotation if not a["prev"]]
    assert len(first) == len(devkit.instance)


def test_point_files_are_float32_with_ring_and_whole_intensity(root: Path) -> None:
    files = sorted((root / "samples/LIDAR_TOP").iterdir())
    assert len(files) == 4
    assert len(list((root / "sweeps/LIDAR_TOP").iterdir())) == 9 + 9 + 2 * 9
    for file in files:
        assert file.name.endswith(".pcd.bin")
        points = np.fromfile(file, dtype=np.float32).reshape(-1, 5)
        assert len(points) == 34_688  # every ray reports
        assert set(np.unique(points[:, 4])) <= set(range(32))
        assert np.array_equal(points[:, 3], np.round(points[:, 3]))
        range_m = np.linalg.norm(points[:, :3], axis=1)
        points, range_m = points[range_m > 1.7], range_m[range_m > 1.7]  # without clutter
        elevation = np.degrees(np.arcsin(points[:, 2] / range_m))
        np.testing.assert_allclose(elevation, -30.67 + points[:, 4] * 41.34 / 31, atol=0.01)


def test_all_thirteen_tables_and_the_splits_exist(root: Path) -> None:
    names = "category attribute visibility instance sensor calibrated_sensor ego_pose log scene "
    names += "sample sample_data sample_annotation map"
    assert all(table(root, name) for name in names.split())
    splits = json.loads((root / TABLE_VERSION / "splits.json").read_text())
    assert splits == {name: [spec.name for spec in specs] for name, specs in SPLITS.items()}
    assert (root / table(root, "map")[0]["filename"]).exists()


def test_instances_are_counted_within_the_range_of_the_metric(root: Path, devkit) -> None:  # type: ignore[no-untyped-def]
    counts = count_visible_instances(root / TABLE_VERSION, "validation")
    assert set(counts) == set(CLASS_NAMES)
    frames = generate_frames(22, [0], key_frames=3, config=BALANCED)
    limit_m = torch.tensor([50, 50, 50, 50, 50, 30, 40, 40, 40, 30])
    one_frame = torch.zeros(10, dtype=torch.int64)
    for frame in frames:
        centre = frame.boxes_det3d[:, :2].double().clone()
        centre[:, 1] += 0.94  # the metric measures from the ego frame, behind the LiDAR
        near = (centre.norm(dim=1) < limit_m[frame.labels]) & (frame.num_lidar_pts > 0)
        one_frame = torch.maximum(one_frame, torch.bincount(frame.labels[near], minlength=10))
    assert all(
        counts[name] >= least for name, least in zip(CLASS_NAMES, one_frame.tolist(), strict=True)
    )
    assert sum(counts.values()) < 1.5 * int(one_frame.sum())
    with pytest.raises(DatasetError, match="no split 'test'"):
        count_visible_instances(root / TABLE_VERSION, "test")


def test_the_same_data_set_is_reused_and_another_is_refused(root: Path) -> None:
    before = (root / TABLE_VERSION / "sample.json").stat().st_mtime_ns
    assert write_dataset(root, SPLITS, config=BALANCED) == root
    assert (root / TABLE_VERSION / "sample.json").stat().st_mtime_ns == before
    with pytest.raises(DatasetError, match="of class mix balanced, not nuscenes: delete it or"):
        write_dataset(root, SPLITS)
    other = {"validation": [SceneSpec(23, 1)]}
    with pytest.raises(DatasetError, match="seed 21 and 22, not 23; key frames of a scene 1 and"):
        write_dataset(root, other, config=BALANCED)


@pytest.mark.parametrize(
    ("found", "difference"),
    [
        ({}, "world version unknown, not"),
        ({"config": [], "splits": 3, "world_version": 1}, "world version 1, not"),
        ([], "no complete synthetic data set"),
    ],
)
def test_parameters_of_another_make(tmp_path: Path, found: object, difference: str) -> None:
    folder = tmp_path / "data" / TABLE_VERSION
    folder.mkdir(parents=True)
    (folder / "synthetic_world.json").write_text(json.dumps(found))
    with pytest.raises(DatasetError, match=difference):
        write_dataset(tmp_path / "data", {"validation": [SceneSpec(1, 0)]})


def test_other_scenes_of_one_seed_are_told_apart(tmp_path: Path) -> None:
    scenes = world_parameters({"a": [SceneSpec(1, 0)]}, BALANCED)
    others = world_parameters({"a": [SceneSpec(1, 5)]}, BALANCED)
    assert differences(scenes, scenes) == []
    assert differences(scenes, others) == ["other scenes"]


def test_a_folder_with_other_content_is_left_alone(tmp_path: Path) -> None:
    target = tmp_path / "data"
    target.mkdir()
    (target / "mine.txt").write_text("keep")
    with pytest.raises(DatasetError, match="delete it or name another folder"):
        write_dataset(target, {"validation": [SceneSpec(1, 0)]})
    assert (target / "mine.txt").read_text() == "keep"


def test_a_scene_may_not_stand_in_two_splits(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="one split only"):
        write_dataset(tmp_path / "data", {"a": [SceneSpec(1, 0)], "b": [SceneSpec(1, 0)]})


def test_an_interrupted_writing_leaves_nothing_behind(tmp_path: Path) -> None:
    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_dataset(
            tmp_path / "data", {"a": [SceneSpec(1, 0, 1), SceneSpec(1, 1, 1)]}, progress=stop
        )
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_writing_left_is_named_and_neither_used_nor_removed(tmp_path: Path) -> None:
    (left := tmp_path / f".data.partial-{os.getpid()}").mkdir()  # process numbers recur
    (left / "points.bin").touch()
    (tmp_path / ".data2.partial-1").mkdir()
    root = write_dataset(tmp_path / "data", {"a": [SceneSpec(1, 0, 1)]}, config=BALANCED)
    assert unfinished_copies(root) == [left]
    assert [path.name for path in left.iterdir()] == ["points.bin"]
