"""The nuScenes protocol through the official devkit."""

from voxelquant.evaluation.latency import Latency, measure_latency
from voxelquant.evaluation.nuscenes import Metrics, evaluate_detections
from voxelquant.evaluation.submission import Detections

__all__ = ["Detections", "Latency", "Metrics", "evaluate_detections", "measure_latency"]
