"""Tile shapes of the convolution kernels, by dtype, channels and taps.

Reasoned for a GPU of 132 multiprocessors with tensor cores that take 64 rows and four warps at a
time (sm_90), and valid on every other: a product of 64 deep in half precision, 32 in float32, keeps
two operand tiles of three stages below 100 KB of shared memory, so that two programs fit on a
multiprocessor. Measured shapes take precedence: see `tune`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import product
from typing import Literal

import torch

# Depth of one product, K: 128 bytes a row in float32 and half precision, 64 in int8.
_DEPTH = {torch.float32: 32, torch.float16: 64, torch.bfloat16: 64, torch.int8: 64}
# Least K that a tensor core takes.
_LEAST_DEPTH = {torch.float32: 16, torch.float16: 16, torch.bfloat16: 16, torch.int8: 32}
_LARGEST_BLOCK = 128


@dataclass(frozen=True)
class GemmShape:
    """What the choice of a tile depends on.

    Attributes:
        kind: `conv` (forward, and the gradient of the features) or `weight_grad`.
        dtype: of the operands.
        c_in: channels that are gathered.
        c_out: channels of the other side.
        taps: kernel positions, `k`.
    """

    kind: Literal["conv", "weight_grad"]
    dtype: torch.dtype
    c_in: int
    c_out: int
    taps: int


@dataclass(frozen=True)
class Tile:
    """Sizes of one program and how it is compiled.

    Attributes:
        rows: sites a program or, for `weight_grad`, one of its steps takes.
        columns: channels of `c_out`.
        channels: channels of `c_in`.
        taps: taps side by side in one product.
        warps: `num_warps`.
        stages: `num_stages` of the software pipeline.
    """

    rows: int
    columns: int
    channels: int
    taps: int
    warps: int
    stages: int


_tuned: dict[GemmShape, Tile] = {}


def tile_of(shape: GemmShape) -> Tile:
    """The tuned tile where there is one, else the reasoned one."""
    return _tuned.get(shape) or _reasoned_tile(shape)


def tune(shape: GemmShape, measure_ms: Callable[[Tile], float]) -> tuple[Tile, float]:
    """Time the candidates and keep the fastest for this process.

    Args:
        shape: the problem.
        measure_ms: time of the problem with a tile; infinite where it does not fit the device.

    Returns:
        The tile that `tile_of` answers from now on, and its time.
    """
    timed = [(measure_ms(tile), tile) for tile in candidate_tiles(shape)]
    fastest_ms, tile = min(timed, key=lambda pair: pair[0])
    _tuned[shape] = tile
    return tile, fastest_ms


def candidate_tiles(shape: GemmShape) -> list[Tile]:
    """The reasoned tile first, then its neighbours in rows, depth, warps and stages."""
    first = _reasoned_tile(shape)
    other_rows = 64 if shape.kind == "conv" else 2 * first.rows
    choices = product((first.rows, other_rows), (4, 8), (3, 4))
    tiles = [first, *(replace(first, rows=r, warps=w, stages=s) for r, w, s in choices)]
    if shape.kind == "conv" and first.channels * 2 <= _power_of_two(shape.c_in):
        tiles += [replace(tile, channels=first.channels * 2) for tile in (first, tiles[-1])]
    return list(dict.fromkeys(tiles))


@lru_cache(maxsize=1024)
def _reasoned_tile(shape: GemmShape) -> Tile:
    columns = min(max(_power_of_two(shape.c_out), 16), _LARGEST_BLOCK)
    # A gradient's product is as high as the forward's is deep: several taps, or many channels.
    extent = _DEPTH[shape.dtype] if shape.kind == "conv" else _LARGEST_BLOCK
    channels = min(_power_of_two(shape.c_in), extent)
    taps = min(extent // channels, _power_of_two(shape.taps))
    channels = max(channels, _LEAST_DEPTH[shape.dtype] // taps)
    rows = _LARGEST_BLOCK if shape.kind == "conv" else _DEPTH[shape.dtype]
    # The parts of split float32 operands need as many registers again.
    warps = 8 if columns >= (64 if shape.dtype == torch.float32 else 128) else 4
    return Tile(rows, columns, channels, taps, warps, stages=3)


def _power_of_two(value: int) -> int:
    """The least power of two that is not below the value.

    >>> [_power_of_two(value) for value in (1, 5, 16, 17)]
    [1, 8, 16, 32]
    """
    return 1 << max(value - 1, 0).bit_length()
