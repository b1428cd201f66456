"""The three laws of a sparse file as layers: int8 and fp16 convolution, residual sum.

Each is built once from a node and the file's bytes, and computes exactly what `numerics` says.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from voxelquant.errors import ExportError
from voxelquant.export.checks.geometry import conv_geometry
from voxelquant.export.ir import INT8, Add, Graph, SparseConvolution
from voxelquant.numerics import (
    add_dequantized,
    dequantize_accumulator,
    epilogue_multiplier,
    quantize,
    scale_from_amax,
)
from voxelquant.sparse import (
    ActiveSites,
    ConvGeometry,
    KernelMap,
    sparse_conv_fp16,
    sparse_conv_int8,
)


@dataclass(frozen=True)
class Value:
    """A tensor between nodes: int8 codes with their scale, or float16; without sites if dense."""

    features: Tensor
    sites: ActiveSites | None
    scale: Tensor | None = None


def finish(y: Tensor, *, relu: bool, scale: Tensor | None) -> Tensor:
    """End of every layer: activation, then the one rounding, to int8 codes or to float16."""
    if relu:
        y = torch.relu(y)
    return y.to(torch.float16) if scale is None else quantize(y, scale)


@dataclass(frozen=True)
class ConvLayer:
    """A convolution ready to run.

    Attributes:
        node: the node it was built from.
        geometry: kernel geometry in the file's axis order.
        weight: `[c_out, k0, k1, k2, c_in]`, int8 codes or the stored float16.
        bias: `[c_out]`, float32 beside codes, else the stored float16.
        in_scale: step of the input codes; None for an fp16 layer.
        multiplier: `[c_out]` float32 of the integer epilogue; None for an fp16 layer.
        out_scale: step of the output codes; None for an fp16 output.
    """

    node: SparseConvolution
    geometry: ConvGeometry
    weight: Tensor
    bias: Tensor
    in_scale: Tensor | None
    multiplier: Tensor | None
    out_scale: Tensor | None

    @classmethod
    def build(
        cls, node: SparseConvolution, graph: Graph, scales: dict[str, Tensor], device: torch.device
    ) -> ConvLayer:
        """Quantize the stored weights by the file's ranges, derive the epilogue."""
        if node.activation not in ("ReLU", "None", ""):
            raise ExportError(
                f"{node.name}: got activation {node.activation!r}, the runner executes ReLU only"
            )
        weight, bias = (
            torch.from_numpy(graph.initializers[name].copy()).to(device) for name in node.inputs[1:]
        )
        in_scale = multiplier = None
        if node.precision == INT8:
            amax = torch.tensor(node.weight_dynamic_ranges, dtype=torch.float32, device=device)
            scale = scale_from_amax(amax)  # [c_out]
            weight = quantize(weight, scale.view(-1, 1, 1, 1, 1))
            in_scale = scales[node.inputs[0]]
            multiplier = epilogue_multiplier(in_scale, scale)
            bias = bias.to(torch.float32)
        out_scale = scales[node.output] if node.output_precision == INT8 else None
        return cls(node, conv_geometry(node), weight, bias, in_scale, multiplier, out_scale)

    def __call__(self, x: Tensor, kernel_map: KernelMap) -> Tensor:
        """`[n, c_in]` codes or float16 → `[m, c_out]` codes or float16."""
        if self.in_scale is None or self.multiplier is None:
            y = sparse_conv_fp16(x, self.weight, kernel_map, self.bias)
        else:
            codes = x if x.dtype == torch.int8 else quantize(x, self.in_scale)
            acc = sparse_conv_int8(codes, self.weight, kernel_map)
            y = dequantize_accumulator(acc, self.multiplier, self.bias)
        return finish(y, relu=self.node.activation == "ReLU", scale=self.out_scale)


@dataclass(frozen=True)
class AddLayer:
    """A residual sum ready to run, with the Relu that the engine folds into it."""

    node: Add
    relu: bool
    out_scale: Tensor | None

    def __call__(self, a: Value, b: Value) -> Tensor:
        """`[n, c]` + `[n, c]`, both codes or both float16."""
        if a.scale is not None and b.scale is not None:
            y = add_dequantized(a.features, a.scale, b.features, b.scale)
        else:
            y = a.features.to(torch.float32) + b.features.to(torch.float32)
        return finish(y, relu=self.relu, scale=self.out_scale)
