"""How a lowered layer comes by an operand: codes by the steps that its readers agree on, in turn.

Usually there is one step, the tensor's. Where readers quantize a tensor in place, its codes are
made with the first reader's step, and every later reader takes them through the steps of those
before it to its own: the same numbers that the fake-quant layer computes.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from voxelquant.errors import GraphError
from voxelquant.numerics import dequantize, quantize, requantize_in_turn
from voxelquant.sparse import SparseTensor


class Operand(nn.Module):
    """One operand of a lowered layer.

    Args:
        path: module path of the layer, for messages.
        scales: steps that the operand passes, `[]` float32 each; the last is the layer's own if it
            computes in int8. Empty for an fp16 tensor that nobody has quantized.
    """

    def __init__(self, path: str, scales: tuple[Tensor, ...] = ()) -> None:
        super().__init__()
        self.path = path
        self.count = len(scales)
        for index, scale in enumerate(scales):
            self.register_buffer(f"scale{index}", scale)
        self.first_step = float(scales[0]) if scales else None

    @property
    def scales(self) -> tuple[Tensor, ...]:
        """The steps, on the layer's device."""
        return tuple(self.get_buffer(f"scale{index}") for index in range(self.count))

    def codes(self, x: SparseTensor) -> Tensor:
        """`[n, c]` int8 codes of the last step; an fp16 tensor is quantized on entry.

        Raises:
            GraphError: the codes come with another step than the layer was built for.
        """
        scales = self.scales
        if x.features.dtype != torch.int8:
            codes = quantize(self._require_float16(x), scales[0])
        elif x.scale == self.first_step:
            codes = x.features
        else:
            raise GraphError(
                f"{self.path}: got int8 features of step {x.scale}, need {self.first_step}; the "
                "model's forward has changed since it was quantized"
            )
        return requantize_in_turn(codes, scales)

    def values(self, x: SparseTensor) -> Tensor:
        """`[n, c]` float16 for a layer that computes in fp16; the graph input is rounded.

        Raises:
            GraphError: the tensor holds codes.
        """
        if self.count == 0:
            return self._require_float16(x)
        self._require_float16(x)
        return dequantize(self.codes(x), self.scales[-1]).to(torch.float16)

    def _require_float16(self, x: SparseTensor) -> Tensor:
        if x.features.dtype == torch.int8:
            raise GraphError(
                f"{self.path}: got int8 codes, need an fp16 tensor; the model's forward has "
                "changed since it was quantized"
            )
        return x.features.to(torch.float16)
