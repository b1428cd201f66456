"""Quantize sparse-convolution LiDAR detectors, prove what it cost, run them in integers."""

__version__ = "0.1.0"
