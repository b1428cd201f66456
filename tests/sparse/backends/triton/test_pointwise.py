"""Conversions, sums and ReLUs bit for bit as `numerics` does them, and only rows that exist."""

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

from planned_index import DEVICE
from voxelquant.numerics import (
    FP8_E4M3,
    INT8,
    add_dequantized,
    dequantize,
    quantize,
    requantize_in_turn,
)
from voxelquant.sparse.backends.triton.epilogue import with_reciprocal
from voxelquant.sparse.backends.triton.pointwise import add_rows, convert_rows

CAPACITY = 150
STEPS = [torch.tensor(s) for s in (0.0371, 0.0213, 0.0517)]
FORMATS = {"int8": INT8, "fp8": FP8_E4M3}


def _values(channels: int, seed: int = 0) -> Tensor:
    """`[capacity, c]` float16 with ties of the first step among them."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(CAPACITY, channels, generator=generator) * 2
    x[::3] = (torch.randint(-140, 140, x[::3].shape, generator=generator) + 0.5) * STEPS[0]
    return x.half()


def _count(n: int) -> Tensor:
    return torch.tensor([n], dtype=torch.int32, device=DEVICE)


def _marked(channels: int, dtype: torch.dtype) -> Tensor:
    return torch.full((CAPACITY, channels), 77.0, device=DEVICE).to(dtype)


def _require(out: Tensor, expected: Tensor, n: int) -> None:
    assert out.dtype == expected.dtype
    assert torch.equal(out[:n].float().cpu(), expected[:n].float())
    untouched = _marked(1, out.dtype).float()[0]
    assert (out[n:].float() == untouched).all(), "rows that do not exist were written"


@pytest.mark.parametrize("n", [0, 1, 149])
@pytest.mark.parametrize("steps", [1, 2, 3])
@pytest.mark.parametrize("name", FORMATS)
def test_values_are_taken_through_steps(name: str, steps: int, n: int) -> None:
    fmt, x = FORMATS[name], _values(5)
    scales = with_reciprocal(torch.stack(STEPS[:steps]))
    expected = requantize_in_turn(quantize(x, STEPS[0], fmt), STEPS[:steps], fmt)
    out = _marked(5, fmt.dtype)
    convert_rows(x.to(DEVICE), _count(n), out, scales=scales.to(DEVICE), codes=name)
    _require(out, expected, n)
    out = _marked(5, torch.float16)
    convert_rows(x.to(DEVICE), _count(n), out, scales=scales.to(DEVICE), codes=name)
    _require(out, dequantize(expected, STEPS[steps - 1]).half(), n)


@pytest.mark.parametrize("steps", [2, 3])
@pytest.mark.parametrize("name", FORMATS)
def test_codes_of_the_first_step_are_codes_already(name: str, steps: int) -> None:
    fmt = FORMATS[name]
    codes = quantize(_values(24), STEPS[0], fmt)
    out = _marked(24, fmt.dtype)
    scales = with_reciprocal(torch.stack(STEPS[:steps])).to(DEVICE)
    convert_rows(codes.to(DEVICE), _count(101), out, scales=scales, codes=name)
    _require(out, requantize_in_turn(codes, STEPS[:steps], fmt), 101)


def test_a_relu_alone_keeps_values() -> None:
    x = _values(16)
    out = _marked(16, torch.float16)
    convert_rows(x.to(DEVICE), _count(101), out, relu=True)
    _require(out, x.relu(), 101)


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("result", ["fp16", *FORMATS])
@pytest.mark.parametrize("operands", ["fp16", *FORMATS])
def test_sums(operands: str, result: str, relu: bool) -> None:
    x, y = _values(16), _values(16, 1)
    if operands == "fp16":
        a, b, total = x, y, x.float() + y.float()
        steps = (None, None)
    else:
        fmt = FORMATS[operands]
        a, b, steps = quantize(x, STEPS[0], fmt), quantize(y, STEPS[1], fmt), (STEPS[0], STEPS[1])
        total = add_dequantized(a, STEPS[0], b, STEPS[1])
    total = total.relu() if relu else total
    last = None if result == "fp16" else STEPS[2]
    expected = total.half() if last is None else quantize(total, last, FORMATS[result])
    out = _marked(16, expected.dtype)
    scales = [None if s is None else with_reciprocal(s).to(DEVICE) for s in (*steps, last)]
    add_rows(
        a.to(DEVICE),
        b.to(DEVICE),
        _count(101),
        out,
        relu=relu,
        scales=(scales[0], scales[1], scales[2]),
    )
    _require(out, expected, 101)
