"""Convolution kernels against dense conv3d in float64; without a GPU in Triton's interpreter."""

from typing import Any

import pytest
import torch
from torch import Tensor

from conv_problems import GEOMETRIES, SHAPE, assert_right, make_problem
from oracles.sparse_sites import random_sites
from voxelquant.sparse import KernelMap, build_kernel_map, sparse_conv, sparse_conv_int8
from voxelquant.sparse.backends.triton import conv, conv_tiles

DEVICE = "cpu" if conv.INTERPRETED else "cuda"
FLOATS = pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float16, torch.bfloat16], ids=["fp32", "fp16", "bf16"]
)


@pytest.fixture(autouse=True)
def poisoned_buffers(monkeypatch: pytest.MonkeyPatch) -> None:
    """What no kernel writes stays NaN, or the most negative integer."""
    allocate = Tensor.new_empty

    def new_poison(self: Tensor, *arguments: Any, **named: Any) -> Tensor:
        buffer = allocate(self, *arguments, **named)
        worst = torch.nan if buffer.is_floating_point() else torch.iinfo(buffer.dtype).min
        return buffer.fill_(worst)

    monkeypatch.setattr(Tensor, "new_empty", new_poison)
    assert torch.ones(1).new_empty(3).isnan().all()


@pytest.mark.parametrize("name", GEOMETRIES)
def test_every_geometry(name: str) -> None:
    assert_right(make_problem(name, 101, (5, 6), torch.float32), device=DEVICE)


@FLOATS
@pytest.mark.parametrize(
    "channels", [(1, 3), (3, 1), (5, 16), (16, 24), (24, 33), (33, 17)], ids=str
)
def test_channels(channels: tuple[int, int], dtype: torch.dtype) -> None:
    assert_right(make_problem("subm", 60, channels, dtype), device=DEVICE)


@FLOATS
@pytest.mark.parametrize("channels", [(128, 5), (5, 128), (130, 3), (3, 130)], ids=str)
def test_channels_of_several_blocks(channels: tuple[int, int], dtype: torch.dtype) -> None:
    assert_right(make_problem("(3,1,1) in z", 60, channels, dtype), device=DEVICE)


@FLOATS
@pytest.mark.parametrize("n", [0, 1, 2, 31, 33, 127, 128, 129])
@pytest.mark.parametrize("name", ["subm (3,1,5)", "even, overlapping"])
def test_numbers_of_sites(name: str, n: int, dtype: torch.dtype) -> None:
    assert_right(make_problem(name, n, (5, 6), dtype), device=DEVICE)


@FLOATS
@pytest.mark.parametrize("name", ["subm", "stride 2"])
def test_every_cell_of_the_grid_active(name: str, dtype: torch.dtype) -> None:
    """Several programs of rows, and several parts of the weight's gradient."""
    n = 2 * SHAPE[0] * SHAPE[1] * SHAPE[2]
    assert conv._rows_per_part(n, 4, 64) < n
    assert_right(make_problem(name, n, (5, 6), dtype), device=DEVICE)


@pytest.mark.parametrize("channels", [(16, 24), (128, 5)], ids=str)
def test_the_reference_gives_the_same(channels: tuple[int, int]) -> None:
    """The same bound: the reference rounds less than these kernels may."""
    problem = make_problem("stride 2", 150, channels, torch.float32)
    kernel_map, _ = problem.kernel_map(DEVICE)
    operands = [x.to(DEVICE) for x in (problem.features, problem.weight)]
    found = sparse_conv(*operands, kernel_map, backend="triton")
    expected = sparse_conv(*operands, kernel_map, backend="reference")
    reach = sparse_conv(*(x.abs() for x in operands), kernel_map, backend="reference")
    terms = 27 * channels[0]
    assert ((found - expected).abs() <= (4 * terms + 13) * 2.0**-24 * reach).all()


def test_strided_operands_are_read_as_they_stand() -> None:
    problem = make_problem("subm", 60, (6, 8), torch.float32)
    kernel_map, _ = problem.kernel_map(DEVICE)
    features, weight = problem.features.to(DEVICE), problem.weight.to(DEVICE)
    expected = sparse_conv(features, weight, kernel_map, backend="triton")
    wide = torch.stack([features, -features], 2).flatten(1)[:, ::2]
    turned = weight.permute(4, 1, 2, 3, 0).contiguous().permute(4, 1, 2, 3, 0)
    assert not wide.is_contiguous()
    assert not turned.is_contiguous()
    assert torch.equal(sparse_conv(wide, turned, kernel_map, backend="triton"), expected)


@FLOATS
def test_same_call_twice_is_bit_equal(dtype: torch.dtype) -> None:
    problem = make_problem("stride 2", 600, (16, 32), dtype)
    results = []
    for _ in range(2):
        kernel_map, _ = problem.kernel_map(DEVICE)
        operands = [x.to(DEVICE).requires_grad_() for x in (problem.features, problem.weight)]
        out = sparse_conv(*operands, kernel_map, backend="triton")
        results.append((out, *torch.autograd.grad(out.float().square().sum(), operands)))
    for first, second in zip(*results, strict=True):
        assert torch.equal(first, second)


def test_only_the_gradients_that_are_needed_are_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = make_problem("subm", 40, (4, 4), torch.float32)
    kernel_map, _ = problem.kernel_map(DEVICE)
    features, weight = problem.features.to(DEVICE), problem.weight.to(DEVICE).requires_grad_()
    out = sparse_conv(features, weight, kernel_map, backend="triton")
    monkeypatch.setattr(conv, "_convolve", None)
    out.sum().backward()
    assert weight.grad is not None


def test_autocast_computes_in_its_dtype_and_returns_gradients_in_float32() -> None:
    problem = make_problem("subm", 60, (8, 4), torch.float32)
    kernel_map, _ = problem.kernel_map(DEVICE)
    features, weight, bias = (
        x.to(DEVICE).requires_grad_() for x in (problem.features, problem.weight, problem.bias)
    )
    with torch.autocast(DEVICE, torch.bfloat16):
        out = sparse_conv(features, weight, kernel_map, bias, backend="triton")
    assert out.dtype == torch.bfloat16
    half = sparse_conv(features.bfloat16(), weight.bfloat16(), kernel_map, bias, backend="triton")
    assert torch.equal(out, half)
    out.float().sum().backward()
    assert {g.dtype for g in (features.grad, weight.grad, bias.grad)} == {torch.float32}


def _int8_problem(n: int, channels: tuple[int, int], name: str) -> tuple[Tensor, Tensor, KernelMap]:
    coords = random_sites(n, SHAPE, [0, 2])
    kernel_map, _ = build_kernel_map(coords.to(DEVICE), SHAPE, 3, GEOMETRIES[name])
    generator = torch.Generator().manual_seed(n)
    size = (channels[1], *GEOMETRIES[name].kernel_size, channels[0])
    codes = torch.randint(-128, 128, (n, channels[0]), generator=generator, dtype=torch.int8)
    weight = torch.randint(-128, 128, size, generator=generator, dtype=torch.int8)
    return codes.to(DEVICE), weight.to(DEVICE), kernel_map


def _int64_sum(codes: Tensor, weight: Tensor, kernel_map: KernelMap) -> Tensor:
    out = torch.zeros(kernel_map.n_out, len(weight), dtype=torch.int64)
    taps = weight.flatten(1, 3).cpu().long()
    for tap, in_rows in enumerate(kernel_map.table.cpu()):
        present = in_rows < kernel_map.n_in
        out[present] += codes.cpu().long()[in_rows[present].long()] @ taps[:, tap].t()
    return out


@pytest.mark.parametrize(
    "channels", [(1, 3), (5, 16), (16, 24), (24, 33), (33, 5), (128, 24)], ids=str
)
@pytest.mark.parametrize("name", ["subm", "stride 2", "subm 1x1x1"])
def test_int8_is_exact_over_the_full_range(name: str, channels: tuple[int, int]) -> None:
    codes, weight, kernel_map = _int8_problem(90, channels, name)
    out = sparse_conv_int8(codes, weight, kernel_map, backend="triton")
    assert out.dtype == torch.int32
    assert torch.equal(out.cpu().long(), _int64_sum(codes, weight, kernel_map))
    assert torch.equal(out, sparse_conv_int8(codes, weight, kernel_map, backend="reference"))


@pytest.mark.parametrize("n", [0, 1, 127, 128, 129])
def test_int8_of_any_number_of_sites(n: int) -> None:
    codes, weight, kernel_map = _int8_problem(n, (5, 8), "subm (3,1,5)")
    out = sparse_conv_int8(codes, weight, kernel_map, backend="triton")
    assert torch.equal(out.cpu().long(), _int64_sum(codes, weight, kernel_map))


def test_int8_is_exact_when_every_code_saturates() -> None:
    """Every product is +16384: sums beyond 2**24, where float32 would lose the last code."""
    _, _, kernel_map = _int8_problem(2 * 7 * 9 * 11, (128, 2), "subm")
    codes = torch.full((kernel_map.n_in, 128), -128, dtype=torch.int8, device=DEVICE)
    weight = torch.full((2, 3, 3, 3, 128), -128, dtype=torch.int8, device=DEVICE)
    weight[1, ..., 0] = -127
    codes[:, 0] = -127
    out = sparse_conv_int8(codes, weight, kernel_map, backend="triton")
    assert torch.equal(out.cpu().long(), _int64_sum(codes, weight, kernel_map))
    assert out.max() == 27 * (127 * 128 * 128 + 127 * 128)


@pytest.mark.parametrize("channels", [(5, 16), (33, 17), (128, 128)], ids=str)
def test_every_candidate_tile_gives_the_same_integers(channels: tuple[int, int]) -> None:
    codes, weight, kernel_map = _int8_problem(140, channels, "(3,1,1) in z")
    taps = weight.flatten(1, 3)
    shape = conv_tiles.GemmShape("conv", torch.int8, *channels, 3)
    tiles = conv_tiles.candidate_tiles(shape)
    assert len(tiles) > 5
    # What only the compiler reads makes no difference in the interpreter.
    distinct = {(t.rows, t.columns, t.channels, t.taps): t for t in tiles}
    expected = _int64_sum(codes, weight, kernel_map)
    for tile in distinct.values() if conv.INTERPRETED else tiles:
        out = conv._convolve(codes, taps, kernel_map, out_dtype=torch.int32, tile=tile)
        assert torch.equal(out.cpu().long(), expected), tile


def test_an_inverse_convolution_and_its_gradients() -> None:
    """Reads the transposed table; its own transpose is the table that was transposed."""
    problem = make_problem("stride 2", 120, (5, 6), torch.float32)
    kernel_map, out_coords = problem.kernel_map(DEVICE)
    generator = torch.Generator().manual_seed(3)
    coarse = torch.randn(len(out_coords), 5, generator=generator).to(DEVICE)
    results = {}
    for backend in ("triton", "reference"):
        x = coarse.clone().requires_grad_()
        w = problem.weight.to(DEVICE).requires_grad_()
        out = sparse_conv(x, w, kernel_map.transposed(), backend=backend)
        results[backend] = (out, *torch.autograd.grad(out.square().sum(), (x, w)))
    assert results["triton"][0].shape == (120, 6)
    for mine, expected in zip(results["triton"], results["reference"], strict=True):
        # Some hundred terms of size 10: a thousandth of what a wrong pair would change.
        torch.testing.assert_close(mine, expected, rtol=1e-4, atol=1e-3)
