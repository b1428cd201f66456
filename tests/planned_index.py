"""A site index between guard zones: what lies around its buffers must stay as it was.

Import it only where Triton is installed.
"""

from typing import Any

import torch
from torch import Tensor

from oracles.sparse_sites import Site
from site_levels import BATCH, CHAINS, grids
from voxelquant.sparse.backends.triton.bits import _INTERPRETED
from voxelquant.sparse.backends.triton.densify import order_features
from voxelquant.sparse.backends.triton.site_index import LevelGrid, SiteIndex

DEVICE = torch.device("cpu" if _INTERPRETED.value else "cuda")
_ZONE = 64  # elements on either side
_MARKS = {
    torch.int32: -0x5A5A5A5B,
    torch.int64: -0x5A5A5A5B,
    torch.float16: 12345.0,
}


class GuardedIndex:
    """An index whose levels are those of `CHAINS[name]`."""

    def __init__(self, name: str, capacity: int, capacities: list[int] | None = None) -> None:
        shape, steps = CHAINS[name]
        shapes = grids(name)
        sizes = capacities or [capacity] + [z * y * x * BATCH for z, y, x in shapes[1:]]
        levels = [LevelGrid(shape, sizes[0])]
        for (parent, geometry), grid, size in zip(steps, shapes[1:], sizes[1:], strict=True):
            levels.append(LevelGrid(grid, size, parent, geometry))
        self.index = SiteIndex(tuple(levels), BATCH, DEVICE)
        self.guarded: dict[str, Tensor] = {}
        index: Any = self.index
        for buffer in ("words", "_sums", "counts", "needed", "all_sites"):
            setattr(index, buffer, self.guard(buffer, getattr(index, buffer)))
        # Marks begin as zeros; everything else is written before it is read.
        for number in index.marked:
            index.words[index.first_words[number] :][: levels[number].words(BATCH)] = 0
        index.all_sites.zero_()
        index.counts.zero_()
        index.sites = index.all_sites.split(sizes)
        self.ordered = self.guard("ordered", torch.zeros(sizes[0], 1, dtype=torch.float16))

    def guard(self, name: str, buffer: Tensor) -> Tensor:
        """A buffer like this one in the middle of a larger one."""
        self.guarded[name] = torch.full(
            (buffer.numel() + 2 * _ZONE,), _MARKS[buffer.dtype], dtype=buffer.dtype, device=DEVICE
        )
        return self.guarded[name][_ZONE:-_ZONE].view(buffer.shape)

    def run(self, coords: Tensor) -> SiteIndex:
        """Index a frame; its number in the frame is each voxel's feature."""
        self.index.clear()  # what the frame before left
        self.hand_over(torch.arange(len(coords)).half()[:, None], coords)
        self.index.launch()
        order_features(self.index, 1, self.ordered)
        self.require_untouched_guards()
        return self.index

    def hand_over(self, features: Tensor, coords: Tensor) -> None:
        """A frame between rows that no kernel may take for part of it."""
        n, wide = len(coords), max(len(coords), 1)
        frame = torch.full((wide + 2 * _ZONE, 4), 10**6, dtype=torch.int32, device=DEVICE)
        frame[_ZONE : _ZONE + n] = coords
        self.index.frame.hand_over(features.to(DEVICE), frame[_ZONE : _ZONE + n])

    def require_untouched_guards(self) -> None:
        for name, buffer in self.guarded.items():
            zones = torch.cat([buffer[:_ZONE], buffer[-_ZONE:]])
            assert (zones == _MARKS[buffer.dtype]).all(), f"{name}: written out of bounds"


def decode_sites(index: SiteIndex, level: int) -> list[Site]:
    """Sites (b, z, y, x) of the rows of a level."""
    grid = index.levels[level]
    cells = index.sites[level][: int(index.counts[level])].long().cpu()
    column, z = cells >> grid.z_bits, cells % (1 << grid.z_bits)
    _, size_y, size_x = grid.spatial_shape
    b, y, x = column // (size_y * size_x), column // size_x % size_y, column % size_x
    return [(int(s[0]), int(s[1]), int(s[2]), int(s[3])) for s in torch.stack([b, z, y, x], 1)]
