import itertools
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from pyquaternion import Quaternion

from nuscenes_world import (
    CLASS_NAMES,
    KEY_FRAMES,
    POINTS_PER_SWEEP,
    SENSOR_TRANSLATION,
    SWEEPS_PER_KEY_FRAME,
    VERSION,
    TinyNuScenes,
    ego_pose,
)
from voxelquant.data.nuscenes import NuScenesDataset
from voxelquant.data.tables import TABLE_NAMES
from voxelquant.errors import DatasetError, MissingDependencyError
from voxelquant.geometry import transform_points, wrap_to_pi

CLOSE_POINTS = 10  # of the fixture's points in every file


@pytest.fixture(scope="module")
def dataset(tiny: TinyNuScenes) -> NuScenesDataset:
    return NuScenesDataset(tiny.root, VERSION, "check", CLASS_NAMES)


def sensor_to_global(time_s: float, tilt_rad: float) -> np.ndarray:
    """The fixture's chain of poses once more, through pyquaternion."""
    translation, heading = ego_pose(time_s)
    turn = Quaternion(axis=[0, 0, 1], radians=heading)
    ego = turn.transformation_matrix
    ego[:3, 3] = translation
    mount = Quaternion(axis=[0, 0, 1], radians=-math.pi / 2) * Quaternion(
        axis=[1, 0, 0], radians=tilt_rad
    )
    sensor = mount.transformation_matrix
    sensor[:3, 3] = SENSOR_TRANSLATION
    return ego @ sensor


def raw_points(tiny: TinyNuScenes, sweep: int, scene: str = "scene-b") -> np.ndarray:
    folder = "sweeps" if sweep % SWEEPS_PER_KEY_FRAME else "samples"
    path = tiny.root / folder / "LIDAR_TOP" / f"{scene}-{sweep:02d}.pcd.bin"
    return np.fromfile(path, dtype=np.float32).reshape(-1, 5)


def test_a_split_is_its_samples_in_table_order(
    tiny: TinyNuScenes, dataset: NuScenesDataset
) -> None:
    assert dataset.sample_tokens == ("scene-b-s0", "scene-b-s1", "scene-b-s2")
    assert len(dataset) == KEY_FRAMES
    assert len(NuScenesDataset(tiny.root, VERSION, "both", CLASS_NAMES)) == 2 * KEY_FRAMES
    with pytest.raises(IndexError):
        dataset[KEY_FRAMES]


def test_points_of_the_key_frame_come_first_and_untouched(
    tiny: TinyNuScenes, dataset: NuScenesDataset
) -> None:
    frame = dataset[2]
    assert frame.points.dtype == torch.float32
    expected = raw_points(tiny, 2 * SWEEPS_PER_KEY_FRAME)
    head = frame.points[:POINTS_PER_SWEEP].numpy()
    assert np.array_equal(head[:, :4], expected[:, :4])  # close ones included
    assert not head[:, 4].any()


def test_sweeps_follow_by_age_in_the_key_frame(
    tiny: TinyNuScenes, dataset: NuScenesDataset
) -> None:
    points = dataset[2].points.numpy()[POINTS_PER_SWEEP:]
    assert len(points) == 9 * (POINTS_PER_SWEEP - CLOSE_POINTS)
    key = 2 * SWEEPS_PER_KEY_FRAME
    from_global = np.linalg.inv(sensor_to_global(key * 0.1, 0.05))
    for age, chunk in enumerate(np.split(points, 9), start=1):
        raw = raw_points(tiny, key - age)[CLOSE_POINTS:]
        homogeneous = np.c_[raw[:, :3].astype(np.float64), np.ones(len(raw))]
        moved = homogeneous @ (from_global @ sensor_to_global((key - age) * 0.1, 0.05)).T
        np.testing.assert_allclose(chunk[:, :3], moved[:, :3], rtol=0, atol=1e-5)
        assert np.array_equal(chunk[:, 3], raw[:, 3])
        np.testing.assert_allclose(chunk[:, 4], 0.1 * age, rtol=0, atol=1e-6)


def test_first_frame_of_a_scene_is_padded_with_itself(
    tiny: TinyNuScenes, dataset: NuScenesDataset
) -> None:
    points = dataset[0].points
    raw = raw_points(tiny, 0)
    padding = np.concatenate([raw[CLOSE_POINTS:, :4]] * 9)
    assert np.array_equal(points[:, :4].numpy(), np.concatenate([raw[:, :4], padding]))
    assert not points[:, 4].any()


def test_second_frame_repeats_its_oldest_sweep(dataset: NuScenesDataset) -> None:
    frame = dataset[1]
    kept = POINTS_PER_SWEEP - CLOSE_POINTS
    ages = frame.points[POINTS_PER_SWEEP::kept, 4]
    torch.testing.assert_close(ages, torch.tensor([0.1, 0.2, 0.3, 0.4] + [0.5] * 5))
    assert torch.equal(frame.points[-kept:], frame.points[-5 * kept : -4 * kept])


def test_nsweeps(tiny: TinyNuScenes) -> None:
    alone = NuScenesDataset(tiny.root, VERSION, "check", CLASS_NAMES, nsweeps=1)
    assert len(alone[1].points) == POINTS_PER_SWEEP
    with pytest.raises(DatasetError, match="nsweeps 0"):
        NuScenesDataset(tiny.root, VERSION, "check", CLASS_NAMES, nsweeps=0)


@pytest.mark.parametrize("index", range(KEY_FRAMES))
def test_boxes_are_the_devkits(dataset: NuScenesDataset, index: int) -> None:
    """Position, size, velocity and yaw' against the devkit's own Box arithmetic."""
    nusc = dataset.nusc
    frame = dataset[index]
    assert frame.boxes_det3d is not None
    assert frame.labels is not None
    sample = nusc.get("sample", frame.token)
    _, expected, _ = nusc.get_sample_data(sample["data"]["LIDAR_TOP"])
    kept = [box for box in expected if box.name not in ("animal", "vehicle.truck")]
    assert len(kept) == len(frame.boxes_det3d)
    to_sensor = np.linalg.inv((frame.ego_to_global @ frame.ref_to_ego).numpy())[:3, :3]
    for box, row in zip(kept, frame.boxes_det3d.tolist(), strict=True):
        np.testing.assert_allclose(row[:3], box.center, rtol=0, atol=1e-5)
        np.testing.assert_allclose(row[3:6], box.wlh, rtol=1e-6)
        velocity = np.nan_to_num(to_sensor @ nusc.box_velocity(box.token))
        np.testing.assert_allclose(row[6:8], velocity[:2], rtol=0, atol=1e-5)
        axis = box.orientation.rotation_matrix @ [1, 0, 0]
        yaw_det3d = torch.tensor(-math.atan2(axis[1], axis[0]) - math.pi / 2)
        assert abs(wrap_to_pi(yaw_det3d - row[8])) < 1e-6
        assert -math.pi <= row[8] < math.pi


def test_known_moving_box(dataset: NuScenesDataset) -> None:
    """The moving car, from the fixture's own numbers rather than from anybody's box code."""
    frame = dataset[1]
    assert frame.boxes_det3d is not None
    center = transform_points(
        frame.boxes_det3d[:1, :3].double(), frame.ego_to_global @ frame.ref_to_ego
    )
    expected = [112.0 + 4.0 * 0.5, 208.0 + 1.2 * 0.5, 0.9]
    torch.testing.assert_close(center[0].tolist(), expected, rtol=0, atol=1e-5)
    velocity = np.linalg.inv(sensor_to_global(0.5, 0.05))[:3, :3] @ [4.0, 1.2, 0.0]
    np.testing.assert_allclose(frame.boxes_det3d[0, 6:8], velocity[:2], rtol=0, atol=1e-5)


def test_labels_drop_other_classes_and_empty_boxes(
    tiny: TinyNuScenes, dataset: NuScenesDataset
) -> None:
    frame = dataset[1]
    assert frame.labels is not None
    assert frame.num_lidar_pts is not None
    names = [CLASS_NAMES[label] for label in frame.labels]
    assert names == [
        "car", "car", "bus", "pedestrian", "pedestrian", "bicycle", "motorcycle", "traffic_cone",
        "barrier", "trailer",
    ]  # fmt: skip
    assert frame.num_lidar_pts.tolist() == [12, 12, 0, *[12] * 7]  # radar alone keeps the bus
    assert dataset.classes_in(0) == set(frame.labels.tolist()) - {CLASS_NAMES.index("trailer")}

    few = NuScenesDataset(
        tiny.root, VERSION, "check", ["pedestrian", "truck"], drop_empty_boxes=False
    )
    assert few[0].labels is not None
    assert few[0].labels.tolist() == [0, 0, 1]
    assert few.classes_in(0) == {0, 1}


def test_unknown_velocity_is_zero(dataset: NuScenesDataset) -> None:
    frame = dataset[1]
    assert frame.boxes_det3d is not None
    assert frame.boxes_det3d[-1, 6:8].tolist() == [0, 0]  # the trailer, annotated once
    assert frame.boxes_det3d.isfinite().all()


def test_frame_without_boxes(tiny: TinyNuScenes) -> None:
    frame = NuScenesDataset(tiny.root, VERSION, "check", ["trailer"])[0]
    assert frame.boxes_det3d is not None
    assert frame.labels is not None
    assert frame.boxes_det3d.shape == (0, 9)
    assert frame.labels.dtype == torch.int64


def test_test_set_has_no_annotations(broken: TinyNuScenes) -> None:
    broken.edit("sample_annotation", list.clear)
    frame = NuScenesDataset(broken.root, VERSION, "check", CLASS_NAMES)[0]
    assert frame.boxes_det3d is None
    assert frame.labels is None


def open_dataset(tiny: TinyNuScenes, version: str = VERSION, split: str = "check") -> None:
    NuScenesDataset(tiny.root, version, split, CLASS_NAMES)


def test_missing_version_names_those_found(tiny: TinyNuScenes) -> None:
    with pytest.raises(DatasetError, match=r"v1\.0-mini: no such version.*holds v1\.0-tiny"):
        open_dataset(tiny, version="v1.0-mini")
    with pytest.raises(DatasetError, match="holds no nuScenes tables"):
        NuScenesDataset(tiny.root / "maps", VERSION, "check", CLASS_NAMES)


@pytest.mark.parametrize("name", TABLE_NAMES)
def test_every_table_must_exist_and_parse(tmp_path: Path, tiny: TinyNuScenes, name: str) -> None:
    folder = tmp_path / VERSION
    folder.mkdir()
    (tmp_path / "maps").mkdir()
    (tmp_path / "maps/none.png").touch()
    for table in TABLE_NAMES:
        (folder / f"{table}.json").write_bytes((tiny.tables / f"{table}.json").read_bytes())
    text = (folder / f"{name}.json").read_text()
    (folder / f"{name}.json").write_text(text[: len(text) // 2])
    with pytest.raises(DatasetError, match=rf"/{name}\.json: not valid JSON.*fetch it again"):
        NuScenesDataset(tmp_path, VERSION, "check", CLASS_NAMES)
    (folder / f"{name}.json").unlink()
    with pytest.raises(DatasetError, match=rf": {name}\.json missing; need all 13"):
        NuScenesDataset(tmp_path, VERSION, "check", CLASS_NAMES)


def test_empty_or_malformed_tables_are_named(broken: TinyNuScenes) -> None:
    (broken.tables / "sample.json").write_text("{}")
    with pytest.raises(DatasetError, match=r"sample\.json: need a list of records"):
        open_dataset(broken)
    (broken.tables / "sample.json").write_text("[]")
    with pytest.raises(DatasetError, match=r"sample\.json: got no records"):
        open_dataset(broken)


def test_missing_map_is_named(broken: TinyNuScenes) -> None:
    (broken.root / "maps/none.png").unlink()
    with pytest.raises(DatasetError, match=r"none\.png: no such map file"):
        open_dataset(broken)


def test_contradicting_tables(broken: TinyNuScenes) -> None:
    broken.edit("sensor", lambda rows: rows[0].update(token="another"))
    with pytest.raises(DatasetError, match=r"tables contradict each other.*KeyError"):
        open_dataset(broken)


def test_dangling_reference_names_the_sample(broken: TinyNuScenes) -> None:
    broken.edit("ego_pose", lambda rows: rows.pop(-1))
    dataset = NuScenesDataset(broken.root, VERSION, "check", CLASS_NAMES)
    assert len(dataset[1].points) > 0
    with pytest.raises(DatasetError, match="sample scene-b-s2 refers to 'scene-b-e10'"):
        dataset.record(2)


def test_unusable_values_name_the_sample(broken: TinyNuScenes) -> None:
    broken.edit("ego_pose", lambda rows: rows[-1].update(rotation=[0, 0, 0, 0]))
    broken.edit("sample_annotation", lambda rows: rows[0].update(size="large"))
    broken.edit("sample_annotation", lambda rows: rows[-1].update(size=[1, math.nan, 1]))
    dataset = NuScenesDataset(broken.root, VERSION, "both", CLASS_NAMES)
    with pytest.raises(DatasetError, match=r"sample scene-b-s2 has .*\(quaternion: got"):
        dataset.record(5)
    with pytest.raises(DatasetError, match="sample scene-a-s0 has an unusable"):
        dataset.record(0)
    with pytest.raises(DatasetError, match="sample scene-b-s1: an annotated box is not finite"):
        dataset[4]


def test_without_the_devkit(tiny: TinyNuScenes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nuscenes.nuscenes", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'voxelquant\[nuscenes\]'"):
        open_dataset(tiny)


def test_damaged_point_file_is_named_on_load(broken: TinyNuScenes) -> None:
    dataset = NuScenesDataset(broken.root, VERSION, "check", CLASS_NAMES)
    path = broken.root / "sweeps/LIDAR_TOP/scene-b-07.pcd.bin"
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(DatasetError, match=r"scene-b-07\.pcd\.bin: got 1193 bytes"):
        dataset[2]
    path.unlink()
    with pytest.raises(DatasetError, match=r"scene-b-07\.pcd\.bin: cannot be read"):
        dataset[2]
    assert dataset.classes_in(2)  # reads no points


def test_splits(tiny: TinyNuScenes) -> None:
    with pytest.raises(DatasetError, match=r"no split chek; did you mean check\?.*both, check"):
        open_dataset(tiny, split="chek")
    with pytest.raises(DatasetError, match=r"split mini_val belongs to .* ends in mini"):
        open_dataset(tiny, split="mini_val")


def test_custom_split_of_absent_scenes(broken: TinyNuScenes) -> None:
    path = broken.tables / "splits.json"
    path.write_text('{"check": ["scene-b", "scene-z"]}')
    with pytest.raises(DatasetError, match=r"names 1 scene .* \(scene-z\)"):
        open_dataset(broken)
    path.write_text('{"check": "scene-b"}')
    with pytest.raises(DatasetError, match="maps split names to lists"):
        open_dataset(broken)
    path.unlink()
    with pytest.raises(DatasetError, match="no split check; known here: none"):
        open_dataset(broken)


def test_official_split_on_its_version(broken: TinyNuScenes) -> None:
    rename = dict(zip(("scene-a", "scene-b"), ("scene-0061", "scene-0103"), strict=True))
    broken.edit("scene", lambda rows: [row.update(name=rename[row["name"]]) for row in rows])
    broken.tables.rename(broken.root / "v1.0-mini")
    dataset = NuScenesDataset(broken.root, "v1.0-mini", "mini_val", CLASS_NAMES)
    assert dataset.sample_tokens == tuple(f"scene-b-s{i}" for i in range(KEY_FRAMES))


def test_official_split_without_samples(broken: TinyNuScenes) -> None:
    broken.tables.rename(broken.root / "v1.0-trainval")
    with pytest.raises(DatasetError, match="split val has no samples here"):
        NuScenesDataset(broken.root, "v1.0-trainval", "val", CLASS_NAMES)


@pytest.mark.parametrize("names", [["car", "Pedestrian"], ["car", "truck", "car"]])
def test_class_names_are_checked(tiny: TinyNuScenes, names: list[str]) -> None:
    with pytest.raises(DatasetError, match="class"):
        NuScenesDataset(tiny.root, VERSION, "check", names)


def test_loading_twice_gives_the_same_frame(dataset: NuScenesDataset) -> None:
    for first, second in itertools.pairwise([dataset[1], dataset[1]]):
        for name, value in vars(first).items():
            other = getattr(second, name)
            same = torch.equal(value, other) if isinstance(value, torch.Tensor) else value == other
            assert same, name


# Every category of nuScenes v1.0 and the detection class that it counts as.
CATEGORIES = {
    "animal": "ignore",
    "human.pedestrian.adult": "pedestrian",
    "human.pedestrian.child": "pedestrian",
    "human.pedestrian.construction_worker": "pedestrian",
    "human.pedestrian.personal_mobility": "ignore",
    "human.pedestrian.police_officer": "pedestrian",
    "human.pedestrian.stroller": "ignore",
    "human.pedestrian.wheelchair": "ignore",
    "movable_object.barrier": "barrier",
    "movable_object.debris": "ignore",
    "movable_object.pushable_pullable": "ignore",
    "movable_object.trafficcone": "traffic_cone",
    "static_object.bicycle_rack": "ignore",
    "vehicle.bicycle": "bicycle",
    "vehicle.bus.bendy": "bus",
    "vehicle.bus.rigid": "bus",
    "vehicle.car": "car",
    "vehicle.construction": "construction_vehicle",
    "vehicle.emergency.ambulance": "ignore",
    "vehicle.emergency.police": "ignore",
    "vehicle.motorcycle": "motorcycle",
    "vehicle.trailer": "trailer",
    "vehicle.truck": "truck",
}


def test_every_category_becomes_its_detection_class(broken: TinyNuScenes) -> None:
    """One more annotation of each of the 23 categories, all on the first key frame."""
    assert len(CATEGORIES) == 23
    broken.edit(
        "category", lambda rows: rows.extend(_named_like(rows[0], name) for name in CATEGORIES)
    )

    def add_instances(rows: list[dict]) -> None:
        rows.extend(
            {**rows[0], "token": f"thing-{name}", "category_token": f"category-{name}"}
            for name in CATEGORIES
        )

    def add_annotations(rows: list[dict]) -> None:
        like = next(row for row in rows if row["sample_token"] == "scene-b-s0")
        rows.extend(
            {
                **like,
                "token": f"box-{name}",
                "instance_token": f"thing-{name}",
                "prev": "",
                "next": "",
            }
            for name in CATEGORIES
        )

    broken.edit("instance", add_instances)
    broken.edit("sample_annotation", add_annotations)
    dataset = NuScenesDataset(broken.root, VERSION, "check", CLASS_NAMES)
    assert dataset.names(0)[-len(CATEGORIES) :] == tuple(CATEGORIES.values())
    annotations = dataset.record(0).annotations
    assert annotations is not None
    assert annotations.names[-len(CATEGORIES) :] == tuple(CATEGORIES.values())


def _named_like(row: dict, name: str) -> dict:
    return {**row, "token": f"category-{name}", "name": name}
