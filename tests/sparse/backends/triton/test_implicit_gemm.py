"""The planned convolution against the reference; without a GPU in Triton's interpreter."""

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

from planned_conv import GEOMETRIES, SUBM, Problem, tile_of
from voxelquant.numerics import add_dequantized, dequantize, quantize
from voxelquant.sparse.backends.triton.planned_conv import ConvTile, Fusion, pack_weight

STEPS = ("tap", "seen", "bulk tap", "bulk seen", "column", "together")
MODES = [(steps, splits) for steps in STEPS for splits in (1, 2, 3)]
INT8 = Fusion(relu=True, own="int8")
STEP = torch.tensor(0.0371)


def _assert_codes(problem: Problem, tile: ConvTile) -> None:
    expected = quantize(problem.sums().relu(), STEP)
    assert torch.equal(problem.run(tile, INT8, scales=(STEP, None, None, None)), expected)


@pytest.mark.parametrize(("steps", "splits"), MODES)
def test_int8_in_every_mode(steps: str, splits: int) -> None:
    problem = Problem.make(SUBM, 61, (33, 24), integer=True)
    _assert_codes(problem, tile_of(steps, (33, 24), 3, splits=splits))
    codes = quantize(problem.sums().relu(), STEP).unique()
    assert len(codes) > 20, "a problem on which all codes are alike shows nothing"


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize(
    "channels", [(1, 5), (5, 16), (16, 1), (24, 33), (32, 32), (64, 64)], ids=str
)
def test_int8_of_every_width(channels: tuple[int, int], steps: str) -> None:
    problem = Problem.make(GEOMETRIES["kz 3"], 50, channels, integer=True)
    _assert_codes(problem, tile_of(steps, channels, 3))


@pytest.mark.parametrize("inverse", [False, True], ids=["forward", "inverse"])
@pytest.mark.parametrize("name", GEOMETRIES)
def test_int8_of_every_kernel(name: str, inverse: bool) -> None:
    geometry = GEOMETRIES[name]
    problem = Problem.make(geometry, 40, (16, 24), integer=True, inverse=inverse)
    for steps in ("tap", "seen", "column", "together"):
        _assert_codes(problem, tile_of(steps, (16, 24), geometry.kernel_size[0]))


@pytest.mark.parametrize("n", [0, 1, 33, 128])
@pytest.mark.parametrize("integer", [True, False], ids=["int8", "fp16"])
def test_numbers_of_sites(n: int, integer: bool) -> None:
    problem = Problem.make(SUBM, n, (5, 16), integer=integer)
    for steps in ("column", "seen"):
        for splits in (1, 3):
            tile = tile_of(steps, (5, 16), 3, splits=splits)
            if integer:
                _assert_codes(problem, tile)
            else:
                _assert_near(problem, problem.run(tile, Fusion()))


def test_fewer_rows_than_the_map_has() -> None:
    """The count decides; entries beyond, which point to rows that exist, are not followed."""
    problem = Problem.make(SUBM, 60, (5, 16), integer=True)
    expected = quantize(problem.sums().relu(), STEP)[:37]
    tile = tile_of("tap", (5, 16), 3)
    assert torch.equal(problem.run(tile, INT8, scales=(STEP, *[None] * 3), count=37), expected)


def test_int8_sums_beyond_what_float32_holds() -> None:
    """Full range: every product +16384 but one, so the sum's last bit falls to the conversion."""
    problem = Problem.make(SUBM, 61, (64, 16), integer=True)
    problem.features.fill_(-128)
    problem.weight.fill_(-128)
    problem.weight[..., 0] = -127
    problem.multiplier.fill_(2.0**-20)
    _assert_codes(problem, tile_of("tap", (64, 16), 3, splits=2))


def _assert_near(problem: Problem, found: Tensor) -> None:
    """fp16 results within the bound of a sum in any order, and one rounding.

    A float32 sum of `t` exact products (two fp16 significands of 11 bits) and a bias, in any order,
    is off by at most (t + 1) u Σ|terms| / (1 - (t + 1) u) with u = 2**-24 (Higham 2002, section
    4.2; tensor cores may cut instead of round, which doubles u); the exact sum is taken in float64.
    Rounding to fp16 adds 2**-11 of the value or half a subnormal's spacing, 2**-25.
    """
    wide = [x.double() for x in (problem.features, problem.weight, problem.bias)]
    exact, reach = (_conv64(problem, *operands) for operands in (wide, [x.abs() for x in wide]))
    terms = problem.geometry.taps * problem.weight.shape[-1] + 1
    summed = 2 * terms * 2.0**-24 * reach
    bound = summed * (1 + 2.0**-11) + 2.0**-11 * exact.abs() + 2.0**-25
    assert found.dtype == torch.float16
    assert ((found.double() - exact).abs() <= bound).all()


def _conv64(problem: Problem, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    kernel_map = problem.kernel_map
    out = torch.zeros(kernel_map.n_out, len(weight), dtype=torch.float64)
    for tap, in_rows in enumerate(kernel_map.table):
        present = in_rows < kernel_map.n_in
        out[present] += x[in_rows[present].long()] @ weight.flatten(1, 3)[:, tap].t()
    return out + bias


@pytest.mark.parametrize(("steps", "splits"), MODES)
def test_fp16_in_every_mode(steps: str, splits: int) -> None:
    problem = Problem.make(SUBM, 61, (33, 24), integer=False)
    _assert_near(problem, problem.run(tile_of(steps, (33, 24), 3, splits=splits), Fusion()))


@pytest.mark.parametrize("inverse", [False, True], ids=["forward", "inverse"])
@pytest.mark.parametrize("channels", [(1, 5), (5, 16), (24, 33), (64, 32)], ids=str)
def test_fp16_of_every_width(channels: tuple[int, int], inverse: bool) -> None:
    problem = Problem.make(GEOMETRIES["kz 3"], 50, channels, integer=False, inverse=inverse)
    for steps in ("tap", "seen", "together"):
        _assert_near(problem, problem.run(tile_of(steps, channels, 3), Fusion()))


def _exact_fp16(channels: tuple[int, int]) -> Problem:
    """Small whole numbers: every sum is exact in any order, so equality is due."""
    problem = Problem.make(SUBM, 61, channels, integer=False)
    for operand in (problem.features, problem.weight):
        operand.copy_((operand * 4).round().clamp(-8, 8) / 8)
    problem.bias.copy_((problem.bias * 8).round() / 8)
    return problem


FUSIONS = [
    Fusion(relu, own, residual, add_relu, result)
    for relu, add_relu in ((False, True), (True, False))
    for own in ("fp16", "int8")
    for residual in (None, "fp16", "int8")
    for result in ("fp16", "int8")
    if residual is not None or (result == "fp16" and not add_relu)
]


@pytest.mark.parametrize("integer", [True, False], ids=["int8", "fp16"])
@pytest.mark.parametrize("fusion", FUSIONS, ids=str)
def test_what_follows_the_sum(fusion: Fusion, integer: bool) -> None:
    """Every fusion bit for bit as the law's operations one by one."""
    channels = (16, 24)
    problem = Problem.make(SUBM, 61, channels, integer=True) if integer else _exact_fp16(channels)
    own_step, other_step, result_step = (torch.tensor(s) for s in (0.0571, 0.0313, 0.0719))
    y = problem.sums()
    y = y.relu() if fusion.relu else y
    expected = quantize(y, own_step) if fusion.own == "int8" else y.half()
    scales: tuple[Tensor | None, ...] = (own_step, None, None, None)
    residual = None
    if fusion.residual is not None:
        generator = torch.Generator().manual_seed(5)
        values = torch.randn(61, channels[1], generator=generator)
        int8 = fusion.residual == "int8"
        residual = quantize(values, other_step) if int8 else values.half()
        scales = (own_step, own_step, other_step, result_step)
        if fusion.own == "int8" and int8:
            total = add_dequantized(expected, own_step, residual, other_step)
        else:
            pair = ((expected, own_step), (residual, other_step))
            a, b = (dequantize(q, s) if q.dtype == torch.int8 else q.float() for q, s in pair)
            total = a + b
        total = total.relu() if fusion.add_relu else total
        expected = quantize(total, result_step) if fusion.result == "int8" else total.half()
    tile = tile_of("column", channels, 3, splits=2)
    found = problem.run(tile, fusion, scales=scales, residual=residual)
    assert found.dtype == expected.dtype
    assert torch.equal(found, expected)


def test_weights_are_packed_with_zeros_behind_the_channels() -> None:
    weight = torch.arange(2 * 3 * 2 * 1 * 5).view(2, 3, 2, 1, 5).float() + 1
    packed = pack_weight(weight, 8)
    assert packed.shape == (2, 2, 24)
    assert torch.equal(packed[1, 0, 8:13], weight[0, 1, 1, 0])
    assert (packed.view(2, 2, 3, 8)[..., 5:] == 0).all()
    assert packed.sum() == weight.sum()
