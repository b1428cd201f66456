"""How convolutions are cut into programs: what is tried, and what is taken untried."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass

import triton

from voxelquant.sparse.backends.triton.planned_conv import ConvTile

MAX_SPLITS = 3


@dataclass(frozen=True)
class ConvShape:
    """What the best tile of a convolution depends on.

    Attributes:
        c_in: input channels.
        c_out: output channels.
        columns: columns of its kernel map.
        kz: taps of a column.
        format: what it reads: `fp16`, `int8` or `fp8`.
        result: format that it writes; what stores are wide decides how rows are read, too.
        residual: format of the other operand of a fused sum, None without one.
        rows: output rows that were planned for, rounded up to a power of two.
    """

    c_in: int
    c_out: int
    columns: int
    kz: int
    format: str
    result: str
    residual: str | None
    rows: int

    @property
    def least_k(self) -> int:
        """Fewest channels of one step of the tensor cores."""
        return 32 if self.format == "int8" else 16


def padded_channels(shape: ConvShape, tile: ConvTile) -> int:
    """Input channels of a tap in the packed weight."""
    if tile.steps == "together":
        # Rows are read 16 bytes at a time where they can be.
        per_read = 8 if shape.format == "fp16" else 16
        return shape.c_in if shape.c_in > 8 else -(-shape.c_in // per_read) * per_read
    return -(-shape.c_in // tile.block_k) * tile.block_k


def default_tile(shape: ConvShape) -> ConvTile:
    """A tile that is never bad: the taps of narrow layers side by side, 64 rows."""
    block_n = min(max(triton.next_power_of_2(shape.c_out), 16), 128)
    if shape.c_in <= 16:
        return _together(shape, 64, block_n, 4, 3)
    block_k = min(max(triton.next_power_of_2(shape.c_in), shape.least_k), 64)
    return ConvTile(64, block_n, block_k, "tap", 4, 3)


def candidates(
    shape: ConvShape, rows: int, processors: int, *, bulk: bool = False
) -> Iterator[ConvTile]:
    """Tiles that are worth a measurement.

    Args:
        shape: the convolution.
        rows: output rows of the frame at hand.
        processors: multiprocessors of the device.
        bulk: whether it has an engine for bulk copies, see `ConvTile`.
    """
    yield default_tile(shape)
    full_n = min(max(triton.next_power_of_2(shape.c_out), 16), 128)
    # Sums of more than 128 x 128 do not fit the registers of eight warps beside anything else.
    for block_m in (64, 128, 256) if full_n < 128 else (64, 128):
        # Deep layers of a small frame leave most of the device without a tile.
        few = 2 * triton.cdiv(rows, block_m) * triton.cdiv(shape.c_out, full_n) <= processors
        for block_n in (full_n, full_n // 2) if few and full_n == 128 else (full_n,):
            most = MAX_SPLITS if few and shape.columns >= MAX_SPLITS else 1
            for num_warps in {64: (4,), 128: (4, 8), 256: (8,)}[block_m]:
                for tile in _whole(shape, block_m, block_n, num_warps):
                    # Tiles of a group have fewer steps to share out.
                    for split in range(1, (1 if tile.steps == "seen" else most) + 1):
                        yield dataclasses.replace(tile, splits=split)
                        # Narrow layers have too few weights for it to gain anything.
                        if bulk and tile.steps in ("tap", "seen") and shape.c_in >= 64:
                            yield dataclasses.replace(tile, splits=split, bulk=True)


def _whole(shape: ConvShape, block_m: int, block_n: int, num_warps: int) -> Iterator[ConvTile]:
    widest = max(triton.next_power_of_2(shape.c_in), shape.least_k)
    # Narrow layers have few steps: what is loaded ahead may cost more than it hides.
    for num_stages in (1, 2, 3) if shape.c_in <= 32 else (2, 3):
        if shape.c_in <= 32:
            yield _together(shape, block_m, block_n, num_warps, num_stages)
        if widest <= 64:
            yield ConvTile(block_m, block_n, widest, "column", num_warps, num_stages)
    for num_stages in (3, 4):
        yield ConvTile(block_m, block_n, min(widest, 128), "tap", num_warps, num_stages)
        if widest >= 128:
            yield ConvTile(block_m, block_n, 64, "tap", num_warps, num_stages)
    if shape.kz == 1:
        return  # all rows see the same
    for num_stages in (2, 3, 4) if shape.c_in <= 32 else (3, 4):
        yield ConvTile(block_m, block_n, min(widest, 128), "seen", num_warps, num_stages)
        if widest >= 128:
            yield ConvTile(block_m, block_n, 64, "seen", num_warps, num_stages)


def _together(
    shape: ConvShape, block_m: int, block_n: int, num_warps: int, num_stages: int
) -> ConvTile:
    probe = ConvTile(block_m, block_n, 0, "together", num_warps, num_stages)
    width = shape.kz * padded_channels(shape, probe)
    block_k = max(triton.next_power_of_2(width), shape.least_k)
    return ConvTile(block_m, block_n, block_k, "together", num_warps, num_stages)
