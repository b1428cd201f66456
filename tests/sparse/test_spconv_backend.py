"""Convolutions of spconv in this package's terms: what they compute is the truth."""

import importlib
from typing import Any

import pytest
import torch

from voxelquant.errors import GeometryError, GraphError
from voxelquant.sparse import SparseTensor, convolution_of, resolve_conv_map, sparse_conv

spconv: Any = pytest.importorskip("spconv.pytorch", reason="spconv is not installed here")
ground: Any = importlib.import_module("spconv_ground")


@pytest.fixture(autouse=True)
def mended() -> Any:
    with ground.spconv_mended_on_cpu():
        yield


CONVS = {
    "subm": lambda: spconv.SubMConv3d(5, 8, 3, padding=0, bias=False),
    "subm, padding means nothing": lambda: spconv.SubMConv3d(5, 8, 3, padding=1, bias=True),
    "subm, dilated": lambda: spconv.SubMConv3d(5, 8, (3, 1, 5), dilation=(2, 1, 1)),
    "strided": lambda: spconv.SparseConv3d(5, 8, 3, 2, padding=(0, 1, 1), bias=False),
    "squeezing": lambda: spconv.SparseConv3d(5, 8, (3, 1, 1), (2, 1, 1)),
    "one tap": lambda: spconv.SubMConv3d(5, 8, 1, bias=False),
    "one tap, to fewer channels": lambda: spconv.SubMConv3d(8, 5, 1),
    "one tap, not submanifold": lambda: spconv.SparseConv3d(5, 8, 1),
    "one tap, strided": lambda: spconv.SparseConv3d(5, 8, 1, 2),
}


@pytest.mark.parametrize("name", CONVS)
def test_the_described_convolution_computes_what_spconv_does(name: str) -> None:
    torch.manual_seed(2)
    module = CONVS[name]().eval()
    conv = convolution_of(module, name)
    features, coords = ground.make_voxels(4, channels=conv.in_channels)
    with torch.no_grad():
        theirs = module(spconv.SparseConvTensor(features, coords, ground.GRID, 1))
        ours = SparseTensor.from_coords(features, coords, ground.GRID, 1)
        kernel_map, sites, _ = resolve_conv_map(ours, conv.geometry, conv.indice_key)
        expected = sparse_conv(features, conv.weight.contiguous(), kernel_map, conv.bias)
    dense = SparseTensor(expected, sites).dense()
    assert tuple(theirs.spatial_shape) == sites.spatial_shape
    found = SparseTensor.from_coords(theirs.features, theirs.indices, sites.spatial_shape, 1)
    # 27 * 5 products of unit size at most, summed in float32 in another order.
    torch.testing.assert_close(found.dense(), dense, rtol=1e-5, atol=1e-5)
    assert dense.abs().max() > 0.1


@pytest.mark.parametrize("name", CONVS)
def test_own_layout_undoes_the_described_weight(name: str) -> None:
    module = CONVS[name]()
    conv = convolution_of(module, name)
    assert conv.weight.shape == module.weight.shape
    assert torch.equal(conv.own_layout(conv.weight), module.weight)
    flat = name.startswith("one tap") and name != "one tap, strided"
    assert conv.reads_flat is flat
    assert torch.equal(conv.weight, module.weight) is not flat


def test_an_inverse_convolution_restores_sites() -> None:
    module = spconv.SparseInverseConv3d(8, 5, 3, indice_key="d")
    conv = convolution_of(module, "up")
    assert (conv.inverse, conv.indice_key, conv.geometry.kernel_size) == (True, "d", (3, 3, 3))


REFUSED = {
    "transposed": (lambda: spconv.SparseConvTranspose3d(5, 8, 3, 2), "transposed kernel"),
    "two dimensions": (lambda: spconv.SubMConv2d(5, 8, 3), "2 dimensions, need 3"),
    "inverse of one tap": (
        lambda: spconv.SparseInverseConv3d(5, 8, 1, indice_key="d"),
        "inverts nothing",
    ),
    "subm of even size": (lambda: spconv.SubMConv3d(5, 8, 2), "need odd sizes"),
    "subm of stride 2": (lambda: spconv.SubMConv3d(5, 8, 3, 2), "of stride"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_expressed_is_refused_by_name(name: str) -> None:
    build, message = REFUSED[name]
    with pytest.raises((GraphError, GeometryError), match=rf"^stage\.3: .*{message}"):
        convolution_of(build(), "stage.3")


def test_a_fused_activation_is_refused() -> None:
    module = spconv.SubMConv3d(5, 8, 3)
    module.act_type = type(module.act_type).ReLU
    with pytest.raises(GraphError, match=r"a fused activation .* need an nn\.ReLU"):
        convolution_of(module, "conv")
