"""The three laws of a sparse file as layers: int8 and fp16 convolution, residual sum.

Each is built once from a node and the file's bytes, and computes exactly what `numerics` says.
Where readers of a tensor declare different ranges, its codes are made with the first one's, and
each later reader takes them through the ranges of those before it to its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from voxelquant.errors import ExportError
from voxelquant.export.checks.geometry import conv_geometry
from voxelquant.export.ir import INT8, Graph, SparseConvolution, declared_ranges
from voxelquant.numerics import (
    add_dequantized,
    dequantize_accumulator,
    epilogue_multiplier,
    quantize,
    requantize_in_turn,
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


@dataclass(frozen=True)
class FileScales:
    """Steps of a file's tensors.

    Attributes:
        stored: step of a tensor's codes, by tensor: the range of its first int8 reader.
        read: steps that a tensor's codes pass before a node computes with them, by node name and
            operand: the stored one, those of readers in between, the node's own. A step that
            follows itself would change nothing and is left out.
    """

    stored: dict[str, Tensor] = field(default_factory=dict)
    read: dict[tuple[str, int], tuple[Tensor, ...]] = field(default_factory=dict)

    @classmethod
    def of(cls, graph: Graph, device: torch.device) -> FileScales:
        """Steps of all tensors that some node reads in int8."""
        scales = cls()
        passed: dict[str, tuple[Tensor, ...]] = {}
        for declared in declared_ranges(graph):
            own = scale_from_amax(torch.tensor(declared.amax, dtype=torch.float32, device=device))
            chain = passed.get(declared.tensor, ())
            if not chain or not torch.equal(chain[-1], own):
                chain = (*chain, own)
            passed[declared.tensor] = scales.read[declared.consumer, declared.operand] = chain
            scales.stored.setdefault(declared.tensor, own)
        return scales


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
        in_scales: steps that the input codes pass, the layer's own last; empty for an fp16 layer.
        multiplier: `[c_out]` float32 of the integer epilogue; None for an fp16 layer.
        out_scale: step of the output codes; None for an fp16 output.
    """

    node: SparseConvolution
    geometry: ConvGeometry
    weight: Tensor
    bias: Tensor
    in_scales: Sequence[Tensor]
    multiplier: Tensor | None
    out_scale: Tensor | None

    @classmethod
    def build(
        cls, node: SparseConvolution, graph: Graph, scales: FileScales, device: torch.device
    ) -> ConvLayer:
        """Quantize the stored weights by the file's ranges, derive the epilogue."""
        if node.activation not in ("ReLU", "None", ""):
            raise ExportError(
                f"{node.name}: got activation {node.activation!r}, the runner executes ReLU only"
            )
        weight, bias = (
            torch.from_numpy(graph.initializers[name].copy()).to(device) for name in node.inputs[1:]
        )
        in_scales: Sequence[Tensor] = ()
        multiplier = None
        if node.precision == INT8:
            amax = torch.tensor(node.weight_dynamic_ranges, dtype=torch.float32, device=device)
            scale = scale_from_amax(amax)  # [c_out]
            weight = quantize(weight, scale.view(-1, 1, 1, 1, 1))
            in_scales = scales.read[node.name, 0]
            multiplier = epilogue_multiplier(in_scales[-1], scale)
            bias = bias.to(torch.float32)
        out_scale = scales.stored[node.output] if node.output_precision == INT8 else None
        return cls(node, conv_geometry(node), weight, bias, in_scales, multiplier, out_scale)

    def __call__(self, x: Tensor, kernel_map: KernelMap) -> Tensor:
        """`[n, c_in]` codes or float16 → `[m, c_out]` codes or float16."""
        if self.multiplier is None:
            y = sparse_conv_fp16(x, self.weight, kernel_map, self.bias)
        else:
            codes = x if x.dtype == torch.int8 else quantize(x, self.in_scales[0])
            codes = requantize_in_turn(codes, self.in_scales)
            acc = sparse_conv_int8(codes, self.weight, kernel_map)
            y = dequantize_accumulator(acc, self.multiplier, self.bias)
        return finish(y, relu=self.node.activation == "ReLU", scale=self.out_scale)


@dataclass(frozen=True)
class AddLayer:
    """A residual sum ready to run, with the Relu that the engine folds into it.

    Attributes:
        relu: whether a Relu is folded into it.
        in_scales: for each operand the steps that its codes pass; None for an fp16 sum.
        out_scale: step of the output codes; None for an fp16 output.
    """

    relu: bool
    in_scales: tuple[Sequence[Tensor], Sequence[Tensor]] | None
    out_scale: Tensor | None

    def __call__(self, a: Tensor, b: Tensor) -> Tensor:
        """`[n, c]` + `[n, c]`, both codes or both float16."""
        if self.in_scales is None:
            y = a.to(torch.float32) + b.to(torch.float32)
        else:
            for_a, for_b = self.in_scales
            q_a, q_b = requantize_in_turn(a, for_a), requantize_in_turn(b, for_b)
            y = add_dequantized(q_a, for_a[-1], q_b, for_b[-1])
        return finish(y, relu=self.relu, scale=self.out_scale)
