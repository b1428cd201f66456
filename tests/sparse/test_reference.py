"""Both forms of the reference convolution against dense conv3d, forward and backward."""

import pytest
import torch
from torch import Tensor

from oracles.sparse_sites import dense_conv, gather, random_sites, scatter
from voxelquant.sparse import ConvGeometry, KernelMap, build_kernel_map
from voxelquant.sparse.backends import reference

FORMS = pytest.mark.parametrize("by_columns", [False, True], ids=["taps", "columns"])
SHAPE = (7, 9, 11)
GEOMETRIES = {
    "subm": ConvGeometry((3, 3, 3), subm=True),
    "subm 1x1x1": ConvGeometry((1, 1, 1), subm=True),
    "subm dilated": ConvGeometry((3, 3, 3), dilation=(1, 2, 2), subm=True),
    "subm (3,1,5)": ConvGeometry((3, 1, 5), subm=True),
    "stride 2": ConvGeometry((3, 3, 3), (2, 2, 2), (1, 1, 1)),
    "padding (0,1,1)": ConvGeometry((3, 3, 3), (2, 2, 2), (0, 1, 1)),
    "(3,1,1) in z": ConvGeometry((3, 1, 1), (2, 1, 1)),
    "1x1x1": ConvGeometry((1, 1, 1)),
    "1x1x1 stride 2": ConvGeometry((1, 1, 1), (2, 2, 2)),
    "even kernel": ConvGeometry((2, 2, 2), (2, 2, 2)),
    "even, overlapping": ConvGeometry((4, 2, 4), (2, 1, 2), (1, 1, 2)),
    "dilation 2": ConvGeometry((3, 3, 3), (1, 1, 1), (2, 2, 2), (2, 2, 2)),
    "dilation and stride": ConvGeometry((3, 3, 3), (2, 2, 2), (2, 2, 2), (2, 2, 2)),
    "stride above kernel": ConvGeometry((2, 2, 2), (3, 3, 3), (0, 1, 0)),
}
ALL_GEOMETRIES = pytest.mark.parametrize("geometry", GEOMETRIES.values(), ids=GEOMETRIES)


def _problem(
    geometry: ConvGeometry, n: int, channels: tuple[int, int], dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor, KernelMap, Tensor]:
    coords = random_sites(n, SHAPE, [0, 2])  # sample 1 of 3 is empty
    kernel_map, out_coords = build_kernel_map(coords, SHAPE, 3, geometry)
    generator = torch.Generator().manual_seed(n)
    features = torch.randn(n, channels[0], generator=generator, dtype=dtype)
    weight = torch.randn(
        channels[1], *geometry.kernel_size, channels[0], generator=generator, dtype=dtype
    )
    return coords, features, weight, kernel_map, out_coords


@FORMS
@ALL_GEOMETRIES
def test_values_and_gradients_equal_dense_convolution(
    geometry: ConvGeometry, by_columns: bool
) -> None:
    coords, features, weight, kernel_map, out_coords = _problem(
        geometry, 101, (5, 6), torch.float64
    )
    features.requires_grad_()
    weight.requires_grad_()
    dense = dense_conv(
        scatter(features, coords, SHAPE, 3),
        weight,
        geometry.stride,
        geometry.effective_padding,
        geometry.dilation,
    )
    expected = gather(dense, out_coords)
    cotangent = torch.randn(expected.shape, dtype=torch.float64)
    expected_grads = torch.autograd.grad(expected, (features, weight), cotangent)

    out = reference.sparse_conv(features, weight.flatten(1, 3), kernel_map, by_columns=by_columns)
    grads = torch.autograd.grad(out, (features, weight), cotangent)

    torch.testing.assert_close(out, expected)
    for grad, expected_grad in zip(grads, expected_grads, strict=True):
        torch.testing.assert_close(grad, expected_grad)


@FORMS
@pytest.mark.parametrize("n", [0, 1, 2, 31, 32, 33])
@pytest.mark.parametrize("channels", [(1, 1), (5, 16), (16, 24), (128, 3)])
def test_odd_sizes(n: int, channels: tuple[int, int], by_columns: bool) -> None:
    geometry = ConvGeometry((3, 3, 3), (2, 2, 2), (1, 1, 1))
    coords, features, weight, kernel_map, out_coords = _problem(
        geometry, n, channels, torch.float64
    )
    features.requires_grad_()
    weight.requires_grad_()
    dense = dense_conv(scatter(features, coords, SHAPE, 3), weight, (2,) * 3, (1,) * 3, (1,) * 3)
    out = reference.sparse_conv(features, weight.flatten(1, 3), kernel_map, by_columns=by_columns)
    assert out.shape == (len(out_coords), channels[1])
    torch.testing.assert_close(out, gather(dense, out_coords))
    out.square().sum().backward()
    assert features.grad is not None
    assert features.grad.shape == features.shape
    assert weight.grad is not None
    assert weight.grad.shape == weight.shape


@FORMS
@pytest.mark.parametrize("name", ["subm", "stride 2", "even, overlapping"])
def test_gradients_against_finite_differences(name: str, by_columns: bool) -> None:
    _, features, weight, kernel_map, _ = _problem(GEOMETRIES[name], 23, (2, 3), torch.float64)
    taps = weight.flatten(1, 3)

    def conv(f: Tensor, w: Tensor) -> Tensor:
        return reference.sparse_conv(f, w, kernel_map, by_columns=by_columns)

    assert torch.autograd.gradcheck(conv, (features.requires_grad_(), taps.requires_grad_()))


def test_columns_in_many_chunks_equal_one_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    _, features, weight, kernel_map, _ = _problem(GEOMETRIES["subm"], 101, (4, 6), torch.float64)
    taps = weight.flatten(1, 3)
    results = []
    for limit in (1 << 28, 27 * 4 * 7):  # seven rows at a time
        monkeypatch.setattr(reference, "_COLUMN_ELEMENTS", limit)
        operands = (features.clone().requires_grad_(), taps.clone().requires_grad_())
        out = reference.sparse_conv(*operands, kernel_map, by_columns=True)
        results.append((out, *torch.autograd.grad(out.square().sum(), operands)))
    for one, many in zip(*results, strict=True):
        torch.testing.assert_close(many, one)


def test_taps_in_many_chunks_equal_one_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    _, features, weight, kernel_map, _ = _problem(GEOMETRIES["subm"], 101, (4, 6), torch.float64)
    expected = reference.sparse_conv(features, weight.flatten(1, 3), kernel_map, by_columns=False)
    monkeypatch.setattr(reference, "chunk_rows", lambda c_in, c_out: 7)
    taps = weight.flatten(1, 3)
    out = reference.sparse_conv(features, taps, kernel_map, by_columns=False)
    assert len(kernel_map.output_chunks(7)) == 15  # fourteen of seven rows, one of three
    torch.testing.assert_close(out, expected)


def test_int8_splits_channels_exactly_where_the_weights_demand_it() -> None:
    """A sum of magnitudes of 2**17 fits in one float32 pass, one more does not."""
    weight = torch.full((2, 27, 64), 64.0)
    weight[1] = 1.0
    weight[0, 0, :] += 2**17 / 64 - 27 * 64
    assert reference._exact_parts(weight, slice(0, 64)) == [slice(0, 64)]
    weight[0, 0, 63] += 1.0
    assert reference._exact_parts(weight, slice(0, 64)) == [slice(0, 32), slice(32, 64)]


@FORMS
def test_same_call_twice_is_bit_equal(by_columns: bool) -> None:
    _, features, weight, kernel_map, _ = _problem(
        GEOMETRIES["stride 2"], 300, (16, 32), torch.float32
    )
    taps = weight.flatten(1, 3)
    first, second = (
        reference.sparse_conv(features, taps, kernel_map, by_columns=by_columns) for _ in range(2)
    )
    assert torch.equal(first, second)


@FORMS
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_rounds_once(dtype: torch.dtype, by_columns: bool) -> None:
    """Accumulated in at least float32: the error is one rounding of the exact sum."""
    _, features, weight, kernel_map, _ = _problem(GEOMETRIES["subm"], 200, (16, 8), torch.float32)
    taps = weight.flatten(1, 3).to(dtype)
    features = features.to(dtype)
    exact = reference.sparse_conv(features.double(), taps.double(), kernel_map)
    out = reference.sparse_conv(features, taps, kernel_map, by_columns=by_columns)
    assert out.dtype == dtype
    half_step = torch.finfo(dtype).eps / 2
    # 27 * 16 float32 additions of terms up to the sum of magnitudes, then the one rounding.
    magnitude = reference.sparse_conv(features.double().abs(), taps.double().abs(), kernel_map)
    bound = half_step * exact.abs() * 1.01 + 27 * 16 * 2**-24 * magnitude + 1e-7
    assert ((out.double() - exact).abs() <= bound).all()


@FORMS
@pytest.mark.parametrize("c_in", [1, 5, 37, 128, 1024, 1025, 2100])
def test_int8_is_exact_over_the_full_range(c_in: int, by_columns: bool) -> None:
    geometry = GEOMETRIES["subm"] if c_in <= 128 else GEOMETRIES["(3,1,1) in z"]
    coords = random_sites(90, SHAPE, [0])
    kernel_map, _ = build_kernel_map(coords, SHAPE, 1, geometry)
    generator = torch.Generator().manual_seed(c_in)
    codes = torch.randint(-128, 128, (90, c_in), generator=generator, dtype=torch.int8)
    weight = torch.randint(
        -128, 128, (7, geometry.taps, c_in), generator=generator, dtype=torch.int8
    )
    expected = torch.zeros(kernel_map.n_out, 7, dtype=torch.int64)
    for tap in range(geometry.taps):
        in_rows, out_rows = kernel_map.pairs_of_tap(tap)
        product = codes.long()[in_rows] @ weight[:, tap].long().t()
        expected.index_add_(0, out_rows, product)
    out = reference.sparse_conv_int8(codes, weight, kernel_map, by_columns=by_columns)
    assert out.dtype == torch.int32
    assert torch.equal(out.long(), expected)


@FORMS
@pytest.mark.parametrize("c_in", [16, 64, 128, 1024, 1030])
def test_int8_is_exact_when_every_code_saturates(c_in: int, by_columns: bool) -> None:
    """Every product is +16384, and the last code breaks the tie that would round away."""
    grid = torch.cartesian_prod(torch.arange(1), *[torch.arange(3)] * 3).int()
    kernel_map, _ = build_kernel_map(grid, (3, 3, 3), 1, GEOMETRIES["subm"])
    codes = torch.full((27, c_in), -128, dtype=torch.int8)
    weight = torch.full((2, 27, c_in), -128, dtype=torch.int8)
    weight[1, :, 0] = -127  # odd sums: the first to be lost above 2**24
    codes[:, 0] = -127
    out = reference.sparse_conv_int8(codes, weight, kernel_map, by_columns=by_columns)
    neighbours = torch.tensor([len(kernel_map.neighbour_rows()[row].unique()) for row in range(27)])
    centre = 13  # all 27 neighbours exist
    assert neighbours[centre] == 27
    assert out[centre].tolist() == [
        27 * ((c_in - 1) * 128 * 128 + 127 * 128),
        27 * ((c_in - 1) * 128 * 128 + 127 * 127),
    ]


@FORMS
@pytest.mark.parametrize("n", [0, 1, 90])
@pytest.mark.parametrize("c_in", [1, 5, 16, 128])
def test_fp8_sums_exactly_and_rounds_once(n: int, c_in: int, by_columns: bool) -> None:
    """Codes of every magnitude as integers: multiples of the smallest subnormal, 2**-9."""
    coords = random_sites(n, SHAPE, [0])
    kernel_map, _ = build_kernel_map(coords, SHAPE, 1, GEOMETRIES["subm"])
    generator = torch.Generator().manual_seed(c_in)
    finite = torch.arange(256, dtype=torch.uint8)
    finite = finite[finite & 0x7F != 0x7F].view(torch.float8_e4m3fn)

    def draw(*shape: int) -> Tensor:
        indices = torch.randint(len(finite), shape, generator=generator)
        return finite.view(torch.uint8)[indices].view(torch.float8_e4m3fn)

    codes, weight = draw(n, c_in), draw(7, 27, c_in)
    in_steps, weight_in_steps = ((x.double() * 2**9).long() for x in (codes, weight))
    expected = torch.zeros(n, 7, dtype=torch.int64)
    for tap in range(27):
        in_rows, out_rows = kernel_map.pairs_of_tap(tap)
        expected.index_add_(0, out_rows, in_steps[in_rows] @ weight_in_steps[:, tap].t())
    out = reference.sparse_conv_fp8(codes, weight, kernel_map, by_columns=by_columns)
    assert out.dtype == torch.float32
    assert torch.equal(out, (expected.double() * 2.0**-18).float())
