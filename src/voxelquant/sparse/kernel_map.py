"""Kernel maps: which input row meets which output row through which tap."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from voxelquant.sparse.conv_geometry import ConvGeometry, Triple


@dataclass(frozen=True)
class KernelMap:
    """Pairs (input row, output row) of a convolution, grouped by tap.

    Attributes:
        in_rows: `[pairs]` int32 rows of the input.
        out_rows: `[pairs]` int32 rows of the output, strictly increasing within a tap.
        tap_bounds: `k + 1` positions; tap `t` owns pairs `tap_bounds[t]:tap_bounds[t + 1]`.
        n_in: number of input sites, `n`.
        n_out: number of output sites, `m`.
    """

    in_rows: Tensor
    out_rows: Tensor
    tap_bounds: tuple[int, ...]
    n_in: int
    n_out: int

    @property
    def taps(self) -> int:
        """Number of taps, `k`."""
        return len(self.tap_bounds) - 1

    def pairs_of_tap(self, tap: int) -> tuple[Tensor, Tensor]:
        """Input and output rows that meet through one tap."""
        begin, end = self.tap_bounds[tap], self.tap_bounds[tap + 1]
        return self.in_rows[begin:end], self.out_rows[begin:end]

    def transposed(self) -> KernelMap:
        """The map of the inverse convolution: inputs and outputs trade places, taps stay."""
        return KernelMap(self.out_rows, self.in_rows, self.tap_bounds, self.n_out, self.n_in)


def build_kernel_map(
    coords_bzyx: Tensor, spatial_shape: Triple, batch_size: int, geometry: ConvGeometry
) -> tuple[KernelMap, Tensor]:
    """Kernel map of a convolution on active sites.

    Args:
        coords_bzyx: `[n, 4]` int32 unique coordinates inside the grid.
        spatial_shape: grid (z, y, x).
        batch_size: number of samples.
        geometry: kernel geometry.

    Returns:
        The map and the output coordinates `[m, 4]` int32: the input's own for a submanifold conv,
        else every site reached by any input, in row-major order.
    """
    if geometry.subm:
        return _build_submanifold_map(coords_bzyx, spatial_shape, geometry), coords_bzyx
    return _build_strided_map(coords_bzyx, spatial_shape, geometry)


def _flatten(coords: Tensor, shape: Triple) -> Tensor:
    b, z, y, x = coords.unbind(1)
    return ((b * shape[0] + z) * shape[1] + y) * shape[2] + x


def _inside(coords_zyx: Tensor, shape: Triple) -> Tensor:
    limits = torch.tensor(shape, device=coords_zyx.device)
    return ((coords_zyx >= 0) & (coords_zyx < limits)).all(1)


def _build_submanifold_map(
    coords_bzyx: Tensor, spatial_shape: Triple, geometry: ConvGeometry
) -> KernelMap:
    coords = coords_bzyx.long()
    device = coords.device
    n = coords.shape[0]
    sorted_keys, order = torch.sort(_flatten(coords, spatial_shape))
    padding = torch.tensor(geometry.effective_padding, device=device)
    dilation = torch.tensor(geometry.dilation, device=device)
    in_rows, out_rows, bounds = [], [], [0]
    for tap in geometry.tap_offsets:
        neighbours = coords.clone()
        neighbours[:, 1:] += dilation * torch.tensor(tap, device=device) - padding
        rows = torch.nonzero(_inside(neighbours[:, 1:], spatial_shape)).squeeze(1)
        keys = _flatten(neighbours[rows], spatial_shape)
        position = torch.searchsorted(sorted_keys, keys).clamp_(max=max(n - 1, 0))
        found = sorted_keys[position] == keys
        in_rows.append(order[position[found]])
        out_rows.append(rows[found])
        bounds.append(bounds[-1] + in_rows[-1].numel())
    return KernelMap(torch.cat(in_rows).int(), torch.cat(out_rows).int(), tuple(bounds), n, n)


def _build_strided_map(
    coords_bzyx: Tensor, spatial_shape: Triple, geometry: ConvGeometry
) -> tuple[KernelMap, Tensor]:
    coords = coords_bzyx.long()
    device = coords.device
    out_shape = geometry.output_shape(spatial_shape)
    stride = torch.tensor(geometry.stride, device=device)
    padding = torch.tensor(geometry.padding, device=device)
    dilation = torch.tensor(geometry.dilation, device=device)
    in_rows, out_keys = [], []
    for tap in geometry.tap_offsets:
        shifted = coords[:, 1:] + padding - dilation * torch.tensor(tap, device=device)
        reached = torch.div(shifted, stride, rounding_mode="floor")
        valid = (reached * stride == shifted).all(1) & _inside(reached, out_shape)
        rows = torch.nonzero(valid).squeeze(1)
        in_rows.append(rows)
        out_keys.append(_flatten(torch.cat([coords[rows, :1], reached[rows]], 1), out_shape))
    keys = torch.unique(torch.cat(out_keys))
    pairs_in, pairs_out, bounds = [], [], [0]
    for rows, tap_keys in zip(in_rows, out_keys, strict=True):
        out = torch.searchsorted(keys, tap_keys)
        out, by_output = torch.sort(out)
        pairs_in.append(rows[by_output])
        pairs_out.append(out)
        bounds.append(bounds[-1] + out.numel())
    kernel_map = KernelMap(
        torch.cat(pairs_in).int(),
        torch.cat(pairs_out).int(),
        tuple(bounds),
        coords.shape[0],
        keys.numel(),
    )
    return kernel_map, _unflatten(keys, out_shape)


def _unflatten(keys: Tensor, shape: Triple) -> Tensor:
    x = keys % shape[2]
    rest = torch.div(keys, shape[2], rounding_mode="floor")
    y = rest % shape[1]
    rest = torch.div(rest, shape[1], rounding_mode="floor")
    z = rest % shape[0]
    b = torch.div(rest, shape[0], rounding_mode="floor")
    return torch.stack([b, z, y, x], 1).int()
