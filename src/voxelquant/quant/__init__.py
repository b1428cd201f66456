"""Quantization of networks built of sparse convolutions: layers, never detectors."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from voxelquant.quant.calibrate import TensorStatistics, calibrate, observe, set_ranges
from voxelquant.quant.calibrators import choose_amax
from voxelquant.quant.compare import LayerParity, NodeRecord, capture_nodes, layer_parity
from voxelquant.quant.fp8_modules import Fp8SparseAdd, Fp8SparseConv3d
from voxelquant.quant.histogram import MagnitudeHistogram, merge_histograms
from voxelquant.quant.insert import Quantization, is_quantized, quantization_of, quantize
from voxelquant.quant.int8_modules import (
    Fp16SparseAdd,
    Fp16SparseConv3d,
    Int8SparseAdd,
    Int8SparseConv3d,
)
from voxelquant.quant.lower import lower
from voxelquant.quant.modules import (
    LayerPrecision,
    QuantSparseAdd,
    QuantSparseConv3d,
    QuantSparseConvBase,
    QuantSparseInverseConv3d,
    QuantSubMConv3d,
)
from voxelquant.quant.plan import PrecisionPlan, make_plan
from voxelquant.quant.quantizer import QuantizerMode, TensorQuantizer
from voxelquant.quant.recipe import Recipe, bundled_recipes, load_recipe
from voxelquant.quant.spec import QuantSpec
from voxelquant.quant.state import QuantState
from voxelquant.quant.topology import GRAPH_INPUT, FusedGraph, FusedNode

if TYPE_CHECKING:
    from voxelquant.quant.engine.network_plan import NetworkPlan, plan_network

__all__ = [
    "GRAPH_INPUT",
    "Fp8SparseAdd",
    "Fp8SparseConv3d",
    "Fp16SparseAdd",
    "Fp16SparseConv3d",
    "FusedGraph",
    "FusedNode",
    "Int8SparseAdd",
    "Int8SparseConv3d",
    "LayerParity",
    "LayerPrecision",
    "MagnitudeHistogram",
    "NetworkPlan",
    "NodeRecord",
    "PrecisionPlan",
    "QuantSparseAdd",
    "QuantSparseConv3d",
    "QuantSparseConvBase",
    "QuantSparseInverseConv3d",
    "QuantSpec",
    "QuantState",
    "QuantSubMConv3d",
    "Quantization",
    "QuantizerMode",
    "Recipe",
    "TensorQuantizer",
    "TensorStatistics",
    "bundled_recipes",
    "calibrate",
    "capture_nodes",
    "choose_amax",
    "is_quantized",
    "layer_parity",
    "load_recipe",
    "lower",
    "make_plan",
    "merge_histograms",
    "observe",
    "plan_network",
    "quantization_of",
    "quantize",
    "set_ranges",
]


def __getattr__(name: str) -> Any:
    """The planned engine, imported when it is asked for: it needs Triton."""
    if name in ("NetworkPlan", "plan_network"):
        return getattr(import_module("voxelquant.quant.engine.network_plan"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
