"""Quantize sparse-convolution LiDAR detectors, prove what it cost, run them in integers.

The names below are imported on first use, so that `import voxelquant` stays light.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from voxelquant.export import FileRunner, check_file
    from voxelquant.export.from_graph import export_libspconv
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
    "FileRunner": "voxelquant.export",
    "QuantState": "voxelquant.quant",
    "QuantizerMode": "voxelquant.quant",
    "Recipe": "voxelquant.quant",
    "calibrate": "voxelquant.quant",
    "check_file": "voxelquant.export",
    "export_libspconv": "voxelquant.export.from_graph",
    "load_recipe": "voxelquant.quant",
    "lower": "voxelquant.quant",
    "quantize": "voxelquant.quant",
}

__all__ = [
    "FileRunner",
    "QuantState",
    "QuantizerMode",
    "Recipe",
    "calibrate",
    "check_file",
    "export_libspconv",
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
