"""A tiny nuScenes-format dataset, written with nothing but json and numpy.

Two scenes of three key frames (2 Hz) with four sweeps between them. The vehicle drives on a curve;
objects move straight at constant velocity, so every velocity of the tables is known in advance.
"""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

CLASS_NAMES = (
    "car",
    "truck",
    "construction_vehicle",
    "bus",
    "trailer",
    "barrier",
    "motorcycle",
    "bicycle",
    "pedestrian",
    "traffic_cone",
)
VERSION = "v1.0-tiny"
SCENES = ("scene-a", "scene-b")
KEY_FRAMES = 3
SWEEPS_PER_KEY_FRAME = 5
SWEEP_US = 100_000
POINTS_PER_SWEEP = 60
SENSOR_TRANSLATION = (0.94, 0.02, 1.84)

Row = dict[str, Any]


@dataclass(frozen=True)
class Thing:
    """An annotated object: where it stands at the scene's first key frame, and how it moves."""

    category: str
    xyz_m: tuple[float, float, float]  # global
    wlh_m: tuple[float, float, float]
    theta_rad: float
    velocity_mps: tuple[float, float] = (0.0, 0.0)
    attribute: str = ""
    num_lidar_pts: int = 12
    num_radar_pts: int = 0
    key_frames: tuple[int, ...] = tuple(range(KEY_FRAMES))


THINGS = (
    Thing("vehicle.car", (112.0, 208.0, 0.9), (1.9, 4.6, 1.7), 0.3, (4.0, 1.2), "vehicle.moving"),
    Thing("vehicle.car", (95.0, 190.0, 0.9), (1.8, 4.2, 1.6), 2.8, (0.0, 0.0), "vehicle.parked"),
    Thing("vehicle.bus.rigid", (120.0, 190.0, 1.7), (2.9, 11.0, 3.4), -1.2, (0.0, 0.0),
          "vehicle.stopped", num_lidar_pts=0, num_radar_pts=3),
    Thing("human.pedestrian.adult", (104.0, 212.0, 0.9), (0.6, 0.7, 1.8), -2.0, (-0.5, -1.1),
          "pedestrian.moving"),
    Thing("human.pedestrian.child", (92.0, 205.0, 0.6), (0.5, 0.5, 1.2), 0.0, (0.0, 0.0),
          "pedestrian.standing"),
    Thing("vehicle.bicycle", (99.0, 185.0, 0.8), (0.6, 1.7, 1.3), 1.5, (0.2, 3.0),
          "cycle.with_rider"),
    Thing("vehicle.motorcycle", (88.0, 199.0, 0.8), (0.8, 2.1, 1.5), -0.4, (0.0, 0.0),
          "cycle.without_rider"),
    Thing("movable_object.trafficcone", (107.0, 195.0, 0.5), (0.4, 0.4, 1.0), 0.0),
    Thing("movable_object.barrier", (93.0, 214.0, 0.5), (2.5, 0.5, 1.0), 0.7),
    # No point of any sensor: training drops it, and so does the metric.
    Thing("vehicle.truck", (110.0, 180.0, 1.4), (2.5, 7.0, 2.8), 0.1, num_lidar_pts=0),
    # No detection class.
    Thing("animal", (98.0, 203.0, 0.4), (0.4, 0.8, 0.6), 0.0),
    # Annotated once: its velocity is unknown.
    Thing("vehicle.trailer", (118.0, 222.0, 1.9), (2.9, 12.0, 3.8), 0.9, key_frames=(1,),
          attribute="vehicle.parked"),
)  # fmt: skip


def yaw_quaternion(theta_rad: float, tilt_rad: float = 0.0) -> list[float]:
    """Quaternion w, x, y, z of a turn by θ about z, then a tilt about the turned x axis."""
    cz, sz = math.cos(theta_rad / 2), math.sin(theta_rad / 2)
    cx, sx = math.cos(tilt_rad / 2), math.sin(tilt_rad / 2)
    return [cz * cx, cz * sx, sz * sx, sz * cx]


def ego_pose(time_s: float) -> tuple[list[float], float]:
    """Position and heading of the vehicle, `time_s` after the start of its scene."""
    heading = 0.6 + 0.15 * time_s
    return [100.0 + 6.0 * time_s, 200.0 + 3.0 * time_s, 0.0], heading


@dataclass(frozen=True)
class TinyNuScenes:
    """Where the dataset lies."""

    root: Path
    version: str = VERSION

    @property
    def tables(self) -> Path:
        return self.root / self.version

    def table(self, name: str) -> list[Row]:
        return json.loads((self.tables / f"{name}.json").read_text())

    def edit(self, name: str, change: Callable[[list[Row]], None]) -> None:
        """Change one table in place."""
        rows = self.table(name)
        change(rows)
        (self.tables / f"{name}.json").write_text(json.dumps(rows))


def write_tiny_nuscenes(
    root: Path, *, things: tuple[Thing, ...] = THINGS, tilt_rad: float = 0.0, seed: int = 0
) -> TinyNuScenes:
    """Write tables, custom splits and point files; splits `fit` and `check` hold a scene each."""
    writer = _Writer(root, things, np.random.default_rng(seed))
    writer.add_constant_tables(tilt_rad)
    for name in SCENES:
        writer.add_scene(name)
    dataset = TinyNuScenes(root)
    dataset.tables.mkdir(parents=True)
    for name, rows in writer.tables.items():
        (dataset.tables / f"{name}.json").write_text(json.dumps(rows))
    splits = {"fit": [SCENES[0]], "check": [SCENES[1]], "both": list(SCENES)}
    (dataset.tables / "splits.json").write_text(json.dumps(splits))
    return dataset


class _Writer:
    def __init__(self, root: Path, things: tuple[Thing, ...], rng: np.random.Generator) -> None:
        self.root = root
        self.things = things
        self.rng = rng
        self.tables: dict[str, list[Row]] = {"visibility": []}

    def add(self, table: str, token: str, **fields: Any) -> str:
        self.tables.setdefault(table, []).append({"token": token, **fields})
        return token

    def add_constant_tables(self, tilt_rad: float) -> None:
        for category in sorted({thing.category for thing in self.things}):
            self.add("category", f"cat-{category}", name=category, description="")
        for attribute in sorted({thing.attribute for thing in self.things} - {""}):
            self.add("attribute", f"att-{attribute}", name=attribute, description="")
        self.add("sensor", "lidar", channel="LIDAR_TOP", modality="lidar")
        self.add(
            "calibrated_sensor",
            "calibration",
            sensor_token="lidar",
            translation=list(SENSOR_TRANSLATION),
            rotation=yaw_quaternion(-math.pi / 2, tilt_rad),
            camera_intrinsic=[],
        )
        self.add("log", "log", logfile="", vehicle="", date_captured="", location="")
        self.add("map", "map", log_tokens=["log"], category="", filename="maps/none.png")
        for folder in ("maps", "samples/LIDAR_TOP", "sweeps/LIDAR_TOP"):
            (self.root / folder).mkdir(parents=True)
        (self.root / "maps/none.png").touch()

    def add_scene(self, name: str) -> None:
        start_us = 1_500_000_000_000_000 + 60_000_000 * SCENES.index(name)
        samples = [f"{name}-s{i}" for i in range(KEY_FRAMES)]
        for i, token in enumerate(samples):
            self.add(
                "sample",
                token,
                timestamp=start_us + i * SWEEPS_PER_KEY_FRAME * SWEEP_US,
                scene_token=name,
                prev=samples[i - 1] if i else "",
                next=samples[i + 1] if i + 1 < KEY_FRAMES else "",
            )
        self.add(
            "scene",
            name,
            name=name,
            description="",
            log_token="log",
            nbr_samples=KEY_FRAMES,
            first_sample_token=samples[0],
            last_sample_token=samples[-1],
        )
        self.add_sweeps(name, samples, start_us)
        for number, thing in enumerate(self.things):
            self.add_annotations(f"{name}-i{number}", thing, samples)

    def add_sweeps(self, scene: str, samples: list[str], start_us: int) -> None:
        count = (KEY_FRAMES - 1) * SWEEPS_PER_KEY_FRAME + 1
        for i in range(count):
            is_key_frame = i % SWEEPS_PER_KEY_FRAME == 0
            folder = "samples" if is_key_frame else "sweeps"
            filename = f"{folder}/LIDAR_TOP/{scene}-{i:02d}.pcd.bin"
            self.write_points(filename)
            translation, heading = ego_pose(i * SWEEP_US * 1e-6)
            self.add(
                "ego_pose",
                f"{scene}-e{i}",
                translation=translation,
                rotation=yaw_quaternion(heading),
                timestamp=start_us + i * SWEEP_US,
            )
            self.add(
                "sample_data",
                f"{scene}-d{i}",
                # A sweep belongs to the key frame that follows it.
                sample_token=samples[-(-i // SWEEPS_PER_KEY_FRAME)],
                ego_pose_token=f"{scene}-e{i}",
                calibrated_sensor_token="calibration",
                timestamp=start_us + i * SWEEP_US,
                fileformat="pcd",
                is_key_frame=is_key_frame,
                height=0,
                width=0,
                filename=filename,
                prev=f"{scene}-d{i - 1}" if i else "",
                next=f"{scene}-d{i + 1}" if i + 1 < count else "",
            )

    def write_points(self, filename: str) -> None:
        points = self.rng.uniform(-1, 1, (POINTS_PER_SWEEP, 5)) * [30, 30, 2, 0, 0]
        points[:10] *= 0.02  # within 0.6 m of the sensor
        points[10:, 0] += 2 * np.sign(points[10:, 0])  # certainly not close to it
        points[:, 3] = self.rng.integers(0, 256, POINTS_PER_SWEEP)
        points[:, 4] = self.rng.integers(0, 32, POINTS_PER_SWEEP)
        points.astype(np.float32).tofile(self.root / filename)

    def add_annotations(self, instance: str, thing: Thing, samples: list[str]) -> None:
        tokens = [f"{instance}-a{k}" for k in thing.key_frames]
        self.add(
            "instance",
            instance,
            category_token=f"cat-{thing.category}",
            nbr_annotations=len(tokens),
            first_annotation_token=tokens[0],
            last_annotation_token=tokens[-1],
        )
        for i, key_frame in enumerate(thing.key_frames):
            time_s = key_frame * SWEEPS_PER_KEY_FRAME * SWEEP_US * 1e-6
            x, y, z = thing.xyz_m
            vx, vy = thing.velocity_mps
            self.add(
                "sample_annotation",
                tokens[i],
                sample_token=samples[key_frame],
                instance_token=instance,
                visibility_token="",
                attribute_tokens=[f"att-{thing.attribute}"] if thing.attribute else [],
                translation=[x + vx * time_s, y + vy * time_s, z],
                size=list(thing.wlh_m),
                rotation=yaw_quaternion(thing.theta_rad),
                prev=tokens[i - 1] if i else "",
                next=tokens[i + 1] if i + 1 < len(tokens) else "",
                num_lidar_pts=thing.num_lidar_pts,
                num_radar_pts=thing.num_radar_pts,
            )
