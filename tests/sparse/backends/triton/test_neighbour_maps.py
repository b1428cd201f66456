"""Kernel maps of the kernels against those of plain torch, order of rows and outputs included."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from conv_problems import GEOMETRIES
from oracles.sparse_sites import random_sites
from voxelquant.errors import GeometryError
from voxelquant.sparse import ActiveSites, ConvGeometry, build_kernel_map, use_backend
from voxelquant.sparse.backends.triton import conv, neighbour_maps

DEVICE = "cpu" if conv.INTERPRETED else "cuda"
SHAPE = (4, 5, 70)  # rows of more than one word


@pytest.fixture(autouse=True)
def poisoned_buffers(monkeypatch: pytest.MonkeyPatch) -> None:
    """What no kernel writes is the most negative integer."""
    allocate = Tensor.new_empty

    def new_poison(self: Tensor, *arguments: Any, **named: Any) -> Tensor:
        buffer = allocate(self, *arguments, **named)
        return buffer.fill_(torch.iinfo(buffer.dtype).min)

    monkeypatch.setattr(Tensor, "new_empty", new_poison)


def assert_equal_maps(coords: Tensor, shape: Any, batch: int, geometry: ConvGeometry) -> None:
    """The map, its transpose and the map on its outputs, which takes over their bitmap."""
    expected, found = [], []
    centred = ConvGeometry((3, 1, 3), subm=True)
    for backend, results in (("reference", expected), ("triton", found)):
        with use_backend(backend):
            sites = ActiveSites(coords.to(DEVICE), shape, batch)
            kernel_map, out_sites = sites.kernel_map(geometry)
            on_outputs, _ = out_sites.kernel_map(centred)
            tables = [m.table for m in (kernel_map, kernel_map.transposed(), on_outputs)]
            results += [*tables, out_sites.coords_bzyx]
            facts = (kernel_map.n_in, kernel_map.identity_tap, kernel_map.mirrored)
            results += [torch.tensor([-1 if fact is None else int(fact) for fact in facts])]
    for mine, wanted in zip(found, expected, strict=True):
        assert mine.dtype == wanted.dtype
        assert torch.equal(mine, wanted)


@pytest.mark.parametrize("n", [0, 1, 2, 255, 256, 257])
@pytest.mark.parametrize("name", GEOMETRIES)
def test_every_geometry_and_number_of_sites(name: str, n: int) -> None:
    assert_equal_maps(random_sites(n, SHAPE, [0, 2]), SHAPE, 3, GEOMETRIES[name])


@pytest.mark.parametrize("name", ["subm dilated", "stride 2", "even, overlapping"])
def test_every_cell_of_the_grid_active(name: str) -> None:
    cells = 2 * SHAPE[0] * SHAPE[1] * SHAPE[2]
    assert_equal_maps(random_sites(cells, SHAPE, [0, 1]), SHAPE, 2, GEOMETRIES[name])


small = st.integers(1, 3)


@given(
    shape=st.tuples(st.integers(1, 4), st.integers(1, 5), st.sampled_from([1, 63, 64, 65, 129])),
    n=st.integers(0, 80),
    kernel=st.tuples(*[st.integers(1, 4)] * 3),
    stride=st.tuples(*[small] * 3),
    padding=st.tuples(*[st.integers(0, 3)] * 3),
    dilation=st.tuples(*[small] * 3),
    seed=st.integers(0, 99),
)
@settings(max_examples=25)
def test_strided_maps(shape, n, kernel, stride, padding, dilation, seed) -> None:
    geometry = ConvGeometry(kernel, stride, padding, dilation)
    coords = random_sites(min(n, shape[0] * shape[1] * shape[2]), shape, [1], seed)
    try:
        geometry.output_shape(shape)
    except GeometryError:
        with pytest.raises(GeometryError), use_backend("triton"):
            build_kernel_map(coords.to(DEVICE), shape, 2, geometry)
        return
    assert_equal_maps(coords, shape, 2, geometry)


def test_sites_of_which_no_output_is_left() -> None:
    """The last cell of a row that the stride skips."""
    coords = torch.tensor([[0, 0, 0, 1]]).int()
    assert_equal_maps(coords, (1, 1, 2), 1, ConvGeometry((1, 1, 1), (1, 1, 2)))


def test_bits_of_several_blocks_are_ranked(monkeypatch: pytest.MonkeyPatch) -> None:
    """One block of words for every few rows of cells, and more blocks than are summed at once."""
    monkeypatch.setattr(neighbour_maps, "_BLOCK_WORDS", 64)
    monkeypatch.setattr(neighbour_maps, "_SUMS", 4)
    shape = (8, 40, 40)
    coords = random_sites(300, shape, [0, 1])
    assert_equal_maps(coords, shape, 2, ConvGeometry((3, 3, 3), (1, 1, 1), (1, 1, 1)))
    assert_equal_maps(coords, shape, 2, ConvGeometry((3, 3, 3), subm=True))


def test_coordinates_of_another_layout_and_type() -> None:
    coords = random_sites(60, SHAPE, [0, 1])
    geometry = GEOMETRIES["stride 2"]
    expected, expected_out = build_kernel_map(coords, SHAPE, 2, geometry)
    turned = coords.long().t().contiguous().t().to(DEVICE)
    assert not turned.is_contiguous()
    with use_backend("triton"):
        found, found_out = build_kernel_map(turned, SHAPE, 2, geometry)
    assert torch.equal(found.table.cpu(), expected.table)
    assert torch.equal(found_out.cpu(), expected_out)
