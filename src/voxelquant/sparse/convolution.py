"""A sparse convolution module in this package's terms, whatever library it is of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

from torch import Tensor, nn

from voxelquant.sparse.conv_geometry import ConvGeometry


@dataclass(frozen=True)
class Convolution:
    """What quantization and export need to know of a convolution module.

    Attributes:
        module: the module; its `weight` and `bias` are the parameters that train.
        in_channels: `c_in`.
        out_channels: `c_out`.
        geometry: kernel, stride, padding and dilation in axis order z, y, x.
        inverse: whether it restores the sites of an earlier convolution.
        indice_key: the model's name for its index pairs, or None.
        reads_flat: whether the module takes the buffer of its weight as `[c_in, c_out]`, whatever
            the shape says.
    """

    module: nn.Module
    in_channels: int
    out_channels: int
    geometry: ConvGeometry
    inverse: bool
    indice_key: str | None
    reads_flat: bool = False

    @property
    def weight(self) -> Tensor:
        """`[c_out, kz, ky, kx, c_in]` as the module computes with it, differentiable."""
        weight = cast(Tensor, self.module.weight)
        if not self.reads_flat:
            return weight
        matrix = weight.reshape(self.in_channels, self.out_channels)
        return matrix.t().reshape(self.out_channels, 1, 1, 1, self.in_channels)

    @property
    def bias(self) -> Tensor | None:
        """`[c_out]`, or None."""
        return cast("Tensor | None", self.module.bias)

    def own_layout(self, weight: Tensor) -> Tensor:
        """A weight `[c_out, kz, ky, kx, c_in]` as the module's own parameter holds it."""
        if not self.reads_flat:
            return weight
        matrix = weight.reshape(self.out_channels, self.in_channels)
        return matrix.t().reshape(weight.shape).contiguous()
