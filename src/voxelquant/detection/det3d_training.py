"""The training and data sections of an original CenterPoint config."""

from typing import Any

from voxelquant.detection.det3d_section import Det3dSection


def import_training(top: Det3dSection, claims: dict[str, Any]) -> dict[str, Any]:
    """Fields of a `TrainConfig`; facts stated twice go into `claims`.

    Raises:
        ConfigError: an optimiser, schedule or augmentation that is not supported.
    """
    preprocessor = top.section("train_preprocessor")
    augmentation = _import_augmentation(preprocessor, claims)
    sampler = None
    if preprocessor.take("db_sampler", None) is not None:
        sampler = _import_sampler(preprocessor.section("db_sampler"))
    preprocessor.close()
    return {
        "batch_size": top.section("data", {}).take("samples_per_gpu", 4),
        # Only the nuScenes dataset of the original resamples its frames by class.
        "class_balanced": top.take("dataset_type", "") != "WaymoDataset",
        "augmentation": augmentation,
        "object_sampler": sampler,
        "schedule": _import_schedule(top),
    }


def _import_augmentation(section: Det3dSection, claims: dict[str, Any]) -> dict[str, Any]:
    section.require("mode", ("train",))
    section.ignore("npoints")
    section.require("min_points_in_gt", (0, -1), 0)
    claims["train_preprocessor.class_names"] = section.take("class_names")
    rotation = section.take("global_rot_noise", 0)
    return {
        "enabled": not section.take("no_augmentation", False),
        "rotation_range_rad": [-rotation, rotation]
        if isinstance(rotation, int | float)
        else rotation,
        "scale_range": section.take("global_scale_noise", [1, 1]),
        "translation_std_m": section.take("global_translate_std", 0),
        "shuffle_points": section.take("shuffle_points", True),
    }


def _import_sampler(sampler: Det3dSection) -> dict[str, Any]:
    sampler.ignore("type", "enable")  # the original reads neither: a sampler that is there, runs
    steps: dict[str, Any] = sampler.merged("db_prep_steps")
    preparation = Det3dSection(steps, f"{sampler.path}.db_prep_steps", sampler.source)
    values = {
        "info_path": sampler.take("db_info_path"),
        "sample_groups": sampler.merged("sample_groups"),
        "min_points": preparation.take("filter_by_min_num_points", {}),
        "removed_difficulties": preparation.take("filter_by_difficulty", []),
        "rotation_range_rad": sampler.take("global_random_rotation_range_per_object", [0, 0]),
        "rate": sampler.take("rate", 1.0),
    }
    preparation.close()
    sampler.close()
    return values


def _import_schedule(top: Det3dSection) -> dict[str, Any]:
    optimizer = top.section("optimizer")
    optimizer.require("type", ("adam",))
    optimizer.require("amsgrad", (0, False), 0)
    optimizer.require("fixed_wd", (True,))
    optimizer.require("moving_average", (False,), False)
    schedule = top.section("lr_config")
    schedule.require("type", ("one_cycle",))
    clipping = top.section("optimizer_config").section("grad_clip")
    clipping.require("norm_type", (2,), 2)
    values = {
        "epochs": top.take("total_epochs"),
        "lr_max": schedule.take("lr_max"),
        "moms": schedule.take("moms"),
        "div_factor": schedule.take("div_factor"),
        "pct_start": schedule.take("pct_start"),
        "weight_decay": optimizer.take("wd"),
        "grad_clip_norm": clipping.take("max_norm"),
    }
    for section in (optimizer, schedule, clipping):
        section.close()
    return values


def import_data(top: Det3dSection, claims: dict[str, Any]) -> dict[str, Any]:
    """Fields of a `DataConfig`."""
    claims["nsweeps"] = top.take("nsweeps", None)
    data = top.section("data")
    data.ignore("samples_per_gpu", "workers_per_gpu")
    splits = {name: data.section(name) for name in ("train", "val", "test")}
    data.close()
    train = splits["train"]
    for name in ("train", "val"):
        claims[f"data.{name}.virtual"] = splits[name].take("virtual", False)
    return {
        "train_interval": train.take("load_interval", 1),
        "nsweeps": train.take("nsweeps"),
        "root": train.take("root_path"),
        "version": train.take("version", None),
        "train_infos": train.take("info_path"),
        "val_infos": splits["val"].take("info_path"),
        "test_infos": splits["test"].take("info_path"),
    }
