"""Whether a way to find sites and neighbours found those of the reference backend."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from search_problem import Search, SearchProblem
from torch import Tensor

from voxelquant.recipes.bench_frames import BenchFrame
from voxelquant.sparse import ActiveSites


@dataclass(frozen=True)
class Found:
    """What there was to find: sites of each level, and pairs of sites over all maps."""

    sites: list[int]
    pairs: int


def require_reference(
    name: str, search: Search, problem: SearchProblem, frame: BenchFrame
) -> Found:
    """Run a way once and compare all of its sites, pairs and features.

    Raises:
        SystemExit: a level, a map or a row of features differs, or was cut at its bound.
    """
    for launch in search.stages.values():
        launch()
    sites = [ActiveSites(frame.coords_bzyx, frame.spatial_shape, frame.batch_size)]
    total = 0
    for number, spec in enumerate(problem.specs):
        kernel_map, out_sites = sites[spec.in_level].kernel_map(spec.geometry)
        if spec.out_level == len(sites):
            sites.append(out_sites)
        table = torch.where(kernel_map.table == kernel_map.n_in, -1, kernel_map.table.long())
        cells = [_cells(problem, level, sites[level]) for level in (spec.in_level, spec.out_level)]
        expected = _pairs(table, *cells)
        found = _pairs(search.table(number), *map(search.cells, (spec.in_level, spec.out_level)))
        for what, a, b in zip(("output sites", "pairs"), found, expected, strict=True):
            if not torch.equal(a, b):
                raise SystemExit(
                    f"{name}: got {len(a)} {what} of map {number}, need the {len(b)} of the "
                    "reference backend; nothing was timed"
                )
        total += len(expected[1])
    if search.ordered_features is not None:
        _require_features(name, search, problem, frame)
    return Found([len(level.coords_bzyx) for level in sites], total)


def _cells(problem: SearchProblem, level: int, sites: ActiveSites) -> Tensor:
    _, size_y, size_x = problem.levels[level].spatial_shape
    b, z, y, x = sites.coords_bzyx.long().unbind(1)
    return (((b * size_y + y) * size_x + x) << problem.levels[level].z_bits) + z


def _pairs(table: Tensor, in_cells: Tensor, out_cells: Tensor) -> tuple[Tensor, Tensor]:
    """Sorted output cells, and `[pairs, 2]` (output cell and tap, input cell) in their order."""
    taps, out_rows = (table >= 0).nonzero().unbind(1)
    keys = out_cells[out_rows] * len(table) + taps
    order = keys.argsort()
    inputs = in_cells[table[taps, out_rows]]
    return out_cells.sort().values, torch.stack([keys[order], inputs[order]], 1)


def _require_features(name: str, search: Search, problem: SearchProblem, frame: BenchFrame) -> None:
    cells = problem.cells(frame.coords_bzyx)
    ordered = search.ordered_features
    assert ordered is not None
    n, width = frame.features.shape
    expected = frame.features.half()[cells.argsort()]
    found = ordered[:n, :width][search.cells(0).argsort()]
    if not torch.equal(found, expected):
        raise SystemExit(f"{name}: got features in rows of other sites; nothing was timed")
