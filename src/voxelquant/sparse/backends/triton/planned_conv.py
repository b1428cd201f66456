"""Launches of the planned convolution, and how its work is cut.

`implicit_gemm` holds the kernel.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import triton
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from voxelquant.sparse.backends.triton.epilogue import format_name, stored_bits
from voxelquant.sparse.backends.triton.implicit_gemm import conv_kernel
from voxelquant.sparse.backends.triton.overlap import LAUNCH, OVERLAP
from voxelquant.sparse.backends.triton.row_groups import RowGroups


@dataclass(frozen=True)
class ConvTile:
    """How a convolution is cut into programs.

    Attributes:
        block_m: output rows of a program.
        block_n: output channels of a program.
        block_k: input channels of a product; with `together`, those of all taps of a column.
        steps: what is loaded at once: the rows of a `tap`; the same, of rows in groups, for the
            taps that a group has `seen`; the rows of all taps of a `column`, for products of their
            own; of all taps `together`, for one product.
        num_warps: warps of a program.
        num_stages: steps that are loaded ahead.
        splits: programs that share the columns of one tile; the last to end sums their parts.
        bulk: whether the chip's copy engine fetches the weights (Hopper's tensor memory
            accelerator), not the threads of the program; for steps of one tap.
    """

    block_m: int
    block_n: int
    block_k: int
    steps: Literal["tap", "seen", "column", "together"]
    num_warps: int
    num_stages: int
    splits: int = 1
    bulk: bool = False

    def row_tiles(self, capacity: int, kz: int) -> int:
        """Most tiles of rows that a map of `kz` taps along z has."""
        tiles = triton.cdiv(capacity, self.block_m)
        return tiles + (1 << kz) - 1 if self.steps == "seen" else tiles  # one short tile a group


@dataclass(frozen=True)
class Fusion:
    """What a convolution does after its sum. Formats are those of `epilogue.format_name`.

    Attributes:
        relu: whether its own ReLU is fused.
        own: format of its own result.
        residual: format of the other operand of a sum that follows, None without a sum.
        add_relu: whether the sum has a ReLU.
        result: format of the sum.
    """

    relu: bool = False
    own: str = "fp16"
    residual: str | None = None
    add_relu: bool = False
    result: str = "fp16"


@dataclass(frozen=True)
class SharedSums:
    """Memory in which the programs of a split tile meet; one serves all convolutions in turn.

    Attributes:
        parts: `[elements]` float32, at least splits * capacity * c_out of any convolution; int32
            sums use the same bytes.
        arrivals: `[tiles]` int32 zeros; every use leaves zeros.
    """

    parts: Tensor
    arrivals: Tensor

    @staticmethod
    def elements(tile: ConvTile, capacity: int, c_out: int, kz: int) -> tuple[int, int]:
        """Sizes of `parts` and `arrivals` that a convolution needs."""
        if tile.splits == 1:
            return 0, 0
        tiles = tile.row_tiles(capacity, kz) * triton.cdiv(c_out, tile.block_n)
        return tile.splits * capacity * c_out, tiles


def pack_weight(weight: Tensor, c_pad: int) -> Tensor:
    """Weight in the order of the kernel.

    Args:
        weight: `[c_out, kz, ky, kx, c_in]`.
        c_pad: input channels after padding, at least c_in.

    Returns:
        `[ky * kx, c_out, kz * c_pad]`, contiguous.
    """
    c_out, kz, ky, kx, c_in = weight.shape
    packed = weight.new_zeros((ky, kx, c_out, kz, c_pad))
    packed[..., :c_in] = weight.permute(2, 3, 0, 1, 4)
    return packed.view(ky * kx, c_out, kz * c_pad)


def launch_conv(
    tile: ConvTile,
    fusion: Fusion,
    *,
    x: Tensor,
    packed: Tensor,
    entries: Tensor,
    count: Tensor,
    out: Tensor,
    kz: int,
    c_in: int,
    inverse: bool = False,
    groups: RowGroups | None = None,
    multiplier: Tensor | None = None,
    bias: Tensor | None = None,
    scales: tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None] = (None,) * 4,
    residual: Tensor | None = None,
    shared_sums: SharedSums | None = None,
    early: bool = False,
    overlap: bool = True,
) -> None:
    """Convolve the rows of a frame.

    Args:
        tile: how the work is cut.
        fusion: what follows the sum.
        x: `[capacity_in, stride]` int8, float8_e4m3fn or float16 features.
        packed: weight, from `pack_weight`: int8 for int8 features, else float16 (fp8 codes too).
        entries: `[columns, capacity]` int32 kernel map.
        count: `[1]` int32 number of output sites, on the device.
        out: `[capacity, c_out]` of the format that `fusion` says.
        kz: taps along z.
        c_in: input channels.
        inverse: kind of the map.
        groups: the rows of the map in groups; needed for steps of taps that were seen.
        multiplier: `[c_out]` float32 of a convolution of codes.
        bias: `[c_out]` float32 or float16.
        scales: steps of the convolution's own codes, of both operands of the sum, of its codes; of
            `with_reciprocal`, None for values.
        residual: `[capacity, c_out]` other operand of the sum.
        shared_sums: where the programs of a split tile meet; needed for more than one split.
        early: whether the map was complete before the launch before this one began.
        overlap: whether the launch may begin while its predecessor ends.
    """
    columns, c_out, width = packed.shape
    accumulated = torch.int32 if x.dtype == torch.int8 else torch.float32
    capacity = entries.shape[1]
    grid = (tile.row_tiles(capacity, kz), triton.cdiv(c_out, tile.block_n), tile.splits)
    counts, rows = count, None
    if tile.steps == "seen":
        assert groups is not None
        counts, rows = groups.counts, groups.rows
    blocks = None
    if tile.bulk:
        blocks = TensorDescriptor.from_tensor(
            packed.view(columns * c_out, width), [tile.block_n, tile.block_k]
        )
    conv_kernel[grid](
        stored_bits(x),
        None if tile.bulk else packed,
        blocks,
        entries,
        counts,
        rows,
        stored_bits(out),
        multiplier,
        bias,
        scales[0],
        None if residual is None else stored_bits(residual),
        scales[1],
        scales[2],
        scales[3],
        None if shared_sums is None else shared_sums.parts.view(accumulated),
        None if shared_sums is None else shared_sums.arrivals,
        capacity,
        C_IN=c_in,
        STRIDE_X=x.shape[1],
        C_PAD=width // kz,
        C_OUT=c_out,
        COLUMNS=columns,
        KZ=kz,
        INVERSE=inverse,
        FORMAT=format_name(x.dtype),
        HAS_BIAS=bias is not None,
        RELU=fusion.relu,
        OWN=fusion.own,
        RESIDUAL=fusion.residual,
        ADD_RELU=fusion.add_relu,
        RESULT=fusion.result,
        STEPS=tile.steps,
        BULK=tile.bulk,
        SPLITS=tile.splits,
        OVERLAP=OVERLAP,
        EARLY=early,
        BLOCK_M=tile.block_m,
        BLOCK_N=tile.block_n,
        BLOCK_K=tile.block_k,
        num_warps=tile.num_warps,
        num_stages=tile.num_stages,
        enable_fp_fusion=False,
        **(LAUNCH if overlap else {}),
    )
