"""Bits of words against Python's own integers."""

import pytest
import torch
from torch import Tensor

triton = pytest.importorskip("triton")
tl = pytest.importorskip("triton.language")

from planned_index import DEVICE  # noqa: E402
from voxelquant.sparse.backends.triton.bits import (  # noqa: E402
    bits_below,
    popcount64,
    popcount64_by_sums,
    popcount_small,
)


@triton.jit
def _count(words_ptr, out_ptr, sums_ptr, small_ptr, N: tl.constexpr):
    places = tl.arange(0, N)
    words = tl.load(words_ptr + places).to(tl.uint64, bitcast=True)
    tl.store(out_ptr + places, popcount64(words))
    tl.store(sums_ptr + places, popcount64_by_sums(words))
    tl.store(small_ptr + places, popcount_small(words.to(tl.int32), 4))


@triton.jit
def _below(out_ptr):
    places = tl.arange(0, 64)
    tl.store(out_ptr + places, bits_below(places).to(tl.int64, bitcast=True))


def _words() -> Tensor:
    generator = torch.Generator().manual_seed(0)
    single = torch.tensor([1], dtype=torch.int64) << torch.arange(64)
    dense = torch.randint(-(2**63), 2**63 - 1, (126,), generator=generator, dtype=torch.int64)
    return torch.cat([single, ~single[:62], dense, torch.tensor([0, -1]), dense[:2] & 1]).to(DEVICE)


def test_set_bits_are_counted() -> None:
    words = _words()
    counts = [torch.full((256,), -1, dtype=torch.int32, device=DEVICE) for _ in range(3)]
    _count[(1,)](words, *counts, N=256)
    unsigned = [word % 2**64 for word in words.tolist()]
    expected = [word.bit_count() for word in unsigned]
    assert counts[0].tolist() == expected
    assert counts[1].tolist() == expected
    assert counts[2].tolist() == [(word & 15).bit_count() for word in unsigned]
    assert {0, 1, 63, 64} <= set(expected)


def test_masks_of_the_bits_below_every_place() -> None:
    out = torch.zeros(64, dtype=torch.int64, device=DEVICE)
    _below[(1,)](out)
    assert [word % 2**64 for word in out.tolist()] == [2**place - 1 for place in range(64)]
