"""Column maps, decoded, against set arithmetic; without a GPU in Triton's interpreter."""

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

from oracles.sparse_sites import Site
from planned_index import GuardedIndex, decode_sites
from site_levels import CHAINS, expected_levels, expected_pairs, frame_of
from voxelquant.errors import GeometryError
from voxelquant.sparse import ConvGeometry
from voxelquant.sparse.backends.triton.column_map import (
    ColumnMaps,
    MapSpec,
    why_unsupported,
)

SUBMANIFOLD = [
    ConvGeometry((3, 3, 3), subm=True),
    ConvGeometry((1, 1, 1), subm=True),
    ConvGeometry((3, 3, 3), dilation=(1, 2, 3), subm=True),
    ConvGeometry((1, 5, 1), subm=True),
    ConvGeometry((3, 1, 3), subm=True),
]
MARK = -123456789


def _specs(name: str) -> list[MapSpec]:
    """Every step forward and inverse, and submanifold kernels on every level."""
    steps = CHAINS[name][1]
    specs = [MapSpec(parent, i, g) for i, (parent, g) in enumerate(steps, 1)]
    specs += [MapSpec(i, parent, g, inverse=True) for i, (parent, g) in enumerate(steps, 1)]
    specs += [MapSpec(0, 0, g) for g in SUBMANIFOLD]
    return specs + [MapSpec(i, i, SUBMANIFOLD[2 * (i % 2)]) for i in range(1, len(steps) + 1)]


def _decode(maps: ColumnMaps, number: int) -> set[tuple[int, Site, Site]]:
    """Triples (tap, input site, output site) of a map."""
    spec, entries = maps.specs[number], maps.entries[number].cpu().tolist()
    kz, ky, kx = spec.geometry.kernel_size
    inputs = decode_sites(maps.index, spec.in_level)
    outputs = decode_sites(maps.index, spec.out_level)
    triples = set()
    for column in range(ky * kx):
        for site, entry in zip(outputs, entries[column], strict=False):
            row = entry >> kz
            taps = [t for t in range(kz) if entry >> t & 1]
            for t in reversed(taps) if spec.inverse else taps:
                triples.add((t * ky * kx + column, inputs[row], site))
                row += 1
    return triples


def _assert_right(maps: ColumnMaps, name: str, coords: Tensor) -> None:
    levels = expected_levels(name, coords)
    for number, spec in enumerate(maps.specs):
        source = spec.out_level if spec.inverse else spec.in_level
        pairs = expected_pairs(levels.sites[source], levels.shapes[source], spec.geometry)
        if spec.inverse:
            pairs = {(tap, o, i) for tap, i, o in pairs}
        assert _decode(maps, number) == pairs, spec
        # Nothing is written past the rows that exist.
        count = int(maps.index.counts[spec.out_level])
        assert (maps.entries[number][:, count:] == MARK).all()
        _assert_grouped(maps, number, count)


def _assert_grouped(maps: ColumnMaps, number: int, count: int) -> None:
    """Every row stands once, in the group of the taps along z that any of its entries has."""
    groups = 1 << maps.specs[number].geometry.kernel_size[0]
    entries = maps.entries[number][:, :count].cpu() & (groups - 1)
    taps = torch.zeros(count, dtype=torch.int32)
    for column in entries:
        taps |= column
    strips, tallies = maps.groups[number].rows.cpu(), maps.groups[number].counts.tolist()
    assert len(tallies) == groups
    for group, tally in enumerate(tallies):
        strip = strips[group // 2]
        listed = strip.flip(0)[:tally] if group % 2 else strip[:tally]
        assert listed.sort().values.tolist() == (taps == group).nonzero().flatten().tolist()
    assert int((strips != MARK).sum()) == count


@pytest.mark.parametrize("name", CHAINS)
def test_all_maps_of_all_levels(name: str) -> None:
    shape = CHAINS[name][0]
    guarded = GuardedIndex(name, 70)
    maps = ColumnMaps(guarded.index, _specs(name))
    maps._all.fill_(MARK)
    maps._rows.fill_(MARK)
    coords = frame_of(name, min(67, 2 * shape[0] * shape[1] * shape[2]))
    guarded.run(coords)
    maps.launch()
    _assert_right(maps, name, coords)


def test_frames_in_a_row_and_maps_in_two_launches() -> None:
    name = "a column fills a word"
    guarded = GuardedIndex(name, 65)
    maps = ColumnMaps(guarded.index, _specs(name))
    for seed, n in enumerate((65, 0, 1)):
        maps._all.fill_(MARK)
        maps._rows.fill_(MARK)
        coords = frame_of(name, n, seed)
        guarded.run(coords)
        maps.launch(slice(0, 3))
        maps.launch(slice(3, None))
        _assert_right(maps, name, coords)


def test_what_a_map_cannot_say_is_refused() -> None:
    tall = ConvGeometry((5, 3, 3), subm=True)
    wide = ConvGeometry((3, 3, 3), dilation=(2, 1, 1), subm=True)
    assert why_unsupported(tall) == "a kernel of 5 taps along z, need at most 4"
    assert why_unsupported(wide) == "a dilation of 2 along z, need 1"
    assert why_unsupported(ConvGeometry((3, 5, 5), dilation=(1, 2, 2), subm=True)) is None
    guarded = GuardedIndex("one level", 10)
    with pytest.raises(GeometryError, match=r"got a kernel of 5 taps.* layer by layer"):
        ColumnMaps(guarded.index, [MapSpec(0, 0, tall)])
