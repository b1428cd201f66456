"""Lowered layers: what is left when every quantizer has done its work; those of fp8 stand beside.

Between int8 layers features are `torch.int8` codes and `SparseTensor.scale` carries their step;
fp16 tensors are `torch.float16`. What leaves the sparse part is float32 holding fp16 values, so
that the dense part and the user's own code run as before. Steps live in buffers on the device:
dividing by a number from the host would become a multiplication by its reciprocal on a GPU.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from voxelquant.numerics import (
    INT8,
    NumberFormat,
    add_dequantized,
    dequantize_accumulator,
    epilogue_multiplier,
    quantize,
    scale_from_amax,
)
from voxelquant.quant.operand import Operand
from voxelquant.sparse import (
    ConvGeometry,
    KernelMap,
    SparseModule,
    SparseTensor,
    check_same_sites,
    resolve_conv_map,
    sparse_conv_fp16,
    sparse_conv_int8,
)


@dataclass(frozen=True)
class LayerOutput:
    """How a layer hands on its result.

    Attributes:
        relu: whether a ReLU is fused.
        scale: step of the output codes, `[]` float32; None for an fp16 tensor.
        leaves: whether the tensor leaves the sparse part.
        fmt: format of the output codes.
    """

    relu: bool
    scale: Tensor | None
    leaves: bool
    fmt: NumberFormat = INT8


@dataclass(frozen=True)
class ConvSite:
    """Name and geometry of a convolution."""

    path: str
    geometry: ConvGeometry
    indice_key: str | None
    inverse: bool


class LoweredModule(SparseModule):
    """What all lowered layers share: the last steps of the epilogue."""

    output_scale: Tensor | None

    def __init__(self, path: str, output: LayerOutput) -> None:
        super().__init__()
        self.path = path
        self.relu = output.relu
        self.leaves = output.leaves
        self.output_fmt = output.fmt
        self.register_buffer("output_scale", output.scale)
        self.output_step = None if output.scale is None else float(output.scale)

    def finish(self, y: Tensor) -> tuple[Tensor, float | None]:
        """Activation, then codes and their step, or fp16 values.

        Args:
            y: `[m, c]` float32, overwritten.
        """
        if self.relu:
            y = y.relu_()
        if self.output_scale is not None:
            return quantize(y, self.output_scale, self.output_fmt), self.output_step
        half = y.to(torch.float16)
        return (half.to(torch.float32) if self.leaves else half), None

    def extra_repr(self) -> str:
        """Fused activation and type of the output."""
        output = "fp16"
        if self.output_step is not None:
            output = f"{self.output_fmt.name}, step {self.output_step:g}"
        return f"{'relu, ' if self.relu else ''}output {output}"


class CodeSparseConv3d(LoweredModule):
    """Convolution of codes: their products summed, then the epilogue of the law in float32.

    Args:
        site: name and geometry.
        weight_q: `[c_out, kz, ky, kx, c_in]` codes.
        operand: the input, with its steps.
        weight_scale: step of each weight channel, `[c_out]` float32.
        bias: `[c_out]` float32.
        output: how the result is handed on.
    """

    graph_kind = "conv"
    weight_q: Tensor
    multiplier: Tensor
    bias: Tensor

    def __init__(
        self,
        site: ConvSite,
        weight_q: Tensor,
        operand: Operand,
        weight_scale: Tensor,
        bias: Tensor,
        output: LayerOutput,
    ) -> None:
        super().__init__(site.path, output)
        self.site = site
        self.operand = operand
        self.register_buffer("weight_q", weight_q)
        self.register_buffer("multiplier", epilogue_multiplier(self.input_scale, weight_scale))
        self.register_buffer("bias", bias)

    @property
    def input_scale(self) -> Tensor:
        """Step of the input codes that are multiplied, `[]` float32."""
        return self.operand.scales[-1]

    def forward(self, x: SparseTensor) -> SparseTensor:
        """Codes `[n, c_in]` → `[m, c_out]`; an fp16 tensor is quantized on entry."""
        site = self.site
        kernel_map, out_sites, coupled = resolve_conv_map(
            x, site.geometry, site.indice_key, inverse=site.inverse
        )
        acc = self.accumulate(self.operand.codes(x), kernel_map)
        y = dequantize_accumulator(acc, self.multiplier, self.bias)
        features, step = self.finish(y)
        return SparseTensor(features, out_sites, step, coupled)

    def accumulate(self, codes: Tensor, kernel_map: KernelMap) -> Tensor:
        """Sums of products of codes: `[n, c_in]` → `[m, c_out]` int32 or float32."""
        raise NotImplementedError


class Int8SparseConv3d(CodeSparseConv3d):
    """Integer convolution: int8 × int8 → int32, exact."""

    def accumulate(self, codes: Tensor, kernel_map: KernelMap) -> Tensor:
        """`[n, c_in]` int8 → `[m, c_out]` int32."""
        return sparse_conv_int8(codes, self.weight_q, kernel_map)


class Fp16SparseConv3d(LoweredModule):
    """Convolution of fp16 values that accumulates in float32 and rounds once.

    Args:
        site: name and geometry.
        operand: the input.
        weight: `[c_out, kz, ky, kx, c_in]` float16.
        bias: `[c_out]` float16, or None.
        output: how the result is handed on.
    """

    graph_kind = "conv"
    weight: Tensor
    bias: Tensor | None

    def __init__(
        self,
        site: ConvSite,
        operand: Operand,
        weight: Tensor,
        bias: Tensor | None,
        output: LayerOutput,
    ) -> None:
        super().__init__(site.path, output)
        self.site = site
        self.operand = operand
        self.register_buffer("weight", weight)
        self.register_buffer("bias", bias)

    def forward(self, x: SparseTensor) -> SparseTensor:
        """`[n, c_in]` → `[m, c_out]`."""
        site = self.site
        kernel_map, out_sites, coupled = resolve_conv_map(
            x, site.geometry, site.indice_key, inverse=site.inverse
        )
        y = sparse_conv_fp16(self.operand.values(x), self.weight, kernel_map, self.bias)
        features, step = self.finish(y)
        return SparseTensor(features, out_sites, step, coupled)


class SparseAddBase(LoweredModule):
    """What both sums share.

    Args:
        path: module path.
        operands: both operands, with their steps.
        output: how the result is handed on.
    """

    graph_kind = "add"

    def __init__(self, path: str, operands: tuple[Operand, Operand], output: LayerOutput) -> None:
        super().__init__(path, output)
        self.operand_a, self.operand_b = operands

    def forward(self, a: SparseTensor, b: SparseTensor) -> SparseTensor:
        """`[n, c]` + `[n, c]`."""
        check_same_sites(a, b)
        features, step = self.finish(self._sum(a, b))
        return SparseTensor(features, a.sites, step, a.coupled)

    def _sum(self, a: SparseTensor, b: SparseTensor) -> Tensor:
        raise NotImplementedError


class CodeSparseAdd(SparseAddBase):
    """Residual sum of two code tensors, each with its own step."""

    def _sum(self, a: SparseTensor, b: SparseTensor) -> Tensor:
        q_a, q_b = self.operand_a.codes(a), self.operand_b.codes(b)
        return add_dequantized(q_a, self.scale_a, q_b, self.scale_b)

    @property
    def scale_a(self) -> Tensor:
        """Step of the first operand's codes, `[]` float32."""
        return self.operand_a.scales[-1]

    @property
    def scale_b(self) -> Tensor:
        """Step of the second operand's codes, `[]` float32."""
        return self.operand_b.scales[-1]


class Int8SparseAdd(CodeSparseAdd):
    """Residual sum of two int8 tensors."""


class Fp16SparseAdd(SparseAddBase):
    """Residual sum of two fp16 tensors, rounded once."""

    def _sum(self, a: SparseTensor, b: SparseTensor) -> Tensor:
        x_a, x_b = self.operand_a.values(a), self.operand_b.values(b)
        return x_a.to(torch.float32) + x_b.to(torch.float32)


def scale_of(amax: Tensor, fmt: NumberFormat) -> Tensor:
    """A step as its own tensor, detached from the quantizer that it came from."""
    return scale_from_amax(amax.detach().clone(), fmt)
