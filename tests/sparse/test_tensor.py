import gc
import weakref

import pytest
import torch

from oracles.sparse_sites import random_sites
from voxelquant.errors import GeometryError
from voxelquant.sparse import ConvGeometry, SparseTensor

SHAPE = (3, 5, 7)
SUBM = ConvGeometry((3, 3, 3), subm=True)
DOWN = ConvGeometry((3, 3, 3), (2, 2, 2), (1, 1, 1))


def _tensor(n: int = 20) -> SparseTensor:
    return SparseTensor.from_coords(torch.randn(n, 4), random_sites(n, SHAPE, [0, 2]), SHAPE, 3)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ([3, 0, 0, 0], r"below \[3, 3, 5, 7\]"),
        ([0, 3, 0, 0], "need"),
        ([0, 0, 5, 0], "need"),
        ([0, 0, 0, 7], "need"),
        ([-1, 0, 0, 0], r"from \[-1, 0, 0, 0\]"),
        ([0, 0, 0, -1], "need"),
        ([1, 2, 4, 6], "repeated"),
    ],
)
def test_coordinates_outside_or_repeated_are_refused(row, message) -> None:
    coords = torch.tensor([[1, 2, 4, 6], [0, 0, 0, 0], row])
    coords[1, 3] = 1  # nothing else repeats
    with pytest.raises(GeometryError, match=message):
        SparseTensor.from_coords(torch.zeros(3, 1), coords, SHAPE, 3)


@pytest.mark.parametrize(
    ("features", "coords"), [((3, 1), (2, 4)), ((3, 1), (3, 3)), ((3,), (3, 4)), ((3, 1), (12,))]
)
def test_shapes_that_do_not_fit_are_refused(features, coords) -> None:
    with pytest.raises(GeometryError):
        SparseTensor.from_coords(torch.zeros(features), torch.zeros(coords).int(), SHAPE, 1)


def test_dense_holds_every_row_and_zeros_elsewhere() -> None:
    x = _tensor()
    dense = x.dense()
    assert dense.shape == (3, 4, *SHAPE)
    for row, (b, z, y, xx) in zip(x.features, x.coords_bzyx.tolist(), strict=True):
        assert torch.equal(dense[b, :, z, y, xx], row)
    assert int((dense != 0).sum()) == x.features.numel()
    assert not dense[1].any()  # the empty sample


def test_dense_passes_gradients() -> None:
    x = _tensor()
    features = x.features.clone().requires_grad_()
    weight = torch.randn(3, 4, *SHAPE)
    (x.replace_features(features).dense() * weight).sum().backward()
    b, z, y, xx = x.coords_bzyx.long().unbind(1)
    assert torch.equal(features.grad, weight[b, :, z, y, xx])


def test_empty_tensor() -> None:
    x = SparseTensor.from_coords(torch.zeros(0, 4), torch.zeros(0, 4), SHAPE, 2)
    assert x.dense().shape == (2, 4, *SHAPE)


def test_one_map_for_each_whole_geometry() -> None:
    sites = _tensor().sites
    same = ConvGeometry((3, 3, 3), subm=True)
    assert sites.kernel_map(SUBM)[0] is sites.kernel_map(same)[0]
    assert sites.kernel_map(SUBM)[1] is sites
    dilated = ConvGeometry((3, 3, 3), dilation=(2, 2, 2), subm=True)
    assert sites.kernel_map(SUBM)[0] is not sites.kernel_map(dilated)[0]
    down_map, down_sites = sites.kernel_map(DOWN)
    assert sites.kernel_map(DOWN)[0] is down_map
    assert sites.kernel_map(DOWN)[1] is down_sites
    assert sites.kernel_map(ConvGeometry((3, 3, 3), (2, 2, 2), (0, 1, 1)))[1] is not down_sites


def test_sites_and_maps_are_freed_without_the_garbage_collector() -> None:
    x = _tensor()
    x.sites.kernel_map(SUBM)
    _, down = x.sites.kernel_map(DOWN)
    alive = [weakref.ref(x.sites), weakref.ref(x.sites.kernel_map(SUBM)[0]), weakref.ref(down)]
    gc.disable()
    try:
        del x, down
        assert [ref() for ref in alive] == [None, None, None]
    finally:
        gc.enable()


def test_replaced_features_keep_the_sites() -> None:
    x = _tensor()
    y = x.replace_features(torch.zeros(20, 9))
    assert y.sites is x.sites
    assert y.features.shape == (20, 9)
