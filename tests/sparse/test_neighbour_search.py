"""Kernel maps against plain set arithmetic."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from oracles.sparse_sites import random_sites, strided_pairs, submanifold_pairs
from voxelquant.errors import GeometryError
from voxelquant.sparse import ConvGeometry, KernelMap, build_kernel_map, neighbour_search

Pairs = set[tuple[int, tuple, tuple]]


def _sites(coords: Tensor) -> list[tuple[int, int, int, int]]:
    return [tuple(row) for row in coords.tolist()]


def _pairs(kernel_map: KernelMap, coords: Tensor, out_coords: Tensor) -> Pairs:
    ins, outs = _sites(coords), _sites(out_coords)
    triples = [
        (tap, ins[i], outs[o])
        for tap in range(kernel_map.taps)
        for i, o in zip(*(rows.tolist() for rows in kernel_map.pairs_of_tap(tap)), strict=True)
    ]
    assert len(set(triples)) == len(triples)
    return set(triples)


small_int = st.integers(1, 3)
shapes = st.tuples(st.integers(1, 6), st.integers(1, 7), st.integers(1, 40))


@given(
    shape=shapes,
    fill=st.floats(0, 1),
    kernel=st.tuples(*[st.sampled_from([1, 3, 5])] * 3),
    dilation=st.tuples(*[small_int] * 3),
    seed=st.integers(0, 99),
)
@settings(max_examples=120)
def test_submanifold_map_equals_sets(shape, fill, kernel, dilation, seed) -> None:
    cells = 2 * shape[0] * shape[1] * shape[2]
    coords = random_sites(min(int(fill * cells), 120), shape, [0, 2], seed)
    geometry = ConvGeometry(kernel, dilation=dilation, subm=True)
    kernel_map, out_coords = build_kernel_map(coords, shape, 3, geometry)
    assert out_coords is coords
    assert _pairs(kernel_map, coords, coords) == submanifold_pairs(_sites(coords), kernel, dilation)


@given(
    shape=shapes,
    fill=st.floats(0, 1),
    kernel=st.tuples(*[st.integers(1, 4)] * 3),
    stride=st.tuples(*[small_int] * 3),
    padding=st.tuples(*[st.integers(0, 3)] * 3),
    dilation=st.tuples(*[st.integers(1, 2)] * 3),
    seed=st.integers(0, 99),
)
@settings(max_examples=120)
def test_strided_map_equals_sets(shape, fill, kernel, stride, padding, dilation, seed) -> None:
    geometry = ConvGeometry(kernel, stride, padding, dilation)
    coords = random_sites(
        min(int(fill * 2 * shape[0] * shape[1] * shape[2]), 60), shape, [0, 2], seed
    )
    try:
        geometry.output_shape(shape)
    except GeometryError:
        with pytest.raises(GeometryError):
            build_kernel_map(coords, shape, 3, geometry)
        return
    kernel_map, out_coords = build_kernel_map(coords, shape, 3, geometry)
    expected, outs = strided_pairs(_sites(coords), shape, kernel, stride, padding, dilation)
    assert _sites(out_coords) == outs  # in row-major order
    assert out_coords.dtype == torch.int32
    assert _pairs(kernel_map, coords, out_coords) == expected


@pytest.mark.parametrize(
    "geometry",
    [ConvGeometry((3, 3, 3), subm=True), ConvGeometry((3, 3, 3), (2, 2, 2), (1, 1, 1))],
    ids=["subm", "strided"],
)
def test_int64_keys_give_the_map_of_int32_keys(geometry, monkeypatch) -> None:
    coords = random_sites(150, (5, 9, 37), [0, 1, 2])
    small, small_out = build_kernel_map(coords, (5, 9, 37), 3, geometry)
    monkeypatch.setattr(neighbour_search, "_INT32_LIMIT", 1)
    large, large_out = build_kernel_map(coords, (5, 9, 37), 3, geometry)
    assert torch.equal(small.table, large.table)
    assert torch.equal(small_out, large_out)


def test_corners_of_the_largest_grid_and_batch() -> None:
    """Keys beyond 2**31: two sites at the far corner of a batch of 40, one at the near one."""
    shape = (41, 1440, 1440)
    coords = torch.tensor([[39, 40, 1439, 1439], [39, 40, 1439, 1438], [0, 0, 0, 0]]).int()
    subm, _ = build_kernel_map(coords, shape, 40, ConvGeometry((3, 3, 3), subm=True))
    assert subm.tap_bounds[-1] == 5
    strided, out = build_kernel_map(coords, shape, 40, ConvGeometry((3, 1, 1), (2, 1, 1)))
    assert out.tolist() == [[0, 0, 0, 0], [39, 19, 1439, 1438], [39, 19, 1439, 1439]]
    assert strided.in_rows.tolist() == [2, 1, 0]


def test_submanifold_taps_mirror_each_other_and_the_centre_is_the_identity() -> None:
    coords = random_sites(200, (6, 8, 10), [0, 1])
    kernel_map, _ = build_kernel_map(coords, (6, 8, 10), 2, ConvGeometry((3, 3, 3), subm=True))
    for tap in range(27):
        in_rows, out_rows = kernel_map.pairs_of_tap(tap)
        mirrored_in, mirrored_out = kernel_map.pairs_of_tap(26 - tap)
        assert set(zip(in_rows.tolist(), out_rows.tolist(), strict=True)) == set(
            zip(mirrored_out.tolist(), mirrored_in.tolist(), strict=True)
        )
    assert kernel_map.identity_tap == 13
    for rows in kernel_map.pairs_of_tap(13):
        assert rows.tolist() == list(range(200))
