"""Sparse tensors: features on a set of active sites."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from voxelquant.errors import GeometryError
from voxelquant.sparse.conv_geometry import ConvGeometry, Triple
from voxelquant.sparse.kernel_map import KernelMap
from voxelquant.sparse.neighbour_search import build_indexed_map

if TYPE_CHECKING:  # Triton is not imported before it is used
    from voxelquant.sparse.backends.triton.neighbour_maps import SiteBitmap


class ActiveSites:
    """The coordinates on which a sparse tensor lives, and the kernel maps built on them.

    One object per set of coordinates: tensors share it, so that two of them have equal sites
    exactly when `a.sites is b.sites`, and a kernel map is built once for each whole geometry.

    Args:
        coords_bzyx: `[n, 4]` int32, unique rows (batch, z, y, x) inside the grid.
        spatial_shape: grid size (z, y, x).
        batch_size: number of samples; a sample may be empty.
    """

    def __init__(self, coords_bzyx: Tensor, spatial_shape: Triple, batch_size: int) -> None:
        self.coords_bzyx = coords_bzyx
        self.spatial_shape = spatial_shape
        self.batch_size = batch_size
        self._maps: dict[ConvGeometry, tuple[KernelMap, ActiveSites]] = {}
        self._bitmap: SiteBitmap | None = None  # where these sites came out of one

    def __len__(self) -> int:
        return self.coords_bzyx.shape[0]

    def kernel_map(self, geometry: ConvGeometry) -> tuple[KernelMap, ActiveSites]:
        """Kernel map of a convolution on these sites, and the sites of its output."""
        cached = self._maps.get(geometry)
        if cached is not None:
            # A submanifold map does not hold its own sites: that would be a reference cycle, and
            # large tensors would wait for the garbage collector.
            return (cached[0], self) if geometry.subm else cached
        kernel_map, out_coords, bitmap = build_indexed_map(
            self.coords_bzyx, self.spatial_shape, self.batch_size, geometry, self._bitmap
        )
        if geometry.subm:
            self._maps[geometry] = (kernel_map, _NO_SITES)
            return kernel_map, self
        out_shape = geometry.output_shape(self.spatial_shape)
        out_sites = ActiveSites(out_coords, out_shape, self.batch_size)
        out_sites._bitmap = bitmap
        self._maps[geometry] = (kernel_map, out_sites)
        return kernel_map, out_sites


_NO_SITES = ActiveSites(torch.empty((0, 4), dtype=torch.int32), (1, 1, 1), 1)


@dataclass(frozen=True)
class CoupledConv:
    """What an inverse convolution needs of the convolution that it inverts."""

    kernel_map: KernelMap
    in_sites: ActiveSites
    out_sites: ActiveSites


@dataclass(frozen=True)
class SparseTensor:
    """Features on active sites.

    Attributes:
        features: `[n, c]`, float32 or float16 values, or int8 or fp8 (e4m3) codes.
        sites: where the rows live.
        scale: step of the codes when `features` are codes, `real ≈ scale * code`; else None.
        coupled: convolutions by `indice_key`, for inverse convolutions further on.
    """

    features: Tensor
    sites: ActiveSites
    scale: float | None = None
    coupled: dict[str, CoupledConv] = field(default_factory=dict)

    @classmethod
    def from_coords(
        cls, features: Tensor, coords_bzyx: Tensor, spatial_shape: Triple, batch_size: int
    ) -> SparseTensor:
        """Sparse tensor on new sites, with the coordinates checked.

        Raises:
            GeometryError: shapes do not fit, or coordinates lie outside the grid or repeat.

        >>> x = SparseTensor.from_coords(torch.ones(1, 5), torch.zeros(1, 4), (4, 4, 4), 1)
        >>> x.dense().shape
        torch.Size([1, 5, 4, 4, 4])
        """
        if coords_bzyx.ndim != 2 or coords_bzyx.shape[1] != 4 or features.ndim != 2:
            raise GeometryError(
                f"got features {tuple(features.shape)} and coordinates {tuple(coords_bzyx.shape)}, "
                "need [n, c] and [n, 4] (batch, z, y, x)"
            )
        if coords_bzyx.shape[0] != features.shape[0]:
            raise GeometryError(
                f"got {features.shape[0]} feature rows for {coords_bzyx.shape[0]} coordinates"
            )
        coords = coords_bzyx.to(torch.int32)
        _check_coords(coords, spatial_shape, batch_size)
        return cls(features, ActiveSites(coords, spatial_shape, batch_size))

    @property
    def coords_bzyx(self) -> Tensor:
        """`[n, 4]` int32 coordinates (batch, z, y, x)."""
        return self.sites.coords_bzyx

    @property
    def spatial_shape(self) -> Triple:
        """Grid size (z, y, x)."""
        return self.sites.spatial_shape

    @property
    def batch_size(self) -> int:
        """Number of samples."""
        return self.sites.batch_size

    def replace_features(self, features: Tensor) -> SparseTensor:
        """The same sites with other features."""
        return SparseTensor(features, self.sites, self.scale, self.coupled)

    def dense(self) -> Tensor:
        """`[b, c, z, y, x]` with zeros where no site is active."""
        size_z, size_y, size_x = self.spatial_shape
        b, z, y, x = self.coords_bzyx.long().unbind(1)
        channels = self.features.shape[1]
        # Channels first at once: writing rows and permuting the whole grid takes 8x longer.
        out = self.features.new_zeros((self.batch_size, channels, size_z * size_y * size_x))
        out[b, :, (z * size_y + y) * size_x + x] = self.features
        return out.view(self.batch_size, channels, size_z, size_y, size_x)


def _check_coords(coords: Tensor, spatial_shape: Triple, batch_size: int) -> None:
    if coords.shape[0] == 0:
        return
    limits = (batch_size, *spatial_shape)
    columns = zip(coords.unbind(1), limits, strict=True)
    outside = torch.stack([((c < 0) | (c >= limit)).any() for c, limit in columns]).any()
    keys, _ = torch.sort(flatten_coords(coords, spatial_shape))
    repeated = (keys[1:] == keys[:-1]).any()
    # Both answers in one transfer: a GPU is waited for once.
    is_outside, is_repeated = torch.stack([outside, repeated]).tolist()
    if is_outside:
        raise GeometryError(
            f"got coordinates from {coords.amin(0).tolist()} to {coords.amax(0).tolist()}, need "
            f"(batch, z, y, x) from 0 to below {list(limits)}"
        )
    if is_repeated:
        raise GeometryError("got repeated coordinates, need one row for each active site")


def flatten_coords(coords_bzyx: Tensor, spatial_shape: Triple) -> Tensor:
    """`[n]` int64 row-major index of (batch, z, y, x)."""
    b, z, y, x = coords_bzyx.long().unbind(1)
    size_z, size_y, size_x = spatial_shape
    return ((b * size_z + z) * size_y + y) * size_x + x
