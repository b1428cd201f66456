"""Sites and neighbours as the planned engine finds them, for comparison."""

from __future__ import annotations

import torch
from search_problem import FEATURE_WIDTH, SearchProblem, decode_columns
from torch import Tensor

from voxelquant.sparse.backends.triton.column_map import ColumnMaps
from voxelquant.sparse.backends.triton.densify import order_features
from voxelquant.sparse.backends.triton.site_index import SiteIndex


class BitmapSearch:
    """Columns of bits with the rank of their first site: the engine's own way."""

    def __init__(self, problem: SearchProblem) -> None:
        self.problem = problem
        device = problem.count.device
        self.index = SiteIndex(problem.levels, problem.batch_size, device)
        self.maps = ColumnMaps(self.index, problem.specs)
        shape = (problem.capacities[0], FEATURE_WIDTH)
        self.ordered_features: Tensor | None = torch.zeros(
            shape, dtype=torch.float16, device=device
        )
        self.stages = {
            "sites": self.launch_sites,
            "order": self.launch_order,
            "maps": self.maps.launch,
        }
        n = int(problem.count)
        self.index.frame.hand_over(problem.features[:n], problem.coords_bzyx[:n])

    @property
    def bytes(self) -> int:
        """Memory held from frame to frame."""
        return self.index.bytes + self.maps.bytes

    def launch_sites(self) -> None:
        """Take the marks of the frame before away; mark, count, rank and list all levels."""
        self.index.clear()
        self.index.launch()

    def launch_order(self) -> None:
        """Features and cells of the input in the order of its rows."""
        assert self.ordered_features is not None
        order_features(self.index, self.problem.features.shape[1], self.ordered_features)

    def cells(self, level: int) -> Tensor:
        """`[n]` int64 cell of each row of a level."""
        return self.index.sites[level][: int(self.index.counts[level])].long()

    def table(self, number: int) -> Tensor:
        """`[taps, n]` int64 input row of each tap, -1 where there is none."""
        spec = self.problem.specs[number]
        count = int(self.index.counts[spec.out_level])
        return decode_columns(self.maps.entries[number][:, :count], spec.geometry)
