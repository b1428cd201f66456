import math

import pytest
import yaml

from voxelquant.detection.config import bundled_config_names, config_to_yaml, load_config
from voxelquant.errors import ConfigError

NUSCENES_TASKS = (
    ("car",),
    ("truck", "construction_vehicle"),
    ("bus", "trailer"),
    ("barrier",),
    ("motorcycle", "bicycle"),
    ("pedestrian", "traffic_cone"),
)
WAYMO_RANGE = (-75.2, -75.2, -2, 75.2, 75.2, 4)
NUSCENES_CODES = (1, 1, 1, 1, 1, 1, 0.2, 0.2, 1, 1)
NUSCENES_OBJECTS = {
    "car": 2,
    "truck": 3,
    "construction_vehicle": 7,
    "bus": 4,
    "trailer": 6,
    "barrier": 2,
    "motorcycle": 6,
    "bicycle": 6,
    "pedestrian": 2,
    "traffic_cone": 2,
}

# name: (range, voxel size, grid, points, voxels train/test, features, nsweeps)
GEOMETRY = {
    "centerpoint_voxel0075": (
        (-54, -54, -5, 54, 54, 3),
        (0.075, 0.075, 0.2),
        (1440, 1440, 40),
        10,
        (120_000, 160_000),
        5,
        10,
    ),
    "centerpoint_voxel01": (
        (-51.2, -51.2, -5, 51.2, 51.2, 3),
        (0.1, 0.1, 0.2),
        (1024, 1024, 40),
        10,
        (90_000, 120_000),
        5,
        10,
    ),
}
for _name, _limit in {
    "1x": (150_000, 150_000),
    "3x": (150_000, 200_000),
    "3epoch": (150_000, 150_000),
    "6epoch": (150_000, 150_000),
    "two_sweeps_3x_with_velo": (180_000, 400_000),
}.items():
    _sweeps = 2 if _name.startswith("two") else 1
    GEOMETRY[f"centerpoint_waymo_{_name}"] = (
        WAYMO_RANGE,
        (0.1, 0.1, 0.15),
        (1504, 1504, 40),
        5,
        _limit,
        4 + _sweeps,
        _sweeps,
    )

# name: (epochs, lr_max, half rotation range, scale range, translation std)
TRAINING = {
    "centerpoint_voxel0075": (20, 1e-3, math.pi / 4, (0.9, 1.1), 0.5),
    "centerpoint_voxel01": (20, 1e-3, 0.3925, (0.95, 1.05), 0.0),
    "centerpoint_waymo_1x": (12, 3e-3, math.pi / 4, (0.95, 1.05), 0.0),
    "centerpoint_waymo_3x": (36, 3e-3, math.pi / 4, (0.95, 1.05), 0.0),
    "centerpoint_waymo_3epoch": (3, 3e-3, math.pi / 4, (0.95, 1.05), 0.0),
    "centerpoint_waymo_6epoch": (6, 3e-3, math.pi / 4, (0.95, 1.05), 0.0),
    "centerpoint_waymo_two_sweeps_3x_with_velo": (36, 3e-3, math.pi / 4, (0.95, 1.05), 0.0),
}
RELEASED = sorted(GEOMETRY)
WAYMO = [name for name in RELEASED if "waymo" in name]
NUSCENES = ["centerpoint_voxel0075", "centerpoint_voxel01"]


def test_every_bundled_config_stands_in_these_tables() -> None:
    assert bundled_config_names() == sorted([*RELEASED, "centerpoint_tiny"])
    assert sorted(TRAINING) == RELEASED


@pytest.mark.parametrize("name", RELEASED)
def test_geometry(name: str) -> None:
    config = load_config(name)
    got = (
        config.point_range,
        config.voxel_size,
        config.grid_xyz,
        config.max_points_per_voxel,
        config.max_voxels,
        config.backbone.in_channels,
        config.data.nsweeps,
    )
    assert got == GEOMETRY[name]
    assert config.name == name
    assert config.out_size_factor == 8
    assert config.bev_channels == 256


@pytest.mark.parametrize("name", RELEASED)
def test_network_widths(name: str) -> None:
    config = load_config(name)
    assert config.backbone.channels == (16, 16, 32, 64, 128)
    neck = config.neck
    assert (neck.layer_nums, neck.ds_layer_strides, neck.ds_num_filters) == (
        (5, 5),
        (1, 2),
        (128, 256),
    )
    assert (neck.us_layer_strides, neck.us_num_filters) == ((1, 2), (256, 256))
    assert neck.out_channels == 512
    head = config.head
    assert (head.share_conv_channel, head.head_conv, head.num_hm_conv) == (64, 64, 2)
    assert head.init_bias == -2.19


@pytest.mark.parametrize("name", RELEASED)
def test_training(name: str) -> None:
    config = load_config(name)
    schedule, augmentation = config.train.schedule, config.train.augmentation
    epochs, lr_max, rotation, scale, translation = TRAINING[name]
    assert (schedule.epochs, schedule.lr_max) == (epochs, lr_max)
    assert (schedule.moms, schedule.div_factor, schedule.pct_start) == ((0.95, 0.85), 10, 0.4)
    assert (schedule.weight_decay, schedule.grad_clip_norm) == (0.01, 35)
    assert augmentation.rotation_range_rad == pytest.approx((-rotation, rotation), abs=1e-8)
    assert (augmentation.scale_range, augmentation.translation_std_m) == (scale, translation)
    assert augmentation.enabled
    assert augmentation.shuffle_points
    assert config.train.batch_size == 4
    assert config.train.class_balanced == (config.dataset == "nuscenes")
    assert (config.assigner.gaussian_overlap, config.assigner.max_objs) == (0.1, 500)
    assert config.assigner.min_radius == 2


@pytest.mark.parametrize("name", NUSCENES)
def test_nuscenes_head_and_decoding(name: str) -> None:
    config = load_config(name)
    assert config.tasks == NUSCENES_TASKS
    assert tuple(config.head.common_heads) == ("reg", "height", "dim", "rot", "vel")
    assert (config.loss.weight, config.loss.code_weights) == (0.25, NUSCENES_CODES)
    test = config.test_cfg
    assert test.post_center_limit_range == (-61.2, -61.2, -10, 61.2, 61.2, 10)
    assert (test.score_threshold, test.circular_nms) == (0.1, False)
    assert (test.nms.nms_pre_max_size, test.nms.nms_post_max_size) == (1000, 83)
    assert test.nms.nms_iou_threshold == 0.2
    sampler = config.train.object_sampler
    assert sampler is not None
    assert sampler.sample_groups == NUSCENES_OBJECTS
    assert sampler.min_points == dict.fromkeys(NUSCENES_OBJECTS, 5)
    assert (sampler.removed_difficulties, sampler.rate) == ((-1,), 1.0)
    assert config.head_spec.label_offsets == (0, 1, 3, 5, 6, 8)


@pytest.mark.parametrize("name", WAYMO)
def test_waymo_head_and_decoding(name: str) -> None:
    config = load_config(name)
    with_velocity = name.endswith("with_velo")
    assert config.tasks == (("VEHICLE", "PEDESTRIAN", "CYCLIST"),)
    assert config.with_velocity == with_velocity
    assert config.loss.weight == 2
    assert config.loss.code_weights == (NUSCENES_CODES if with_velocity else (1,) * 8)
    test = config.test_cfg
    assert test.post_center_limit_range == (-80, -80, -10, 80, 80, 10)
    assert (test.nms.nms_pre_max_size, test.nms.nms_post_max_size) == (4096, 500)
    assert (test.score_threshold, test.nms.nms_iou_threshold) == (0.1, 0.7)
    sampler = config.train.object_sampler
    assert sampler is not None
    assert sampler.sample_groups == {"VEHICLE": 15, "PEDESTRIAN": 10, "CYCLIST": 10}
    assert f"_{config.data.nsweeps:02d}sweeps_" in str(config.data.train_infos)


def test_tiny_has_the_classes_and_sweeps_of_nuscenes() -> None:
    config = load_config("centerpoint_tiny")
    assert config.tasks == NUSCENES_TASKS
    assert config.data.nsweeps == 10
    assert config.backbone.in_channels == 5
    assert config.point_range == (-51.2, -51.2, -5, 51.2, 51.2, 3)
    assert config.out_size_factor == 4


@pytest.mark.parametrize("name", ["centerpoint_tiny", "centerpoint_waymo_3x"])
def test_resolved_config_reads_back(name: str, tmp_path) -> None:
    path = tmp_path / "resolved.yaml"
    path.write_text(config_to_yaml(load_config(name)))
    assert load_config(path) == load_config(name)


def test_config_is_immutable() -> None:
    with pytest.raises(ValueError, match="frozen"):
        load_config("centerpoint_tiny").name = "other"  # type: ignore[misc]


def _write_changed(tmp_path, **changes: object):
    values = yaml.safe_load(config_to_yaml(load_config("centerpoint_tiny")))
    for path, value in changes.items():
        *sections, key = path.split("__")
        section = values
        for name in sections:
            section = section[name]
        section[key] = value
    path = tmp_path / "changed.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"head__share_conv_chanel": 64}, "head.share_conv_chanel: unknown key.*`share_conv_ch"),
        ({"voxelsize": [1, 1, 1]}, "voxelsize: unknown key.*`voxel_size`"),
        ({"train__schedule__lr_maximum": 1}, "train.schedule.lr_maximum: unknown.*`lr_max`"),
        ({"train__object_sampler": {"rates": 1}}, "object_sampler.rates: unknown key.*`rate`"),
        ({"test_cfg__nms__iou": 1}, "test_cfg.nms.iou: unknown key"),
        ({"backbone__channels": [16, 32, 32, 48, 64]}, "backbone: .*conv1 is residual"),
        ({"backbone__in_channels": "five"}, "backbone.in_channels: .*integer.*'five'"),
        ({"neck__us_layer_strides": [1, 4]}, "neck: .*concatenated"),
        ({"neck__layer_nums": [3]}, "neck: got 1 layer_nums"),
        ({"voxel_size": [0.3, 0.2, 0.2]}, "voxels along x, need a multiple of 16"),
        ({"voxel_size": [float("nan"), 0.2, 0.2]}, "voxel_size.0: .*finite"),
        ({"voxel_size": [0.2, 0.2, 4.0]}, "2 voxels along z"),
        ({"point_range": [51.2, -51.2, -5, -51.2, 51.2, 3]}, "voxels along x, need a multiple"),
        ({"loss__code_weights": [1] * 8}, "code_weights: got 8 values, need 10"),
        ({"tasks": [["car"], ["car"]]}, "each in one task only"),
        ({"tasks": []}, "tasks: "),
        ({"test_cfg__circular_nms": True}, "min_radius, need one"),
        ({"head__common_heads": {"reg": [2, 2]}}, "head: got common_heads"),
        ({"max_voxels": [10, 10, 10]}, "max_voxels: "),
    ],
)
def test_unusable_fields_are_named_in_one_line(tmp_path, changes, message) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        load_config(_write_changed(tmp_path, **changes))
    assert "\n" not in str(caught.value)
    assert "changed.yaml" in str(caught.value)


def test_missing_field_is_named(tmp_path) -> None:
    path = tmp_path / "short.yaml"
    path.write_text("name: short\ntasks: [[car]]\n")
    with pytest.raises(ConfigError, match="point_range: missing"):
        load_config(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- a\n- b\n", "got a list at the top"),
        ("", "got a NoneType at the top"),
        ("name: [1, 2\n", "bad.yaml:2: not a readable YAML"),
        ("name: a\nname: b\n", "bad.yaml:2: .*repeated key 'name'"),
        ("a: &x [1]\nb: *x\n", "bad.yaml:2: got the alias"),
        ("a: " + "[" * 3000 + "]" * 3000, "nested deeper than"),
        ("a: !!python/object/apply:os.system ['true']", "could not determine a constructor"),
        ("? [a]\n: b\n", "bad.yaml:1: not a readable YAML file .*unhashable"),
        ("a: " + "9" * 200_000, "not a readable YAML"),
        ("#" * 300_000, "larger than 256 KiB"),
    ],
)
def test_hostile_yaml_is_refused(tmp_path, text, message) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message) as caught:
        load_config(path)
    assert len(str(caught.value)) < 600


def test_unknown_names_and_unreadable_files(tmp_path) -> None:
    with pytest.raises(ConfigError, match="nearest bundled one is `centerpoint_voxel0075`"):
        load_config("centerpoint_voxel075")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_config(tmp_path / "absent.yaml")
    (tmp_path / "folder.yaml").mkdir()
    with pytest.raises(ConfigError, match="cannot be read"):
        load_config(tmp_path / "folder.yaml")
    (tmp_path / "binary.py").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="not UTF-8"):
        load_config(tmp_path / "binary.py")
