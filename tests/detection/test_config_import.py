import copy
from collections.abc import Iterator
from pathlib import Path

import pytest

from voxelquant.detection.config import Reader, config_to_yaml, load_config
from voxelquant.detection.config_import import import_det3d_config
from voxelquant.detection.config_interpreter import interpret_config
from voxelquant.errors import ConfigError

ORIGINAL_STYLE = (Path(__file__).parent / "original_style_config.txt").read_text()


def _load(tmp_path, *replacements: tuple[str, str]):
    text = ORIGINAL_STYLE
    for old, new in replacements:
        assert old in text, old
        text = text.replace(old, new)
    path = tmp_path / "my_detector.py"
    path.write_text(text)
    return load_config(path)


def test_original_config_equals_the_bundled_one(tmp_path) -> None:
    imported = _load(tmp_path).model_dump()
    bundled = load_config("centerpoint_voxel0075").model_dump()
    assert imported.pop("name") == "my_detector"
    bundled.pop("name")
    assert imported == bundled


def test_one_voxel_limit_serves_training_and_inference(tmp_path) -> None:
    config = _load(tmp_path, ("[120000, 160000]", "150000"))
    assert config.max_voxels == (150_000, 150_000)


def test_sampler_may_be_absent_and_rotation_a_number(tmp_path) -> None:
    config = _load(
        tmp_path,
        ("db_sampler=db_sampler", "db_sampler=None"),
        ("[-0.78539816, 0.78539816]", "0.5"),
    )
    assert config.train.object_sampler is None
    assert config.train.augmentation.rotation_range_rad == (-0.5, 0.5)


@pytest.mark.parametrize(
    ("replacement", "message"),
    [
        (("dcn_head=False", "dcn_head=True"), "bbox_head.dcn_head: a DCN head.*not supported"),
        (("FLIP = False", "FLIP = True"), "double flip .*not supported"),
        (('"VoxelNet"', '"PointPillars"'), "model.type: PointPillars is not supported"),
        (('"VoxelNet"', '"TwoStageDetector"'), "TwoStageDetector is not supported"),
        (('"VoxelFeatureExtractorV3"', '"PillarFeatureNet"'), "type: PillarFeatureNet is not"),
        (
            ('"VoxelFeatureExtractorV3"', '"DynamicVoxelEncoder"'),
            "voxel_generator: a DynamicVoxelEncoder has no limits",
        ),
        (('"SpMiddleResNetFHD"', '"PointPillarsScatter"'), "backbone.type: PointPillarsScatter"),
        (('"adam"', '"sgd"'), "optimizer.type: sgd is not supported"),
        (
            ("score_threshold=", "score_treshold="),
            "test_cfg.score_threshold: missing",
        ),
        (("ds_layer_strides=", "ds_stride="), "neck.ds_layer_strides: missing"),
        (("num_input_features=256", "num_input_features=128"), "neck.num_input_features: got 128"),
        (("nms=dict(", "nms=dict(use_nms=1,"), "nms.use_nms: unknown key.*`use_rotate_nms`"),
        (("share_conv_channel=", "share_channel="), "head.share_channel: unknown.*`share_conv_ch"),
        (("max_objs=500,", ""), "assigner.max_objs: missing"),
        (("pc_range=[-54, -54]", "pc_range=[-50, -54]"), "test_cfg.pc_range: got"),
        (('num_class=1, class_names=["car"]', 'num_class=2, class_names=["car"]'), "num_class"),
        (("total_epochs = 20", "total_epochs = 'x'"), "schedule.epochs: .*integer"),
        (("voxel_generator = dict(", "generator = dict("), "voxel_generator: missing"),
        (("model = dict(", "model = 1\nrest = dict("), "fails|got a int, need a dict"),
    ],
)
def test_unsupported_parts_are_refused_by_name(tmp_path, replacement, message) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        _load(tmp_path, replacement)
    assert "\n" not in str(caught.value)
    assert "my_detector.py" in str(caught.value)


GENERATOR = ORIGINAL_STYLE[ORIGINAL_STYLE.index("voxel_generator = dict(") :].partition("\n)\n")[0]
# What makes a dynamic config of the original-style one.
DYNAMIC = (
    (GENERATOR + "\n)\n", ""),
    (
        'dict(type="VoxelFeatureExtractorV3", num_input_features=5)',
        'dict(type="DynamicVoxelEncoder", pc_range=[-54, -54, -5.0, 54, 54, 3.0],\n'
        "        voxel_size=[0.075, 0.075, 0.2])",
    ),
    (
        "    max_objs=500,\n    min_radius=2,\n)",
        "    max_objs=500,\n    min_radius=2,\n    pc_range=[-54, -54, -5.0, 54, 54, 3.0],\n"
        "    voxel_size=[0.075, 0.075, 0.2],\n)",
    ),
)
VIRTUAL = (
    ("voxel_size=[0.075, 0.075, 0.2])", "voxel_size=[0.075, 0.075, 0.2], virtual=True)"),
    ('"SpMiddleResNetFHD", num_input_features=5', '"SpMiddleResNetFHD", num_input_features=21'),
    ("info_path=train_anno, nsweeps", "info_path=train_anno, virtual=True, nsweeps"),
    ("info_path=val_anno, nsweeps", "info_path=val_anno, virtual=True, nsweeps"),
)


def test_dynamic_config_differs_in_its_reader_alone(tmp_path) -> None:
    imported = _load(tmp_path, *DYNAMIC).model_dump(mode="json")
    bundled = load_config("centerpoint_voxel0075").model_dump(mode="json")
    assert {key for key in imported if imported[key] != bundled[key]} == {
        "name",
        "reader",
        "max_points_per_voxel",
        "max_voxels",
    }
    assert (imported["reader"], imported["max_voxels"]) == ("dynamic", None)


def test_debug_config_trains_on_every_thousandth_frame(tmp_path) -> None:
    interval = ("info_path=train_anno,", "info_path=train_anno, load_interval=1000,")
    config = _load(tmp_path, *DYNAMIC, interval)
    assert config.data.train_interval == 1000
    assert _load(tmp_path, *DYNAMIC).data.train_interval == 1


def test_virtual_config_has_21_features_of_16_columns(tmp_path) -> None:
    config = _load(tmp_path, *DYNAMIC, *VIRTUAL)
    assert config.reader is Reader.DYNAMIC_VIRTUAL
    assert (config.backbone.in_channels, config.n_point_columns) == (21, 16)


def test_a_resolved_dynamic_config_is_read_back(tmp_path) -> None:
    config = _load(tmp_path, *DYNAMIC, *VIRTUAL)
    path = tmp_path / "resolved.yaml"
    path.write_text(config_to_yaml(config))
    assert load_config(path) == config


@pytest.mark.parametrize(
    ("replacements", "message"),
    [
        (
            (*DYNAMIC[:2], (DYNAMIC[2][0], DYNAMIC[2][1].replace("54, 54, 3.0", "50, 54, 3.0"))),
            "assigner.pc_range: got",
        ),
        (
            (
                *DYNAMIC[:2],
                (DYNAMIC[2][0], DYNAMIC[2][1].replace("0.075, 0.075, 0.2", "0.1, 0.1, 0.2")),
            ),
            "assigner.voxel_size: got",
        ),
        ((*DYNAMIC, VIRTUAL[0]), "got 5 backbone.in_channels, need 21"),
        ((*DYNAMIC, *VIRTUAL[:2]), "data.train.virtual: got False"),
        ((*DYNAMIC, VIRTUAL[2]), "data.train.virtual: got True"),
        (
            (*DYNAMIC, ("pc_range=[-54, -54, -5.0", "range=[-54, -54, -5.0")),
            "reader.pc_range: missing",
        ),
    ],
)
def test_contradictions_of_dynamic_configs_are_named(tmp_path, replacements, message) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        _load(tmp_path, *replacements)
    assert "\n" not in str(caught.value)


def test_flip_step_in_the_pipeline_is_refused(tmp_path) -> None:
    with pytest.raises(ConfigError, match="test_pipeline: double flip"):
        _load(tmp_path, ('dict(type="DoubleFlip") if DOUBLE_FLIP else', 'dict(type="DoubleFlip"),'))


def _leaves(value: object, path: tuple = ()) -> Iterator[tuple]:
    yield path
    if isinstance(value, dict | list):
        for key in value if isinstance(value, dict) else range(len(value)):
            yield from _leaves(value[key], (*path, key))


@pytest.mark.parametrize("junk", [None, -1, "junk", [], {}, [[{}]], float("nan")], ids=repr)
def test_junk_anywhere_is_an_error_of_the_user_or_ignored(junk) -> None:
    names = interpret_config(ORIGINAL_STYLE, "./original.py")
    messages = []
    for path in list(_leaves(names))[1:]:
        changed = copy.deepcopy(names)  # the tasks are one object in several places: keep it so
        section = changed
        for key in path[:-1]:
            section = section[key]
        section[path[-1]] = junk
        try:
            import_det3d_config(changed, "original.py")
        except ConfigError as error:
            messages.append(str(error))
    assert len(messages) > 50
    assert not [message for message in messages if "\n" in message]


# Where the original Waymo files differ from the original nuScenes ones.
WAYMO_STYLE = (
    (
        ORIGINAL_STYLE[ORIGINAL_STYLE.index("tasks = [") : ORIGINAL_STYLE.index("class_names = ")],
        'tasks = [dict(num_class=3, class_names=["VEHICLE", "PEDESTRIAN", "CYCLIST"])]\n',
    ),
    ("dataset='nuscenes'", "dataset='waymo'"),
    ("weight=0.25", "weight=2"),
    ("[1.0] * 6 + [0.2, 0.2, 1.0, 1.0]", "[1.0] * 8"),
    (", 'vel': (2, 2)}", "}"),
    ("        share_conv_channel=64,\n        dcn_head=False,\n", ""),
    ("[-61.2, -61.2, -10.0, 61.2, 61.2, 10.0]", "[-80, -80, -10.0, 80, 80, 10.0]"),
    ("nms_pre_max_size=1000", "nms_pre_max_size=4096"),
    ("nms_post_max_size=83", "nms_post_max_size=500"),
    ("nms_iou_threshold=0.2", "nms_iou_threshold=0.7"),
    ("pc_range=[-54, -54]", "pc_range=[-75.2, -75.2]"),
    ("voxel_size=[0.075, 0.075],", "voxel_size=[0.1, 0.1],"),
    ("NuScenesDataset", "WaymoDataset"),
    ("nsweeps = 10", "nsweeps = 1"),
    ('data_root = "data/nuScenes"', 'data_root = "data/Waymo"'),
    (
        "data/nuScenes/dbinfos_train_10sweeps_withvelo",
        "data/Waymo/dbinfos_train_1sweeps_withvelo",
    ),
    (
        ORIGINAL_STYLE[ORIGINAL_STYLE.index("        dict(car=2)") :].partition("    ],\n")[0],
        "        dict(VEHICLE=15), dict(PEDESTRIAN=10), dict(CYCLIST=10),\n",
    ),
    (
        ORIGINAL_STYLE[ORIGINAL_STYLE.index("            car=5, truck=5") :].partition(")),")[0],
        "            VEHICLE=5, PEDESTRIAN=5, CYCLIST=5",
    ),
    ("[0.9, 1.1]", "[0.95, 1.05]"),
    ("    global_translate_std=0.5,\n", ""),
    ("[-54, -54, -5.0, 54, 54, 3.0]", "[-75.2, -75.2, -2, 75.2, 75.2, 4]"),
    ("voxel_size=[0.075, 0.075, 0.2]", "voxel_size=[0.1, 0.1, 0.15]"),
    ("max_points_in_voxel=10", "max_points_in_voxel=5"),
    ("[120000, 160000]", "[150000, 200000]"),
    (
        "data/nuScenes/infos_train_10sweeps_withvelo_filter_True",
        "data/Waymo/infos_train_01sweeps_filter_zero_gt",
    ),
    (
        "data/nuScenes/infos_val_10sweeps_withvelo_filter_True",
        "data/Waymo/infos_val_01sweeps_filter_zero_gt",
    ),
    ("lr_max=0.001", "lr_max=0.003"),
    ("total_epochs = 20", "total_epochs = 36"),
)


def test_original_waymo_config_equals_the_bundled_one(tmp_path) -> None:
    """One task of three classes, no velocity, defaults of the head where the file is silent."""
    imported = _load(tmp_path, *WAYMO_STYLE).model_dump()
    bundled = load_config("centerpoint_waymo_3x").model_dump()
    assert imported.pop("name") == "my_detector"
    bundled.pop("name")
    assert imported == bundled
