"""How a lowered layer comes by an operand: codes by the steps that its readers agree on, in turn.

Usually there is one step, the tensor's. Where readers quantize a tensor in place, its codes are
made with the first reader's step, and every later reader takes them through the steps of those
before it to its own: the same numbers that the fake-quant layer computes.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from voxelquant.errors import GraphError
from voxelquant.numerics import (
    INT8,
    NumberFormat,
    dequantize,
    format_of_codes,
    quantize,
    requantize_in_turn,
)
from voxelquant.sparse import SparseTensor


class Operand(nn.Module):
    """One operand of a lowered layer.

    Args:
        path: module path of the layer, for messages.
        scales: steps that the operand passes, `[]` float32 each; the last is the layer's own if it
            computes in 8 bits. Empty for an fp16 tensor that nobody has quantized.
        fmt: format of the codes.
    """

    def __init__(
        self, path: str, scales: tuple[Tensor, ...] = (), fmt: NumberFormat = INT8
    ) -> None:
        super().__init__()
        self.path = path
        self.fmt = fmt
        self.count = len(scales)
        for index, scale in enumerate(scales):
            self.register_buffer(f"scale{index}", scale)
        self.first_step = float(scales[0]) if scales else None

    @property
    def scales(self) -> tuple[Tensor, ...]:
        """The steps, on the layer's device."""
        return tuple(self.get_buffer(f"scale{index}") for index in range(self.count))

    def codes(self, x: SparseTensor) -> Tensor:
        """`[n, c]` codes of the last step; an fp16 tensor is quantized on entry.

        Raises:
            GraphError: the codes are of another format or step than the layer was built for.
        """
        scales, found = self.scales, format_of_codes(x.features)
        if found is None:
            codes = quantize(self._require_float16(x), scales[0], self.fmt)
        elif found == self.fmt and x.scale == self.first_step:
            codes = x.features
        else:
            raise GraphError(
                f"{self.path}: got {found.name} features of step {x.scale}, need "
                f"{self.fmt.name} of step {self.first_step}; the model's forward has changed "
                "since it was quantized"
            )
        return requantize_in_turn(codes, scales, self.fmt)

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
        found = format_of_codes(x.features)
        if found is not None:
            raise GraphError(
                f"{self.path}: got {found.name} codes, need an fp16 tensor; the model's forward "
                "has changed since it was quantized"
            )
        return x.features.to(torch.float16)
