"""The 13 tables of nuScenes v1.0 for synthetic scenes: plain records, no files touched."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from voxelquant.data.synthetic.annotate import Annotations, join_annotations
from voxelquant.data.synthetic.config import SceneSpec, WorldConfig
from voxelquant.data.synthetic.frames import scene_to_global, timestamp_us, token_of
from voxelquant.data.synthetic.layout import Scenes
from voxelquant.data.synthetic.localization import reported_ego_to_world
from voxelquant.data.synthetic.quaternions import quaternion_wxyz
from voxelquant.data.synthetic.sensor import Revolutions, sensor_to_ego
from voxelquant.data.synthetic.taxonomy import ATTRIBUTES, CATEGORIES, attribute_of
from voxelquant.geometry.rigid import yaw_to_quaternion

Record = dict[str, Any]
VISIBILITY_LEVELS = ("v0-40", "v40-60", "v60-80", "v80-100")
# Owner of the records that all scenes share.
_COMMON, _COMMON_CONFIG = SceneSpec(seed=0, scene=0), WorldConfig()


@dataclass
class Tables:
    """Records by table; scenes are appended one by one."""

    records: dict[str, list[Record]] = field(default_factory=dict)

    def add(self, table: str, **record: Any) -> str:
        """Append a record and return its token."""
        self.records.setdefault(table, []).append(record)
        return str(record["token"])


def common_token(table: str, number: int) -> str:
    """Token of a record that all scenes share."""
    return token_of(f"common/{table}", _COMMON, _COMMON_CONFIG, number)


def start_tables(config: WorldConfig, log_tokens: Sequence[str]) -> Tables:
    """The tables that do not depend on what happens in the scenes."""
    tables = Tables()
    for index, name in enumerate(CATEGORIES):
        tables.add("category", token=common_token("category", index), name=name, description="")
    for index, name in enumerate(ATTRIBUTES):
        tables.add("attribute", token=common_token("attribute", index), name=name, description="")
    for index, level in enumerate(VISIBILITY_LEVELS):
        tables.add("visibility", token=str(index + 1), level=level, description="")
    sensor = tables.add(
        "sensor", token=common_token("sensor", 0), channel="LIDAR_TOP", modality="lidar"
    )
    mount = sensor_to_ego(config.lidar)
    tables.add(
        "calibrated_sensor",
        token=common_token("calibrated_sensor", 0),
        sensor_token=sensor,
        translation=mount[:3, 3].tolist(),
        rotation=quaternion_wxyz(mount[:3, :3]),
        camera_intrinsic=[],
    )
    tables.add(
        "map",
        token=common_token("map", 0),
        log_tokens=list(log_tokens),
        category="semantic_prior",
        filename="maps/none.png",
    )
    for table in ("instance", "ego_pose", "log", "scene", "sample", "sample_data"):
        tables.records.setdefault(table, [])
    tables.records.setdefault("sample_annotation", [])
    return tables


def log_token(spec: SceneSpec, config: WorldConfig) -> str:
    """Token of the log that a scene belongs to: one log a scene."""
    return token_of("log", spec, config)


def add_scene(tables: Tables, spec: SceneSpec, config: WorldConfig) -> None:
    """The scene, its log and its samples."""
    tables.add(
        "log",
        token=log_token(spec, config),
        logfile=spec.name,
        vehicle="synthetic",
        date_captured="2020-09-13",
        location="synthetic",
    )
    samples = [token_of("sample", spec, config, key) for key in range(spec.key_frames)]
    scene = tables.add(
        "scene",
        token=token_of("scene", spec, config),
        log_token=log_token(spec, config),
        nbr_samples=spec.key_frames,
        first_sample_token=samples[0],
        last_sample_token=samples[-1],
        name=spec.name,
        description=f"seed {spec.seed}, scene {spec.scene}, class mix {config.class_mix}",
    )
    for key, token in enumerate(samples):
        revolution = config.sweeps - 1 + key * config.key_frame_period
        tables.add(
            "sample",
            token=token,
            timestamp=timestamp_us(spec, revolution, config),
            prev=samples[key - 1] if key else "",
            next=samples[key + 1] if key + 1 < len(samples) else "",
            scene_token=scene,
        )


def is_key_frame(revolution: int, config: WorldConfig) -> bool:
    """Whether a revolution of a scene is a key frame."""
    since_first = revolution - (config.sweeps - 1)
    return since_first >= 0 and since_first % config.key_frame_period == 0


def revolutions_of(spec: SceneSpec, config: WorldConfig) -> int:
    """Revolutions of a scene: the lead-in sweeps, then up to its last key frame."""
    return config.sweeps + (spec.key_frames - 1) * config.key_frame_period


def sweep_filename(spec: SceneSpec, revolution: int, config: WorldConfig) -> str:
    """Path of a revolution's points below the data root."""
    folder = "samples" if is_key_frame(revolution, config) else "sweeps"
    stamp = timestamp_us(spec, revolution, config)
    return f"{folder}/LIDAR_TOP/{spec.name}__LIDAR_TOP__{stamp}.pcd.bin"


def add_revolutions(
    tables: Tables, spec: SceneSpec, ego_to_global: Tensor, config: WorldConfig
) -> None:
    """Ego poses and sample data of all revolutions of a scene, [revolutions, 4, 4] float64.

    A sweep belongs to the next key frame's sample, the lead-in sweeps to the first one's.
    """
    count = revolutions_of(spec, config)
    tokens = [token_of("sample_data", spec, config, number) for number in range(count)]
    for number, token in enumerate(tokens):
        late = max(0, number - (config.sweeps - 1))
        key = -(-late // config.key_frame_period)
        pose = tables.add(
            "ego_pose",
            token=token,
            timestamp=timestamp_us(spec, number, config),
            rotation=quaternion_wxyz(ego_to_global[number, :3, :3]),
            translation=ego_to_global[number, :3, 3].tolist(),
        )
        tables.add(
            "sample_data",
            token=token,
            sample_token=token_of("sample", spec, config, key),
            ego_pose_token=pose,
            calibrated_sensor_token=common_token("calibrated_sensor", 0),
            timestamp=timestamp_us(spec, number, config),
            fileformat="pcd",
            is_key_frame=is_key_frame(number, config),
            height=0,
            width=0,
            filename=sweep_filename(spec, number, config),
            prev=tokens[number - 1] if number else "",
            next=tokens[number + 1] if number + 1 < count else "",
        )


def add_annotations(
    tables: Tables,
    spec: SceneSpec,
    scene: tuple[Scenes, int],
    truths: Sequence[Annotations],
    config: WorldConfig,
) -> None:
    """Instances and annotations of one scene; `truths` hold its key frames in order."""
    (scenes, row), truth = scene, join_annotations(truths)
    to_global = scene_to_global(scenes)[row]
    yaw = float(scenes.global_yaw_rad[row, 0])
    centre = truth.centre_xyz_m @ to_global[:3, :3].T + to_global[:3, 3]
    for thing in torch.nonzero(truth.annotated.any(0))[:, 0].tolist():
        keys = torch.nonzero(truth.annotated[:, thing])[:, 0].tolist()
        tokens = [token_of("sample_annotation", spec, config, thing, key) for key in keys]
        category = int(scenes.category[row, thing])
        instance = tables.add(
            "instance",
            token=token_of("instance", spec, config, thing),
            category_token=common_token("category", category),
            nbr_annotations=len(keys),
            first_annotation_token=tokens[0],
            last_annotation_token=tokens[-1],
        )
        attribute = _attribute(scenes, row, thing)
        for place, key in enumerate(keys):
            tables.add(
                "sample_annotation",
                token=tokens[place],
                sample_token=token_of("sample", spec, config, key),
                instance_token=instance,
                visibility_token=_visibility(truth, key, thing),
                attribute_tokens=attribute,
                translation=centre[key, thing].tolist(),
                size=scenes.size_wlh_m[row, thing].tolist(),
                rotation=list(yaw_to_quaternion(float(truth.heading_rad[key, thing]) + yaw)),
                prev=tokens[place - 1] if place else "",
                next=tokens[place + 1] if place + 1 < len(keys) else "",
                num_lidar_pts=int(truth.points[key, thing]),
                num_radar_pts=0,
            )


def _attribute(scenes: Scenes, row: int, thing: int) -> list[str]:
    slots = scenes.slots
    name = attribute_of(
        int(slots.kind[row, thing]),
        abs(float(slots.speed_mps[row, thing])),
        in_traffic=bool(slots.in_traffic[row, thing]),
        sitting=bool(slots.sitting[row, thing]),
    )
    return [common_token("attribute", ATTRIBUTES.index(name))] if name else []


def _visibility(truth: Annotations, key: int, thing: int) -> str:
    """Level 1 to 4 by the share of the box that nothing stands before."""
    share = float(truth.in_view[key, thing])
    return str(1 + sum(share >= edge for edge in (0.4, 0.6, 0.8)))


def split_names(splits: Mapping[str, Sequence[SceneSpec]]) -> dict[str, list[str]]:
    """Content of splits.json, which nuscenes-devkit 1.2 reads."""
    return {name: [spec.name for spec in specs] for name, specs in splits.items()}


def ego_to_global(scenes: Scenes, revolutions: Revolutions, config: WorldConfig) -> Tensor:
    """Reported poses of the ego vehicle in the global frame, [r, 4, 4] float64."""
    reported = reported_ego_to_world(scenes, revolutions, config)
    return scene_to_global(scenes)[revolutions.rows] @ reported
