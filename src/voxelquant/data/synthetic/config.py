"""What can be set about the synthetic world and its LiDAR."""

import math
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

# Raised whenever a scene of the same seed and number changes: weights and results name it.
WORLD_VERSION = 2

# "nuscenes": classes as frequent, and as clustered, as in nuScenes' training set. "balanced": rare
# classes are frequent, so that a few dozen frames hold enough of each to measure its precision.
ClassMix = Literal["nuscenes", "balanced"]
DEFAULT_CLASS_MIX: ClassMix = "nuscenes"


@dataclass(frozen=True)
class LidarConfig:
    """A spinning LiDAR; the defaults are nuScenes' LIDAR_TOP, a Velodyne HDL-32E at 20 Hz."""

    rings: int = 32
    columns: int = 1084  # firings a revolution, as in nuScenes' files
    lowest_elevation_rad: float = math.radians(-30.67)
    highest_elevation_rad: float = math.radians(10.67)
    period_us: int = 50_000
    mount_xyz_m: tuple[float, float, float] = (0.94, 0.0, 1.84)  # in the ego frame
    mount_yaw_rad: float = -math.pi / 2  # LiDAR x points right, y forward
    # nuScenes' sensor leans: the ground ahead lies higher in its frame than the ground behind.
    mount_pitch_rad: float = 0.0242
    mount_roll_rad: float = 0.0058
    max_range_m: float = 100.0
    range_noise_m: float = 0.006  # of single returns
    ring_bias_m: float = 0.01  # of each laser, for a whole scene

    @property
    def rays(self) -> int:
        """Rays a revolution; ray = column * rings + ring, in firing order."""
        return self.rings * self.columns

    @property
    def column_step_rad(self) -> float:
        """Azimuth between two columns; the head turns clockwise seen from above."""
        return 2 * math.pi / self.columns

    @property
    def ring_step_rad(self) -> float:
        """Elevation between two rings; ring 0 looks lowest."""
        return (self.highest_elevation_rad - self.lowest_elevation_rad) / (self.rings - 1)

    def elevations_rad(self) -> Tensor:
        """Elevation of each ring above the sensor plane, [rings] float64."""
        steps = torch.arange(self.rings, dtype=torch.float64)
        return self.lowest_elevation_rad + steps * self.ring_step_rad


@dataclass(frozen=True)
class WorldConfig:
    """The world: its sensor, what is annotated, and how frames are made of sweeps."""

    lidar: LidarConfig = field(default_factory=LidarConfig)
    sweeps: int = 10  # of a key frame, itself included
    key_frame_period: int = 10  # revolutions from one key frame to the next: 0.5 s
    annotation_range_m: float = 75.0
    class_mix: ClassMix = DEFAULT_CLASS_MIX
    close_m: float = 1.0  # sweeps lose the points with |x| and |y| below this (not the key frame)


@dataclass(frozen=True)
class SceneSpec:
    """One scene: what it holds follows from (seed, scene) alone."""

    seed: int
    scene: int
    key_frames: int = 2

    @property
    def name(self) -> str:
        """Scene name in the tables."""
        return f"synthetic-{self.seed}-{self.scene:05d}"


def describe_world(seed: int, config: WorldConfig) -> str:
    """What generated frames are called in results.

    >>> describe_world(7, WorldConfig(class_mix="balanced")).partition(", ")[2]
    'class mix balanced, seed 7'
    """
    return f"synthetic world {WORLD_VERSION}, class mix {config.class_mix}, seed {seed}"
