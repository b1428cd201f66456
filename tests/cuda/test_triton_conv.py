"""Compiled convolution kernels against dense conv3d in float64; skipped where there is no GPU."""

import pytest
import torch
from torch import Tensor

from conv_problems import assert_right, make_problem
from voxelquant.numerics import relative_l2
from voxelquant.sparse import (
    BackendChoice,
    ConvGeometry,
    KernelMap,
    build_kernel_map,
    choose_backend,
    sparse_conv,
    sparse_conv_int8,
)

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")

SHAPE = (9, 16, 16)
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
CHANNELS = [(1, 3), (5, 16), (16, 32), (33, 17), (64, 128), (128, 128)]


@pytest.mark.parametrize("dtype", [*DTYPES, torch.int8])
def test_auto_takes_triton(dtype: torch.dtype) -> None:
    assert choose_backend(dtype, torch.device("cuda", 0)) == "triton"


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("channels", CHANNELS, ids=str)
@pytest.mark.parametrize("name", ["subm", "stride 2"])
def test_values_and_gradients(name: str, channels: tuple[int, int], dtype: torch.dtype) -> None:
    assert_right(make_problem(name, 1501, channels, dtype, shape=SHAPE), device="cuda")


def test_frames_of_other_sizes_compile_nothing_new() -> None:
    """Numbers of sites are no constants of a kernel, whatever divides them."""
    from voxelquant.sparse.backends.triton import conv_kernels, neighbour_kernels

    def compiled() -> int:
        kernels = [conv_kernels.conv_kernel, conv_kernels.weight_grad_kernel]
        kernels += [neighbour_kernels.look_up_taps, neighbour_kernels.place_rows]
        return sum(len(caches[0]) for k in kernels for caches in k.device_caches.values())

    counts = []
    for n in (1024, 1, 16, 777):
        assert_right(make_problem("subm", n, (7, 9), torch.float32, shape=SHAPE), device="cuda")
        counts.append(compiled())
    assert len(set(counts)) == 1


def test_features_that_begin_anywhere() -> None:
    """A kernel compiled for aligned rows is not launched with others, whichever came first."""
    problem = make_problem("subm", 500, (5, 16), torch.float32, shape=SHAPE)
    kernel_map, _ = problem.kernel_map("cuda")
    aligned, weight = problem.features.cuda(), problem.weight.cuda()
    moved = torch.cat([aligned[:1], aligned])[1:]
    assert moved.data_ptr() % 16 != 0
    expected = sparse_conv(aligned, weight, kernel_map, backend="reference")
    for features in (aligned, moved, aligned, moved):
        found = sparse_conv(features, weight, kernel_map, backend="triton")
        assert relative_l2(expected.double(), found.double()) < 1e-5


@pytest.mark.parametrize("channels", [(16, 16), (128, 128)], ids=str)
def test_a_frame_of_full_size_against_the_reference(channels: tuple[int, int]) -> None:
    """300,000 sites: float32 within the bound, int8 equal, and the same twice."""
    shape, n = (41, 720, 720), 300_000
    cells = torch.randperm(shape[0] * shape[1] * 40)[:n].cuda()  # a band of the grid, so that
    z, y, x = cells // (720 * 40), cells // 40 % 720, cells % 40  # sites have neighbours
    coords = torch.stack([torch.zeros_like(z), z, y, x], 1).int()
    kernel_map, _ = build_kernel_map(coords, shape, 1, ConvGeometry((3, 3, 3), subm=True))
    features = torch.randn(n, channels[0], device="cuda")
    weight = torch.randn(channels[1], 3, 3, 3, channels[0], device="cuda")
    cotangent = torch.randn(n, channels[1], device="cuda")

    def run(*tensors: Tensor, backend: BackendChoice) -> list[Tensor]:
        x, w = (tensor.requires_grad_() for tensor in tensors[:2])
        out = sparse_conv(x, w, kernel_map, backend=backend)
        return [out.detach(), *torch.autograd.grad(out, (x, w), tensors[2])]

    operands = (features, weight, cotangent)
    found, again = (run(*operands, backend="triton") for _ in range(2))
    exact = run(*(x.detach().double() for x in operands), backend="reference")
    reach = run(*(x.detach().double().abs() for x in operands), backend="reference")
    terms = (27 * channels[0], 27 * channels[1], 2 * n)
    for count, mine, twice, value, magnitude in zip(terms, found, again, exact, reach, strict=True):
        assert torch.equal(mine, twice)
        bound = (3 * count + 12) * 2.0**-24 * magnitude
        assert ((mine.double() - value).abs() <= bound).all()
        # Of random signs: what is typical lies far below what is possible.
        assert relative_l2(value, mine.double()) < 1e-5
    codes = torch.randint(-128, 128, features.shape, dtype=torch.int8, device="cuda")
    weight_q = torch.randint(-128, 128, weight.shape, dtype=torch.int8, device="cuda")
    found = sparse_conv_int8(codes, weight_q, kernel_map, backend="triton")
    assert torch.equal(found, sparse_conv_int8(codes, weight_q, kernel_map, backend="reference"))


def test_features_beyond_two_gigabytes() -> None:
    """Places in them do not fit into 32 bits."""
    n, c = 2**31 // 128 + 1000, 128
    codes = torch.zeros((n, c), dtype=torch.int8, device="cuda")
    codes[-1000:] = torch.randint(-128, 128, (1000, c), dtype=torch.int8, device="cuda")
    table = torch.arange(n - 1000, n, dtype=torch.int32, device="cuda").view(1, -1)
    weight = torch.randint(-128, 128, (16, 1, 1, 1, c), dtype=torch.int8, device="cuda")
    found = sparse_conv_int8(codes, weight, KernelMap(table, n), backend="triton")
    expected = codes[-1000:].double() @ weight.view(16, c).double().t()
    assert torch.equal(found, expected.int())
