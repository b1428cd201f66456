from dataclasses import replace
from itertools import product

import pytest
import torch

from voxelquant.sparse.backends.triton import conv_tiles
from voxelquant.sparse.backends.triton.conv_tiles import GemmShape, candidate_tiles, tile_of, tune

COUNTS = (1, 3, 5, 16, 17, 24, 32, 33, 64, 128, 200)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.int8])
@pytest.mark.parametrize("kind", ["conv", "weight_grad"])
def test_every_tile_is_one_that_a_tensor_core_takes(kind: str, dtype: torch.dtype) -> None:
    least = 32 if dtype == torch.int8 else 16
    for c_in, c_out, taps in product(COUNTS, COUNTS, (1, 3, 27, 32)):
        for tile in candidate_tiles(GemmShape(kind, dtype, c_in, c_out, taps)):
            sizes = (tile.rows, tile.columns, tile.channels, tile.taps)
            assert all(size & (size - 1) == 0 for size in sizes)
            assert tile.columns >= 16
            assert tile.rows >= 16
            assert tile.channels * tile.taps >= least
            # Two operand tiles for each stage, in an H100's shared memory.
            depth, height = (tile.channels * tile.taps, tile.rows)
            bytes_per_stage = (height * depth + max(depth, height) * tile.columns) * dtype.itemsize
            assert bytes_per_stage * 2 <= 227 * 1024


@pytest.mark.parametrize("c_in", [5, 16, 24, 32])
def test_few_channels_fill_a_product_with_several_taps(c_in: int) -> None:
    tile = tile_of(GemmShape("conv", torch.float16, c_in, 32, 27))
    assert tile.taps > 1
    assert tile.taps * tile.channels == 64


def test_the_tuner_keeps_the_fastest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conv_tiles, "_tuned", {})
    shape = GemmShape("conv", torch.float16, 16, 32, 27)
    favourite = candidate_tiles(shape)[3]
    assert tile_of(shape) != favourite

    def measure_ms(tile: conv_tiles.Tile) -> float:
        return 1.0 if tile == favourite else float("inf")

    assert tune(shape, measure_ms) == (favourite, 1.0)
    assert tile_of(shape) == favourite
    assert tile_of(replace(shape, taps=9)) != favourite
