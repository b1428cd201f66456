"""Sites of all levels against set arithmetic; without a GPU in Triton's interpreter."""

import pytest
import torch

pytest.importorskip("triton")

from planned_index import DEVICE, GuardedIndex, decode_sites
from site_levels import BATCH, CHAINS, as_set, expected_levels, frame_of, grids
from voxelquant.errors import GeometryError
from voxelquant.sparse import ConvGeometry
from voxelquant.sparse.backends.triton.site_index import (
    FLAG_OUTSIDE,
    FLAG_OVERFLOW,
    FLAG_REPEATED,
    LevelGrid,
    SiteIndex,
)


def _assert_right(guarded: GuardedIndex, name: str, coords: torch.Tensor) -> None:
    index = guarded.run(coords)
    expected = expected_levels(name, coords)
    assert index.explain() is None
    for level, sites in enumerate(expected.sites):
        found = decode_sites(index, level)
        # In the order of columns, each from the bottom up.
        assert found == sorted(sites, key=lambda s: (s[0], s[2], s[3], s[1])), f"level {level}"
        assert int(index.counts[level]) == int(index.needed[level]) == len(sites)
    order = guarded.ordered[: len(coords), 0].long().cpu()
    assert [tuple(site) for site in coords[order].tolist()] == decode_sites(index, 0)


@pytest.mark.parametrize("name", CHAINS)
def test_all_levels(name: str) -> None:
    shape = CHAINS[name][0]
    cells = 2 * shape[0] * shape[1] * shape[2]
    guarded = GuardedIndex(name, 130)
    _assert_right(guarded, name, frame_of(name, min(129, cells)))
    assert min(min(s) for s in grids(name)) >= 1


@pytest.mark.parametrize("name", ["centerpoint", "two words"])
def test_frames_in_a_row_leave_nothing_behind(name: str) -> None:
    """0, 1, odd and as many as fit; rows past the count hold coordinates outside of the grid."""
    guarded = GuardedIndex(name, 129)
    for seed, n in enumerate((129, 0, 1, 33)):
        _assert_right(guarded, name, frame_of(name, n, seed))


def test_every_cell_active() -> None:
    name = "one level"
    shape = CHAINS[name][0]
    cells = [torch.arange(n) for n in (BATCH, *shape)]
    coords = torch.cartesian_prod(*cells).int()
    generator = torch.Generator().manual_seed(0)
    coords = coords[torch.randperm(len(coords), generator=generator)]
    _assert_right(GuardedIndex(name, len(coords)), name, coords)


def test_several_blocks_of_words() -> None:
    """A grid of several blocks in each of two levels: ranks go on from block to block."""
    grid = (41, 64, 90)
    down = ConvGeometry((3, 3, 3), (1, 1, 1), (1, 1, 1))
    levels = (LevelGrid(grid, 60), LevelGrid(grid, 60 * 27, 0, down))
    index = SiteIndex(levels, BATCH, DEVICE)
    assert min(index._blocks) > 16
    generator = torch.Generator().manual_seed(0)
    flat = torch.randperm(BATCH * 64 * 90, generator=generator)[:60]
    z = torch.randint(0, 41, (60,), generator=generator)
    coords = torch.stack([flat // (64 * 90), z, flat // 90 % 64, flat % 90], 1).int().to(DEVICE)
    index.frame.hand_over(torch.zeros(60, 1, dtype=torch.float16, device=DEVICE), coords)
    index.launch()
    offsets = torch.cartesian_prod(*[torch.arange(-1, 2)] * 3).to(DEVICE)
    near = coords[:, None, 1:] + offsets
    sample = coords[:, None, :1].expand(-1, 27, -1)
    inside = ((near >= 0) & (near < torch.tensor(grid, device=DEVICE))).all(2)
    expected = as_set(torch.cat([sample, near], 2)[inside])
    assert int(index.counts[1]) == len(expected)
    assert set(decode_sites(index, 1)) == expected


@pytest.mark.parametrize(
    "outside",
    [(3, 0, 0, 0), (-1, 0, 0, 0), (0, 41, 0, 0), (0, -1, 0, 0), (0, 0, 10, 0), (0, 0, 0, -1)],
    ids=str,
)
def test_coordinates_outside_of_the_grid(outside: tuple[int, int, int, int]) -> None:
    name = "centerpoint"
    guarded = GuardedIndex(name, 40)
    coords = frame_of(name, 33)
    coords[7] = torch.tensor(outside)
    index = guarded.run(coords)
    assert int(index.frame.flags) & FLAG_OUTSIDE
    assert index.explain() == (
        "got coordinates outside of the grid, need (batch, z, y, x) from 0 to below [3, 41, 10, 9]"
    )
    _assert_right(guarded, name, frame_of(name, 33))


def test_repeated_coordinates() -> None:
    name = "centerpoint"
    guarded = GuardedIndex(name, 40)
    coords = frame_of(name, 33)
    coords[7] = coords[20]
    index = guarded.run(coords)
    assert int(index.frame.flags) == FLAG_REPEATED
    assert index.explain() == "got repeated coordinates, need one row for each active site"
    _assert_right(guarded, name, frame_of(name, 33))


@pytest.mark.parametrize("level", [1, 2, 4])
def test_a_level_that_overflows(level: int) -> None:
    """Its count is cut, what it needs is told, and nothing is written beyond its rows."""
    name = "centerpoint"
    coords = frame_of(name, 33)
    sizes = [len(sites) for sites in expected_levels(name, coords).sites]
    _assert_right(GuardedIndex(name, 33, sizes), name, coords)
    tight = list(sizes)
    tight[level] -= 1
    guarded = GuardedIndex(name, 33, tight)
    index = guarded.run(coords)
    assert int(index.frame.flags) == FLAG_OVERFLOW << level
    assert index.counts.tolist() == tight
    assert index.needed.tolist() == sizes
    assert index.explain() == (
        f"got a frame of {sizes[level]} sites on level {level} (grid {grids(name)[level]}), the "
        f"plan holds {tight[level]}; plan for more"
    )


def test_a_dilated_strided_convolution_is_refused() -> None:
    dilated = ConvGeometry((3, 3, 3), (2, 2, 2), (2, 2, 2), dilation=(1, 2, 2))
    levels = (LevelGrid((9, 9, 9), 10), LevelGrid((5, 4, 4), 10, 0, dilated))
    with pytest.raises(GeometryError, match="dilated strided convolution cannot be planned"):
        SiteIndex(levels, 1, DEVICE)
