"""Modules of sparse networks. Weights are `[c_out, kz, ky, kx, c_in]` (KRSC), as in spconv 2."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor, nn

from voxelquant.errors import GeometryError
from voxelquant.plural import counted
from voxelquant.sparse import functional
from voxelquant.sparse.conv_geometry import ConvGeometry, Triple
from voxelquant.sparse.kernel_map import KernelMap
from voxelquant.sparse.tensor import ActiveSites, CoupledConv, SparseTensor


def as_triple(value: int | tuple[int, ...] | list[int]) -> Triple:
    """One int for all axes, or three in order z, y, x."""
    if isinstance(value, int):
        return (value, value, value)
    if len(value) != 3:
        raise GeometryError(f"got {value}, need one int or three (z, y, x)")
    return (int(value[0]), int(value[1]), int(value[2]))


class SparseModule(nn.Module):
    """A module that maps sparse tensors; `graph_kind` is what a trace records for it."""

    graph_kind: ClassVar[str | None] = None


ResolvedMap = tuple[KernelMap, ActiveSites, dict[str, CoupledConv]]


def resolve_conv_map(
    x: SparseTensor, geometry: ConvGeometry, indice_key: str | None, *, inverse: bool = False
) -> ResolvedMap:
    """Kernel map of a convolution on `x`, its output sites, and the couplings to hand on.

    Raises:
        GeometryError: an inverse convolution does not meet the convolution that it inverts.
    """
    if inverse:
        link = _find_coupled(x, indice_key)
        return link.kernel_map.transposed(), link.in_sites, x.coupled
    kernel_map, out_sites = x.sites.kernel_map(geometry)
    if indice_key is None or geometry.subm:
        return kernel_map, out_sites, x.coupled
    link = CoupledConv(kernel_map, x.sites, out_sites)
    return kernel_map, out_sites, {**x.coupled, indice_key: link}


def _find_coupled(x: SparseTensor, indice_key: str | None) -> CoupledConv:
    link = x.coupled.get(indice_key or "")
    if link is None:
        raise GeometryError(
            f"got an inverse conv of key {indice_key!r}, but only {sorted(x.coupled)} "
            "came before it; give the SparseConv3d to invert the same indice_key"
        )
    if link.out_sites is not x.sites:
        raise GeometryError(
            f"got an inverse conv of key {indice_key!r} on {len(x.sites)} sites that are "
            f"not the {len(link.out_sites)} outputs of the convolution of that key"
        )
    return link


class SparseConvBase(SparseModule):
    """What the three convolutions share: geometry, weight, bias and their initialisation."""

    graph_kind = "conv"
    inverse: ClassVar[bool] = False

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        geometry: ConvGeometry,
        *,
        bias: bool,
        indice_key: str | None,
    ) -> None:
        super().__init__()
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.geometry = geometry
        self.indice_key = indice_key
        self.weight = nn.Parameter(torch.empty(out_channels, *geometry.kernel_size, in_channels))
        self.bias = nn.Parameter(torch.empty(out_channels)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Kaiming-uniform with a = √5 over the true fan-in, as torch and spconv initialise."""
        fan_in = self.in_channels * self.geometry.taps
        bound = 1.0 / math.sqrt(fan_in)
        nn.init.uniform_(self.weight, -bound, bound)
        if self.bias is not None:
            nn.init.uniform_(self.bias, -bound, bound)

    def resolve_map(self, x: SparseTensor) -> ResolvedMap:
        """Kernel map of this convolution on `x`, output sites, and the couplings to hand on."""
        return resolve_conv_map(x, self.geometry, self.indice_key, inverse=self.inverse)

    def forward(self, x: SparseTensor) -> SparseTensor:
        """Convolve: `[n, c_in]` features on the input sites → `[m, c_out]` on the output sites."""
        kernel_map, out_sites, coupled = self.resolve_map(x)
        features = functional.sparse_conv(x.features, self.weight, kernel_map, self.bias)
        return SparseTensor(features, out_sites, coupled=coupled)

    def extra_repr(self) -> str:
        """Channels and geometry."""
        return f"{self.in_channels}, {self.out_channels}, {self.geometry}"


class SubMConv3d(SparseConvBase):
    """Submanifold convolution: output sites are the input sites (Graham 2018, 1711.10275)."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | Triple,
        *,
        dilation: int | Triple = 1,
        bias: bool = True,
        indice_key: str | None = None,
    ) -> None:
        geometry = ConvGeometry(as_triple(kernel_size), dilation=as_triple(dilation), subm=True)
        super().__init__(in_channels, out_channels, geometry, bias=bias, indice_key=indice_key)


class SparseConv3d(SparseConvBase):
    """Sparse convolution: output sites are all that any input site reaches."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | Triple,
        stride: int | Triple = 1,
        padding: int | Triple = 0,
        *,
        dilation: int | Triple = 1,
        bias: bool = True,
        indice_key: str | None = None,
    ) -> None:
        geometry = ConvGeometry(
            as_triple(kernel_size), as_triple(stride), as_triple(padding), as_triple(dilation)
        )
        super().__init__(in_channels, out_channels, geometry, bias=bias, indice_key=indice_key)


class SparseInverseConv3d(SparseConvBase):
    """Inverse of an earlier `SparseConv3d` with the same `indice_key`: restores its input sites."""

    inverse = True

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | Triple,
        *,
        indice_key: str,
        bias: bool = True,
    ) -> None:
        geometry = ConvGeometry(as_triple(kernel_size))
        super().__init__(in_channels, out_channels, geometry, bias=bias, indice_key=indice_key)


class SparseAdd(SparseModule):
    """Residual sum of two tensors on the same sites."""

    graph_kind = "add"

    def forward(self, a: SparseTensor, b: SparseTensor) -> SparseTensor:
        """`[n, c]` + `[n, c]`."""
        check_same_sites(a, b)
        return a.replace_features(a.features + b.features)


def check_same_sites(a: SparseTensor, b: SparseTensor) -> None:
    """Raise a GeometryError unless both operands of a sum live on the same sites."""
    if a.sites is not b.sites or a.features.shape != b.features.shape:
        raise GeometryError(
            f"got a sum of {tuple(a.features.shape)} and {tuple(b.features.shape)} features on "
            "different sites or channels, need the same"
        )


class SparseToDense(SparseModule):
    """Scatter onto the dense grid, the height axis folded into channels: channel = c * Z + z."""

    graph_kind = "to_dense"

    def __init__(self, *, fold_height: bool = True) -> None:
        super().__init__()
        self.fold_height = fold_height

    def forward(self, x: SparseTensor) -> Tensor:
        """`[b, c * Z, Y, X]`, or `[b, c, Z, Y, X]` without folding."""
        dense = x.dense()
        return dense.flatten(1, 2) if self.fold_height else dense


def apply_module(module: nn.Module, x: SparseTensor) -> SparseTensor:
    """Apply a sparse module to the tensor, an ordinary one (BatchNorm1d, ReLU) to its features.

    Raises:
        GeometryError: a batch norm would take statistics of fewer than two voxels.
    """
    if isinstance(module, (SparseModule, SparseSequential)):
        out: SparseTensor = module(x)
        return out
    if isinstance(module, nn.BatchNorm1d) and module.training and len(x.sites) < 2:
        raise GeometryError(
            f"batch norm in training: got a batch with {counted(len(x.sites), 'voxel')} left, "
            "need 2 or more for statistics; drop such frames or take more of them a step"
        )
    return x.replace_features(module(x.features))


class SparseSequential(nn.Sequential):
    """Sequence of sparse modules and of ordinary modules that act on the features."""

    def forward(self, x: SparseTensor) -> SparseTensor:
        """Apply every module in turn."""
        for module in self:
            x = apply_module(module, x)
        return x
