"""Convolutions of `spconv.pytorch`, fake-quantized in place.

A quantized one stays an instance of its own class, with spconv's kernels and their gradients: it
hands them a quantized input and weight and adds the bias itself, since a folded one cannot go into
spconv's fused kernels on every device.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from voxelquant.errors import GraphError
from voxelquant.quant.modules import LayerPrecision, QuantConvBase, round_if_fp16
from voxelquant.quant.quantizer import TensorQuantizer
from voxelquant.quant.subclassing import Subclassed, become
from voxelquant.sparse import convolution_of


class QuantSpconvConvolution(Subclassed, QuantConvBase):
    """A convolution of spconv that computes with quantized values."""

    def forward(self, input: Any, add_input: Any = None) -> Any:
        """Convolve a `SparseConvTensor`: `[n, c_in]` → `[m, c_out]`, float32 features."""
        if add_input is not None:
            raise GraphError(
                f"got a fused sum in a quantized {self.original_class.__name__}, need the sum "
                "outside of the convolution"
            )
        conv: Any = self  # methods and attributes of the class that this one is mixed into
        view = convolution_of(self)
        assert view is not None
        # A half-precision product of quantized factors is not what the integers will compute.
        with torch.autocast(input.features.device.type, enabled=False):
            x = input.replace_feature(self.read_input(input.features))
            weight = view.own_layout(self.read_weight(view.weight.float()))
            out = conv._conv_forward(
                self.training,
                x,
                weight,
                None,
                name=conv.name,
                sparse_unique_name=conv._sparse_unique_name,
            )
            return out.replace_feature(self._with_bias(out.features))

    def _with_bias(self, features: Tensor) -> Tensor:
        bias = self.read_bias()
        total = features if bias is None else features + bias
        return round_if_fp16(total, self.precision.output)

    def extra_repr(self) -> str:
        """What spconv says, and precisions."""
        return f"{super().extra_repr()}, {self.precision.compute}→{self.precision.output}"


def quantize_in_place(
    conv: nn.Module,
    precision: LayerPrecision,
    input_quantizer: TensorQuantizer | None,
    weight_quantizer: TensorQuantizer | None,
    earlier: tuple[TensorQuantizer, ...] = (),
) -> None:
    """Make a folded float convolution of spconv a fake-quantized one, in place.

    Args:
        conv: the convolution; its parameters stay.
        precision: precisions of the layer.
        input_quantizer: as of `QuantConvBase`, like the two below.
        weight_quantizer: as there.
        earlier: as there.
    """
    become(conv, QuantSpconvConvolution)
    assert isinstance(conv, QuantSpconvConvolution)
    conv.precision = precision
    conv.input_quantizer = input_quantizer
    conv.weight_quantizer = weight_quantizer
    conv.earlier_quantizers = nn.ModuleList(earlier)
