import gc
import weakref

import pytest
import torch

from oracles.sparse_sites import random_sites
from voxelquant.sparse import ConvGeometry, KernelMap, build_kernel_map

SHAPE = (5, 7, 9)


@pytest.fixture
def strided() -> KernelMap:
    coords = random_sites(90, SHAPE, [0, 1])
    geometry = ConvGeometry((3, 3, 3), (2, 2, 2), (1, 1, 1))
    return build_kernel_map(coords, SHAPE, 2, geometry)[0]


def test_pairs_are_the_table_grouped_by_tap(strided: KernelMap) -> None:
    total = 0
    for tap in range(27):
        in_rows, out_rows = strided.pairs_of_tap(tap)
        row = strided.table[tap]
        assert torch.equal(out_rows, torch.nonzero(row < strided.n_in).squeeze(1))
        assert torch.equal(in_rows, row[out_rows])
        assert len(in_rows.unique()) == len(in_rows)
        total += len(in_rows)
    assert total == len(strided.in_rows) == len(strided.out_rows) == strided.tap_bounds[-1]


def test_transposed_swaps_every_pair_and_returns_to_the_same_map(strided: KernelMap) -> None:
    back = strided.transposed()
    assert (back.n_in, back.n_out) == (strided.n_out, strided.n_in)
    for tap in range(27):
        forward = set(zip(*(r.tolist() for r in strided.pairs_of_tap(tap)), strict=True))
        backward = {
            (o, i) for i, o in zip(*(r.tolist() for r in back.pairs_of_tap(tap)), strict=True)
        }
        assert forward == backward
    assert strided.transposed() is back
    assert back.transposed() is strided


@pytest.mark.parametrize(
    "geometry",
    [
        ConvGeometry((3, 3, 3), subm=True),
        ConvGeometry((3, 1, 5), dilation=(1, 2, 1), subm=True),
        ConvGeometry((1, 1, 1), subm=True),
    ],
    ids=str,
)
@pytest.mark.parametrize("n", [0, 1, 90])
def test_a_submanifold_map_read_backwards_is_its_transpose(geometry: ConvGeometry, n: int) -> None:
    kernel_map, _ = build_kernel_map(random_sites(n, SHAPE, [0, 1]), SHAPE, 2, geometry)
    assert kernel_map.mirrored
    searched = KernelMap(kernel_map.table, n).transposed()  # knows nothing of the symmetry
    assert torch.equal(kernel_map.transposed().table, searched.table)
    assert kernel_map.transposed().mirrored


def test_a_strided_map_read_backwards_is_not_its_transpose(strided: KernelMap) -> None:
    assert not strided.mirrored
    assert not strided.transposed().mirrored


def test_transposed_map_outlives_its_origin(strided: KernelMap) -> None:
    table = strided.table.clone()
    lone = KernelMap(table, strided.n_in).transposed()
    gc.collect()
    assert torch.equal(lone.transposed().table, table)


def test_maps_are_freed_without_the_garbage_collector() -> None:
    coords = random_sites(20, SHAPE, [0])
    kernel_map, _ = build_kernel_map(coords, SHAPE, 1, ConvGeometry((2, 2, 2), (2, 2, 2)))
    alive = weakref.ref(kernel_map.transposed().table)
    gc.disable()
    try:
        del kernel_map
        assert alive() is None
    finally:
        gc.enable()


def test_map_without_sites() -> None:
    empty = torch.zeros((0, 4), dtype=torch.int32)
    for geometry in (ConvGeometry((3, 3, 3), subm=True), ConvGeometry((2, 2, 2), (2, 2, 2))):
        kernel_map, out_coords = build_kernel_map(empty, SHAPE, 2, geometry)
        assert kernel_map.n_in == kernel_map.n_out == len(out_coords) == 0
        assert kernel_map.tap_bounds == (0,) * (geometry.taps + 1)
        assert kernel_map.transposed().table.shape == (geometry.taps, 0)
        assert kernel_map.neighbour_rows().shape == (0, geometry.taps)
