"""Fake-quantized layers: floats that take only the values which integers can take.

A layer computes in int8 (its input and weight pass quantizers) or in fp16 (they are rounded to
fp16); either way it accumulates in fp32. Its output stays unrounded where the tensor is int8,
since the quantizer of that tensor rounds it in every consumer, and is rounded once to fp16
otherwise. Nothing is ever written into the input: where a recipe has readers quantize a tensor in
place, each later reader passes it through the quantizers of the earlier ones again. Autocast does
not reach in here: bfloat16 cannot hold `scale * code`, so a layer that computed in it would train
for other values than the deployed.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from voxelquant.numerics import round_to_float16
from voxelquant.quant.quantizer import TensorQuantizer
from voxelquant.quant.recipe import Precision
from voxelquant.sparse import (
    SparseAdd,
    SparseConv3d,
    SparseConvBase,
    SparseInverseConv3d,
    SparseTensor,
    SubMConv3d,
    check_same_sites,
    sparse_conv,
)


@dataclass(frozen=True)
class LayerPrecision:
    """Precisions of one layer: of its arithmetic, its input tensors and its output tensor."""

    compute: Precision
    inputs: tuple[Precision, ...]
    output: Precision


class QuantConvBase(nn.Module):
    """What every fake-quantized convolution holds, one of this package or of another library.

    Attributes:
        precision: precisions of the layer.
        input_quantizer: quantizer of the input tensor, shared with its other consumers; None in
            an fp16 layer.
        weight_quantizer: quantizer of the weight, one range for each output channel; or None.
        earlier_quantizers: of readers that changed the input tensor in place before.
    """

    precision: LayerPrecision
    input_quantizer: TensorQuantizer | None
    weight_quantizer: TensorQuantizer | None
    earlier_quantizers: nn.ModuleList
    bias: nn.Parameter | None

    def read_input(self, features: Tensor) -> Tensor:
        """The input as the convolution computes with it, `[n, c_in]` float32."""
        return read_operand(
            features, self.precision.inputs[0], self.earlier_quantizers, self.input_quantizer
        )

    def read_weight(self, weight: Tensor) -> Tensor:
        """`[c_out, kz, ky, kx, c_in]` float32 as the convolution computes with it."""
        if self.weight_quantizer is None:
            return round_to_float16(weight)
        quantized: Tensor = self.weight_quantizer(weight)
        return quantized

    def read_bias(self) -> Tensor | None:
        """`[c_out]` float32, or None."""
        return None if self.bias is None else round_to_float16(self.bias)


class QuantSparseConvBase(QuantConvBase, SparseConvBase):
    """What the three fake-quantized convolutions of this package share.

    Args:
        conv: the folded float convolution; its parameters are taken over, not copied.
        precision: precisions of the layer.
        input_quantizer: quantizer of the input tensor, shared with its other consumers; None in
            an fp16 layer.
        weight_quantizer: quantizer of the weight, one range for each output channel; or None.
        earlier: quantizers of readers that changed the input tensor in place before.
    """

    def __init__(
        self,
        conv: SparseConvBase,
        precision: LayerPrecision,
        input_quantizer: TensorQuantizer | None,
        weight_quantizer: TensorQuantizer | None,
        earlier: tuple[TensorQuantizer, ...] = (),
    ) -> None:
        # Not SparseConvBase.__init__: it would draw random weights only to drop them.
        nn.Module.__init__(self)
        self.in_channels = conv.in_channels
        self.out_channels = conv.out_channels
        self.geometry = conv.geometry
        self.indice_key = conv.indice_key
        self.weight = conv.weight
        self.bias = conv.bias
        self.precision = precision
        self.input_quantizer = input_quantizer
        self.weight_quantizer = weight_quantizer
        self.earlier_quantizers = nn.ModuleList(earlier)
        self.train(conv.training)

    def forward(self, x: SparseTensor) -> SparseTensor:
        """Convolve: `[n, c_in]` → `[m, c_out]`, float32 features."""
        kernel_map, out_sites, coupled = self.resolve_map(x)
        with torch.autocast(x.features.device.type, enabled=False):
            features, weight = self.read_input(x.features), self.read_weight(self.weight)
            out = sparse_conv(features, weight, kernel_map, self.read_bias())
            out = round_if_fp16(out, self.precision.output)  # [m, c_out] float32
        return SparseTensor(out, out_sites, coupled=coupled)

    def extra_repr(self) -> str:
        """Channels, geometry and precisions."""
        return f"{super().extra_repr()}, {self.precision.compute}→{self.precision.output}"


class QuantSubMConv3d(QuantSparseConvBase, SubMConv3d):
    """Fake-quantized submanifold convolution."""


class QuantSparseConv3d(QuantSparseConvBase, SparseConv3d):
    """Fake-quantized strided convolution."""


class QuantSparseInverseConv3d(QuantSparseConvBase, SparseInverseConv3d):
    """Fake-quantized inverse convolution."""


class QuantSparseAdd(SparseAdd):
    """Fake-quantized residual sum; each operand passes the quantizer of its own tensor.

    Args:
        precision: precisions of the layer.
        input_quantizers: of both operands for an int8 sum, else None.
        earlier: for each operand, quantizers of readers that changed it in place before.
    """

    def __init__(
        self,
        precision: LayerPrecision,
        input_quantizers: tuple[TensorQuantizer, TensorQuantizer] | None,
        earlier: tuple[tuple[TensorQuantizer, ...], ...] = ((), ()),
    ) -> None:
        super().__init__()
        self.precision = precision
        first, second = input_quantizers or (None, None)
        self.input0_quantizer = first
        self.input1_quantizer = second
        self.earlier0_quantizers, self.earlier1_quantizers = (nn.ModuleList(q) for q in earlier)

    def forward(self, a: SparseTensor, b: SparseTensor) -> SparseTensor:
        """`[n, c]` + `[n, c]`, float32 features."""
        check_same_sites(a, b)
        return a.replace_features(self.add_features(a.features, b.features))

    def add_features(self, a: Tensor, b: Tensor) -> Tensor:
        """`[n, c]` + `[n, c]`, float32."""
        type_a, type_b = self.precision.inputs
        first = read_operand(a, type_a, self.earlier0_quantizers, self.input0_quantizer)
        second = read_operand(b, type_b, self.earlier1_quantizers, self.input1_quantizer)
        return round_if_fp16(first + second, self.precision.output)

    def extra_repr(self) -> str:
        """Precisions."""
        return f"{self.precision.compute}→{self.precision.output}"


def read_operand(
    features: Tensor, stored: Precision, earlier: nn.ModuleList, own: TensorQuantizer | None
) -> Tensor:
    """A tensor as its reader computes with it, float32.

    Args:
        features: `[n, c]` of the tensor, unrounded where it is int8.
        stored: type of the tensor.
        earlier: quantizers of readers that changed it in place before.
        own: quantizer of the reader; None for one that computes in fp16.
    """
    features = round_if_fp16(features.float(), stored)
    for quantizer in earlier:
        assert isinstance(quantizer, TensorQuantizer)
        features = quantizer.as_left_behind(features)
    if own is not None:
        read: Tensor = own(features)
        return read
    return round_to_float16(features) if len(earlier) else features


def round_if_fp16(x: Tensor, precision: Precision) -> Tensor:
    """`x` as an fp16 tensor holds it, in float32; as it is where the tensor is int8."""
    return round_to_float16(x) if precision == "fp16" else x
