"""Frames from nuScenes tables, det3d info files and the synthetic world."""

from voxelquant.data.augment import Augmentation, drop_boxes_outside
from voxelquant.data.frame import Frame
from voxelquant.data.nuscenes import NuScenesDataset
from voxelquant.data.records import FrameDataset

__all__ = ["Augmentation", "Frame", "FrameDataset", "NuScenesDataset", "drop_boxes_outside"]
