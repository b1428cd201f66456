"""Quantize sparse-convolution LiDAR detectors, prove what it cost, run them in integers.

The names below are imported on first use, so that `import voxelquant` stays light.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from voxelquant.quant import (
        QuantizerMode,
        QuantState,
        Recipe,
        calibrate,
        load_recipe,
        lower,
        quantize,
    )

__version__ = "0.1.0"

_HOME = {
    "QuantState": "voxelquant.quant",
    "QuantizerMode": "voxelquant.quant",
    "Recipe": "voxelquant.quant",
    "calibrate": "voxelquant.quant",
    "load_recipe": "voxelquant.quant",
    "lower": "voxelquant.quant",
    "quantize": "voxelquant.quant",
}

__all__ = [
    "QuantState",
    "QuantizerMode",
    "Recipe",
    "calibrate",
    "load_recipe",
    "lower",
    "quantize",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'voxelquant' has no attribute {name!r}")
    value = getattr(import_module(_HOME[name]), name)
    globals()[name] = value
    return value
