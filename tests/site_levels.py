"""Levels of sites on small grids, what a site index says of them, and what set arithmetic says."""

from dataclasses import dataclass

import torch
from torch import Tensor

from oracles.sparse_sites import Site, Triple, random_sites, strided_pairs, submanifold_pairs
from voxelquant.sparse import ConvGeometry

BATCH = 3  # sample 1 is empty
Step = tuple[int, ConvGeometry]  # level that a convolution reads, its geometry


def strided(kernel: Triple, stride: Triple, padding: Triple) -> ConvGeometry:
    return ConvGeometry(kernel, stride, padding)


_DOWN = strided((3, 3, 3), (2, 2, 2), (1, 1, 1))
_FLAT = strided((1, 3, 3), (1, 2, 2), (0, 1, 1))
_EVEN = strided((2, 2, 2), (2, 2, 2), (0, 0, 0))
_THIN = strided((3, 1, 1), (2, 1, 1), (0, 0, 0))
CHAINS: dict[str, tuple[Triple, list[Step]]] = {
    "one level": ((5, 4, 6), []),
    "centerpoint": (
        (41, 10, 9),
        [(0, _DOWN), (1, _DOWN), (2, strided((3, 3, 3), (2, 2, 2), (0, 1, 1))), (3, _THIN)],
    ),
    "flat": ((1, 8, 9), [(0, _FLAT), (1, _FLAT)]),
    "two high, even": ((2, 7, 6), [(0, _EVEN)]),
    "21 high, stride 1": ((21, 5, 6), [(0, strided((4, 2, 1), (1, 1, 1), (2, 0, 0))), (1, _EVEN)]),
    "a column fills half a word": (
        (32, 4, 5),
        [(0, _THIN), (1, strided((3, 3, 2), (2, 1, 2), (1, 2, 1)))],
    ),
    "a column fills a word": ((64, 4, 3), [(0, _DOWN), (1, _THIN)]),
    "two words": ((70, 4, 5), [(0, _DOWN), (1, _DOWN)]),
    "three words": ((130, 3, 4), [(0, strided((3, 3, 3), (1, 2, 1), (1, 1, 1))), (1, _DOWN)]),
    "stride above kernel": (
        (9, 11, 7),
        [
            (0, strided((1, 1, 1), (2, 2, 2), (0, 0, 0))),
            (1, strided((2, 2, 1), (3, 3, 2), (1, 0, 0))),
        ],
    ),
    "branches": ((9, 8, 7), [(0, _DOWN), (1, _DOWN), (0, _EVEN), (1, _THIN), (3, _DOWN)]),
}


@dataclass(frozen=True)
class Levels:
    """What set arithmetic says: sites and grid of every level."""

    sites: list[set[Site]]
    shapes: list[Triple]


def grids(name: str) -> list[Triple]:
    shape, steps = CHAINS[name]
    shapes = [shape]
    for parent, geometry in steps:
        shapes.append(geometry.output_shape(shapes[parent]))
    return shapes


def expected_levels(name: str, coords: Tensor) -> Levels:
    shapes, sites = grids(name), [as_set(coords)]
    for parent, geometry in CHAINS[name][1]:
        _, outputs = _pairs(sorted(sites[parent]), shapes[parent], geometry)
        sites.append(set(outputs))
    return Levels(sites, shapes)


def expected_pairs(
    sites: set[Site], shape: Triple, geometry: ConvGeometry
) -> set[tuple[int, Site, Site]]:
    """Triples (tap, input site, output site)."""
    if geometry.subm:
        return submanifold_pairs(sorted(sites), geometry.kernel_size, geometry.dilation)
    return _pairs(sorted(sites), shape, geometry)[0]


def _pairs(
    sites: list[Site], shape: Triple, g: ConvGeometry
) -> tuple[set[tuple[int, Site, Site]], list[Site]]:
    return strided_pairs(sites, shape, g.kernel_size, g.stride, g.padding, g.dilation)


def as_set(coords: Tensor) -> set[Site]:
    return {(b, z, y, x) for b, z, y, x in coords.tolist()}


def frame_of(name: str, n: int, seed: int = 0) -> Tensor:
    """`[n, 4]` int32 shuffled sites of samples 0 and 2; from 16 on, all corners are among them."""
    shape = CHAINS[name][0]
    coords = random_sites(n, shape, [0, 2], seed)
    if n < 16:
        return coords
    ends = [torch.tensor(sorted({0, size - 1})) for size in shape]
    corners = torch.cartesian_prod(torch.tensor([0, 2]), *ends).int()
    known = as_set(corners)
    rest = [site for site in coords.tolist() if tuple(site) not in known]
    both = torch.cat([corners, torch.tensor(rest, dtype=torch.int32).view(-1, 4)])[:n]
    return both[torch.randperm(len(both), generator=torch.Generator().manual_seed(seed))]
