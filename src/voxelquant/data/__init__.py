"""Frames from nuScenes tables, det3d info files and the synthetic world."""

from voxelquant.data.augment import Augmentation, drop_boxes_outside
from voxelquant.data.collate import FrameBatch, collate_frames
from voxelquant.data.frame import Frame
from voxelquant.data.infos import InfoDataset
from voxelquant.data.loader import LoaderOptions, evaluation_loader, training_loader
from voxelquant.data.nuscenes import NuScenesDataset
from voxelquant.data.records import FrameDataset
from voxelquant.data.sampling import EpochSampler, Shard, class_balanced_order, strided_indices

__all__ = [
    "Augmentation",
    "EpochSampler",
    "Frame",
    "FrameBatch",
    "FrameDataset",
    "InfoDataset",
    "LoaderOptions",
    "NuScenesDataset",
    "Shard",
    "class_balanced_order",
    "collate_frames",
    "drop_boxes_outside",
    "evaluation_loader",
    "strided_indices",
    "training_loader",
]
