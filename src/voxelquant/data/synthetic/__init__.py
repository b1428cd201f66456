"""The synthetic LiDAR world: seeded scenes, a spinning LiDAR, nuScenes tables."""

from voxelquant.data.synthetic.config import (
    DEFAULT_CLASS_MIX,
    WORLD_VERSION,
    ClassMix,
    LidarConfig,
    SceneSpec,
    WorldConfig,
    describe_world,
)
from voxelquant.data.synthetic.frames import generate_frames, stream_frames
from voxelquant.data.synthetic.generated import GeneratedFrames
from voxelquant.data.synthetic.statistics import count_visible_instances
from voxelquant.data.synthetic.taxonomy import CLASS_NAMES
from voxelquant.data.synthetic.writer import TABLE_VERSION, unfinished_copies, write_dataset

__all__ = [
    "CLASS_NAMES",
    "DEFAULT_CLASS_MIX",
    "TABLE_VERSION",
    "WORLD_VERSION",
    "ClassMix",
    "GeneratedFrames",
    "LidarConfig",
    "SceneSpec",
    "WorldConfig",
    "count_visible_instances",
    "describe_world",
    "generate_frames",
    "stream_frames",
    "unfinished_copies",
    "write_dataset",
]
