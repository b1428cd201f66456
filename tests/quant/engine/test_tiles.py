"""Tiles that are tried fit the convolutions that they are tried for; measured ones are kept."""

from itertools import product
from pathlib import Path

import pytest

pytest.importorskip("triton")

from voxelquant.quant.engine.tiles import (
    MAX_SPLITS,
    ConvShape,
    candidates,
    default_tile,
    padded_channels,
)
from voxelquant.quant.engine.tuning import load_tiles, store_tiles

SHAPES = [
    ConvShape(c_in, c_out, columns, kz, fmt, "fp16", None, 1024)
    for (c_in, c_out), (columns, kz), fmt in product(
        ((1, 5), (5, 16), (16, 24), (33, 32), (64, 64), (128, 128)),
        ((1, 1), (9, 3), (1, 3), (4, 2)),
        ("fp16", "int8", "fp8"),
    )
]


def test_every_tile_covers_the_channels_of_its_convolution() -> None:
    for shape in SHAPES:
        tiles = list(candidates(shape, 900, 132, bulk=True))
        assert [t for t in tiles if not t.bulk] == list(candidates(shape, 900, 132))
        assert any(t.bulk for t in tiles) == (shape.c_in >= 64)
        assert tiles[0] == default_tile(shape)
        for tile in tiles:
            width = padded_channels(shape, tile)
            assert width >= shape.c_in
            assert tile.block_k >= shape.least_k
            assert 1 <= tile.splits <= min(MAX_SPLITS, shape.columns)
            if tile.steps == "together":
                assert tile.block_k >= shape.kz * width
            elif tile.steps == "column":
                assert tile.block_k == width
            else:
                assert width % tile.block_k == 0
            assert tile.steps in ("tap", "seen") or not tile.bulk
            assert tile.steps != "seen" or shape.kz > 1
            for block in (tile.block_m, tile.block_n, tile.block_k):
                assert block >= 16
                assert block & (block - 1) == 0


def test_measured_tiles_are_kept_and_merged(tmp_path: Path) -> None:
    path = tmp_path / "cache" / "tiles.json"
    path.parent.mkdir()
    assert load_tiles(path) == {}
    first, second = ({shape: default_tile(shape)} for shape in SHAPES[:2])
    store_tiles(path, first)
    store_tiles(path, second)
    assert load_tiles(path) == {**first, **second}


@pytest.mark.parametrize("content", ["", "{", '[["a", {}]]', "[[{}, {}]]", "7", "\xff"])
def test_a_damaged_file_counts_as_none(
    tmp_path: Path, content: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "tiles.json"
    path.write_bytes(content.encode("latin-1"))
    assert load_tiles(path) == {}
    assert "measured anew" in caplog.text
