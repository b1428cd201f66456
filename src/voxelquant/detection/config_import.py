"""Translate an original CenterPoint config into a detector config.

Every key of every section is either used or named here as one that changes nothing. Facts that
the original states in several places must agree with each other.
"""

from pathlib import Path
from typing import Any

from voxelquant.detection.config_schema import DetectorConfig, Reader
from voxelquant.detection.config_validation import validate_config
from voxelquant.detection.det3d_section import Det3dSection
from voxelquant.detection.det3d_training import import_data, import_training
from voxelquant.errors import ConfigError

_DATASETS = {"NuScenesDataset": "nuscenes", "WaymoDataset": "waymo"}
_BACKBONE_STRIDE = 8


def import_det3d_config(names: dict[str, Any], source: str) -> DetectorConfig:
    """Detector config of an original config's module-level names.

    Args:
        names: what `interpret_config` returned.
        source: path of the config, for messages and for the config's name.

    Raises:
        ConfigError: a part that is not supported (DCN heads, double flip, pillars, two stages),
            an unknown key, or facts that contradict each other.
    """
    # Names at module level are the author's own variables: only the known ones are read.
    top = Det3dSection(names, "", source)
    claims: dict[str, Any] = {}
    model = top.section("model")
    grid = _import_grid(top, model.section("reader"), claims)
    network = _import_network(model, claims)
    dataset = top.require("dataset_type", tuple(_DATASETS))
    values = {
        "name": Path(source).stem,
        "dataset": _DATASETS[dataset],
        **network,
        **grid,
        "assigner": _import_assigner(top.section("assigner"), claims),
        "test_cfg": _import_test_cfg(top.section("test_cfg"), claims),
        "train": import_training(top, claims),
        "data": import_data(top, claims),
    }
    _refuse_flip_steps(top)
    config = validate_config(values, source)
    _check_claims(config, claims, source)
    return config


def _import_network(model: Det3dSection, claims: dict[str, Any]) -> dict[str, Any]:
    model.require("type", ("VoxelNet",))
    model.ignore("pretrained", "train_cfg", "test_cfg")
    backbone = model.section("backbone")
    backbone.require("type", ("SpMiddleResNetFHD",))
    backbone.require("ds_factor", (_BACKBONE_STRIDE,))
    backbone.require("norm_cfg", (None,), None)
    in_channels = backbone.take("num_input_features")
    neck, neck_values = _import_neck(model.section("neck"), claims)
    head, head_values = _import_head(model.section("bbox_head"), claims)
    for section in (backbone, neck, head, model):
        section.close()
    return {"backbone": {"in_channels": in_channels}, "neck": neck_values, **head_values}


def _import_neck(neck: Det3dSection, claims: dict[str, Any]) -> tuple[Det3dSection, dict[str, Any]]:
    neck.require("type", ("RPN",))
    neck.ignore("logger", "name")
    neck.require("norm_cfg", (None,), None)
    claims["model.neck.num_input_features"] = neck.take("num_input_features")
    fields = (
        "layer_nums",
        "ds_layer_strides",
        "ds_num_filters",
        "us_layer_strides",
        "us_num_filters",
    )
    return neck, {field: neck.take(field) for field in fields}


def _import_head(head: Det3dSection, claims: dict[str, Any]) -> tuple[Det3dSection, dict[str, Any]]:
    head.require("type", ("CenterHead",))
    head.refuse_flag("dcn_head", "a DCN head (deformable convolutions)")
    head.ignore("dataset", "mode")
    claims["model.bbox_head.in_channels"] = head.take("in_channels")
    values = {
        "tasks": _task_names(head.sections("tasks")),
        "head": {
            "share_conv_channel": head.take("share_conv_channel", 64),
            "common_heads": head.take("common_heads"),
            "num_hm_conv": head.take("num_hm_conv", 2),
            "init_bias": head.take("init_bias", -2.19),
        },
        "loss": {"weight": head.take("weight", 0.25), "code_weights": head.take("code_weights")},
    }
    return head, values


def _task_names(tasks: list[Det3dSection]) -> list[list[str]]:
    names: list[list[str]] = []
    for task in tasks:
        class_names = task.take_list("class_names")
        task.require("num_class", (len(class_names),), len(class_names))
        task.ignore("stride")
        task.close()
        names.append(class_names)
    return names


def _import_grid(top: Det3dSection, reader: Det3dSection, claims: dict[str, Any]) -> dict[str, Any]:
    """The reader and where voxels lie: a dynamic reader says both, else the voxel generator."""
    kind = reader.require("type", ("VoxelFeatureExtractorV3", "DynamicVoxelEncoder"))
    if kind == "DynamicVoxelEncoder":
        if top.take("voxel_generator", None) is not None:
            raise top.error("voxel_generator", f"a {kind} has no limits and needs none; remove it")
        virtual = reader.require("virtual", (True, False), False)
        values = {
            "reader": (Reader.DYNAMIC_VIRTUAL if virtual else Reader.DYNAMIC).value,
            "point_range": reader.take("pc_range"),
            "voxel_size": reader.take("voxel_size"),
        }
    else:
        claims["model.reader.num_input_features"] = reader.take("num_input_features")
        reader.ignore("norm_cfg")  # the reader has no parameters
        values = _import_voxel_generator(top.section("voxel_generator"))
    reader.close()
    return values


def _import_voxel_generator(grid: Det3dSection) -> dict[str, Any]:
    grid.refuse_flag("double_flip", "double flip (test-time augmentation)")
    limit = grid.take("max_voxel_num")  # one for both, or training and inference
    values = {
        "point_range": grid.take("range"),
        "voxel_size": grid.take("voxel_size"),
        "max_points_per_voxel": grid.take("max_points_in_voxel"),
        "max_voxels": limit if isinstance(limit, list | tuple) else [limit, limit],
    }
    grid.close()
    return values


def _import_assigner(assigner: Det3dSection, claims: dict[str, Any]) -> dict[str, Any]:
    target = assigner.section("target_assigner")
    claims["assigner.target_assigner.tasks"] = _task_names(target.sections("tasks"))
    target.close()
    claims["assigner.out_size_factor"] = assigner.take("out_size_factor")
    claims["assigner.voxel_size"] = assigner.take("voxel_size", None)
    claims["assigner.pc_range"] = assigner.take("pc_range", None)
    assigner.ignore("dense_reg")
    values = {name: assigner.take(name) for name in ("gaussian_overlap", "max_objs", "min_radius")}
    assigner.close()
    return values


def _import_test_cfg(test: Det3dSection, claims: dict[str, Any]) -> dict[str, Any]:
    test.refuse_flag("double_flip", "double flip (test-time augmentation)")
    test.refuse_flag("per_class_nms", "per-class NMS (it returns no boxes in the original)")
    test.ignore("max_per_img")
    for name in ("pc_range", "out_size_factor", "voxel_size"):
        claims[f"test_cfg.{name}"] = test.take(name)
    nms = test.section("nms")
    nms.ignore("use_rotate_nms", "use_multi_class_nms")
    fields = ("nms_pre_max_size", "nms_post_max_size", "nms_iou_threshold")
    values = {
        "score_threshold": test.take("score_threshold"),
        "post_center_limit_range": test.take("post_center_limit_range"),
        "nms": {field: nms.take(field) for field in fields},
        "circular_nms": test.take("circular_nms", False),
        "min_radius": test.take("min_radius", ()),
    }
    nms.close()
    test.close()
    return values


def _refuse_flip_steps(top: Det3dSection) -> None:
    for pipeline in ("train_pipeline", "test_pipeline"):
        for step in top.take_list(pipeline, []):
            if isinstance(step, dict) and (
                step.get("type") == "DoubleFlip" or step.get("double_flip")
            ):
                raise top.error(pipeline, "double flip (test-time augmentation) is not supported")


def _check_claims(config: DetectorConfig, claims: dict[str, Any], source: str) -> None:
    facts: dict[str, Any] = {
        "model.reader.num_input_features": config.backbone.in_channels,
        "model.neck.num_input_features": config.bev_channels,
        "model.bbox_head.in_channels": config.neck.out_channels,
        "assigner.target_assigner.tasks": config.tasks,
        "assigner.out_size_factor": config.out_size_factor,
        "assigner.voxel_size": config.voxel_size,
        "assigner.pc_range": config.point_range,
        "test_cfg.out_size_factor": config.out_size_factor,
        "test_cfg.pc_range": config.point_range[:2],
        "test_cfg.voxel_size": config.voxel_size[:2],
        "data.train.virtual": config.reader is Reader.DYNAMIC_VIRTUAL,
        "data.val.virtual": config.reader is Reader.DYNAMIC_VIRTUAL,
        "train_preprocessor.class_names": config.class_names,
        "nsweeps": config.data.nsweeps,
    }
    for path, claimed in claims.items():
        need = _as_lists(facts[path])
        if claimed is not None and _as_lists(claimed) != need:
            raise ConfigError(
                f"{source}: {path}: got {claimed!r:.80}, but the rest of the config says {need}"
            )


def _as_lists(value: Any) -> Any:
    return [_as_lists(item) for item in value] if isinstance(value, list | tuple) else value
