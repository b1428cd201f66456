"""Frames from nuScenes tables, det3d info files and the synthetic world."""
