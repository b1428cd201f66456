import pytest
import torch

from oracles.sparse_sites import random_sites
from voxelquant.errors import GeometryError
from voxelquant.sparse import ConvGeometry, KernelMap, build_kernel_map
from voxelquant.sparse.functional import (
    sparse_conv,
    sparse_conv_fp8,
    sparse_conv_fp16,
    sparse_conv_int8,
)


@pytest.fixture
def kernel_map() -> KernelMap:
    coords = random_sites(60, (4, 6, 8), [0, 1])
    return build_kernel_map(coords, (4, 6, 8), 2, ConvGeometry((3, 3, 3), subm=True))[0]


@pytest.mark.parametrize(
    ("rows", "shape", "message"),
    [
        (59, (4, 3, 3, 3, 8), "59 rows for a map of 60 sites"),
        (60, (4, 3, 3, 3, 7), "8 input channels"),
        (60, (4, 3, 3, 1, 8), "9 taps for a map of 27"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(kernel_map, rows, shape, message) -> None:
    with pytest.raises(GeometryError, match=message):
        sparse_conv(torch.zeros(rows, 8), torch.zeros(shape), kernel_map)


def test_int8_refuses_other_dtypes(kernel_map) -> None:
    with pytest.raises(GeometryError, match="need int8"):
        sparse_conv_int8(torch.zeros(60, 8), torch.zeros(4, 3, 3, 3, 8), kernel_map)


def test_fp8_refuses_other_dtypes(kernel_map) -> None:
    codes = torch.zeros(60, 8, dtype=torch.float8_e4m3fn)
    with pytest.raises(GeometryError, match=r"got .*e4m3fn codes and torch\.int8 weights, need"):
        sparse_conv_fp8(codes, torch.zeros(4, 3, 3, 3, 8, dtype=torch.int8), kernel_map)
    with pytest.raises(GeometryError, match="8 input channels"):
        sparse_conv_fp8(codes, torch.zeros(4, 3, 3, 3, 7).to(codes.dtype), kernel_map)


def test_fp16_refuses_other_dtypes(kernel_map) -> None:
    with pytest.raises(GeometryError, match=r"need torch\.float16"):
        sparse_conv_fp16(torch.zeros(60, 8), torch.zeros(4, 3, 3, 3, 8).half(), kernel_map)


def test_fp16_accumulates_in_float32_and_does_not_round(kernel_map) -> None:
    features = torch.randn(60, 16).half()
    weight = torch.randn(8, 3, 3, 3, 16).half()
    bias = torch.randn(8).half()
    out = sparse_conv_fp16(features, weight, kernel_map, bias)
    assert out.dtype == torch.float32
    assert torch.equal(out, sparse_conv(features.float(), weight.float(), kernel_map, bias.float()))
    assert not torch.equal(out, out.half().float())


def test_autocast_computes_in_its_dtype_and_returns_gradients_in_float32(kernel_map) -> None:
    features = torch.randn(60, 8, requires_grad=True)
    weight = torch.randn(4, 3, 3, 3, 8, requires_grad=True)
    bias = torch.randn(4, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        out = sparse_conv(features, weight, kernel_map, bias)
    assert out.dtype == torch.bfloat16
    wide = sparse_conv(features.bfloat16().float(), weight.bfloat16().float(), kernel_map)
    assert torch.equal(out, wide.bfloat16() + bias.bfloat16())
    out.float().sum().backward()
    assert {g.dtype for g in (features.grad, weight.grad, bias.grad)} == {torch.float32}


def test_autocast_leaves_fp16_layers_and_float64_alone(kernel_map) -> None:
    features, weight = torch.randn(60, 8).half(), torch.randn(4, 3, 3, 3, 8).half()
    plain = sparse_conv_fp16(features, weight, kernel_map)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(sparse_conv_fp16(features, weight, kernel_map), plain)
        out = sparse_conv(features.double(), weight.double(), kernel_map)
    assert out.dtype == torch.float64
