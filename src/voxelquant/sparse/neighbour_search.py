"""Building kernel maps: find, for every site and tap, the site on the other side.

This is the form in plain torch, for every device; `backends/triton/neighbour_maps.py` finds the
same with fewer launches. No key is searched for. A cell is looked up in two steps: the block of 32
cells along x that holds it, among all blocks of the grid, then the cell within the block. The first
table is a thirty-second of a dense grid, the second has one row for each active site at most.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from voxelquant.sparse.backends.choice import choose_map_backend
from voxelquant.sparse.conv_geometry import ConvGeometry, Triple
from voxelquant.sparse.kernel_map import KernelMap

if TYPE_CHECKING:  # Triton is not imported before it is used
    from voxelquant.sparse.backends.triton.neighbour_maps import SiteBitmap

_BLOCK_BITS = 5  # 32 cells: 11 MB of block table for a grid of 41 x 1440 x 1440
_BLOCK_CELLS = 1 << _BLOCK_BITS
_INT32_LIMIT = 1 << 29  # three invalid axes may still be summed without wrapping


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

    Raises:
        GeometryError: no output is left of the grid.
    """
    return build_indexed_map(coords_bzyx, spatial_shape, batch_size, geometry)[:2]


def build_indexed_map(
    coords_bzyx: Tensor,
    spatial_shape: Triple,
    batch_size: int,
    geometry: ConvGeometry,
    bitmap: SiteBitmap | None = None,
) -> tuple[KernelMap, Tensor, SiteBitmap | None]:
    """The same, with the bitmap that the backend made of new outputs, if it makes any.

    Given back as `bitmap` with those outputs as input, it saves making it again.
    """
    if choose_map_backend(coords_bzyx.device) == "triton":
        from voxelquant.sparse.backends.triton import neighbour_maps  # not before it is used

        return neighbour_maps.build_kernel_map(
            coords_bzyx, spatial_shape, batch_size, geometry, bitmap
        )
    if geometry.subm:
        table = _submanifold_table(coords_bzyx, spatial_shape, batch_size, geometry)
        centre = geometry.taps // 2
        return KernelMap(table, coords_bzyx.shape[0], centre, mirrored=True), coords_bzyx, None
    return *_strided_map(coords_bzyx, spatial_shape, batch_size, geometry), None


def _submanifold_table(
    coords_bzyx: Tensor, spatial_shape: Triple, batch_size: int, geometry: ConvGeometry
) -> Tensor:
    """`[k, n]` int32: the row of the site at `site + dilation * tap - padding`, or n."""
    n = coords_bzyx.shape[0]
    reach = geometry.effective_padding
    # A halo of empty cells after every row, slice and volume: a neighbour outside of the grid falls
    # into the halo of what comes before or after, so that no coordinate needs a range test.
    size_z, size_y, size_x = (s + r for s, r in zip(spatial_shape, reach, strict=True))
    # Every key is moved up by the largest step, so that none is negative.
    largest = (reach[0] * size_y + reach[1]) * size_x + reach[2]
    n_cells = batch_size * size_z * size_y * size_x + 2 * largest
    b, z, y, x = coords_bzyx.to(_key_dtype(n_cells)).unbind(1)
    keys = ((b * size_z + z) * size_y + y) * size_x + x + largest
    # Made where the keys are: a list from the host would make a GPU and its queue wait.
    dz, dy, dx = (
        d * torch.arange(k, dtype=keys.dtype, device=keys.device)
        for d, k in zip(geometry.dilation, geometry.kernel_size, strict=True)
    )
    steps = (dz[:, None, None] * size_y + dy[:, None]) * size_x + dx
    # The first tap is at -padding, which `largest` cancels.
    neighbours = steps.view(-1, 1) + (keys - largest)
    return _CellTable(keys, n_cells).rows_of(neighbours.view(-1)).view(geometry.taps, n)


class _CellTable:
    """Row of every occupied cell, in two levels."""

    def __init__(self, keys: Tensor, n_cells: int) -> None:
        n = keys.shape[0]
        device = keys.device
        blocks = keys >> _BLOCK_BITS
        n_blocks = (n_cells >> _BLOCK_BITS) + 1
        # Any of a block's sites may name the block: whichever wins, all of them read it back.
        self.slot_of_block = torch.zeros(n_blocks, dtype=torch.int32, device=device)
        names = torch.arange(1, n + 1, dtype=torch.int32, device=device)
        self.slot_of_block.index_put_((blocks.long(),), names)
        slots = self.slot_of_block.index_select(0, blocks)
        self.row_of_cell = torch.full(
            ((n + 1) << _BLOCK_BITS,), n, dtype=torch.int32, device=device
        )
        self.row_of_cell.index_put_((self._cell(slots, keys).long(),), names - 1)

    def rows_of(self, keys: Tensor) -> Tensor:
        """`[q]` int32 row of each key, `n` where the cell is empty."""
        slots = self.slot_of_block.index_select(0, keys >> _BLOCK_BITS)
        return self.row_of_cell.index_select(0, self._cell(slots, keys))

    @staticmethod
    def _cell(slots: Tensor, keys: Tensor) -> Tensor:
        """Place in `row_of_cell`; overwrites `slots`, since fresh pages cost more than the sum."""
        return slots.bitwise_left_shift_(_BLOCK_BITS).add_(keys & (_BLOCK_CELLS - 1))


def _strided_map(
    coords_bzyx: Tensor, spatial_shape: Triple, batch_size: int, geometry: ConvGeometry
) -> tuple[KernelMap, Tensor]:
    n = coords_bzyx.shape[0]
    out_shape = geometry.output_shape(spatial_shape)
    reached = _reached_keys(coords_bzyx, out_shape, batch_size, geometry).view(-1)
    pairs = torch.nonzero(reached >= 0).squeeze(1)  # tap * n + input row
    sorted_keys, order = torch.sort(reached.index_select(0, pairs))
    is_first = torch.ones_like(sorted_keys, dtype=torch.bool)
    torch.ne(sorted_keys[1:], sorted_keys[:-1], out=is_first[1:])
    out_keys = sorted_keys[is_first]
    m = out_keys.shape[0]
    out_rows = torch.cumsum(is_first, 0) - 1  # of the sorted pairs
    pairs = pairs.index_select(0, order)
    tap = torch.div(pairs, max(n, 1), rounding_mode="floor")
    table = torch.full((geometry.taps, m), n, dtype=torch.int32, device=coords_bzyx.device)
    table.view(-1).index_put_((tap * m + out_rows,), (pairs - tap * n).int())
    return KernelMap(table, n), _unflatten(out_keys, out_shape)


def _reached_keys(
    coords_bzyx: Tensor, out_shape: Triple, batch_size: int, geometry: ConvGeometry
) -> Tensor:
    """`[kz, ky, kx, n]` row-major index of the output each input reaches by a tap; < 0 for none."""
    n_cells = batch_size * out_shape[0] * out_shape[1] * out_shape[2]
    dtype = _key_dtype(n_cells)
    none = -_INT32_LIMIT if dtype == torch.int32 else -(1 << 60)
    steps = (out_shape[1] * out_shape[2], out_shape[2], 1)
    columns = coords_bzyx.to(dtype).t().contiguous()  # [4, n]
    key = columns[0] * (out_shape[0] * steps[0])
    for axis in range(3):
        taps = torch.arange(geometry.kernel_size[axis], dtype=dtype, device=key.device)[:, None]
        shifted = columns[axis + 1] + geometry.padding[axis] - geometry.dilation[axis] * taps
        place = torch.div(shifted, geometry.stride[axis], rounding_mode="floor")
        valid = (place * geometry.stride[axis] == shifted) & (place >= 0)
        valid &= place < out_shape[axis]
        part = torch.where(valid, place * steps[axis], none)  # [k_axis, n]
        key = key.unsqueeze(-2) + part
    return key


def _key_dtype(n_cells: int) -> torch.dtype:
    return torch.int32 if n_cells < _INT32_LIMIT else torch.int64


def _unflatten(keys: Tensor, shape: Triple) -> Tensor:
    coords = []
    for size in reversed(shape):
        rest = torch.div(keys, size, rounding_mode="floor")
        coords.append(keys - rest * size)
        keys = rest
    return torch.stack([keys, *reversed(coords)], 1).int()
