"""Operands of a planned convolution, poison around them, and what the reference makes of them.

Buffers hold poison where no kernel may look: features of rows that do not exist and of columns past
the channels, entries past the count. What it writes lies between marks. Import it only where Triton
is installed.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from oracles.sparse_sites import random_sites
from planned_index import DEVICE
from voxelquant.numerics import (
    dequantize_accumulator,
)
from voxelquant.sparse import (
    ConvGeometry,
    KernelMap,
    build_kernel_map,
    sparse_conv_fp16,
    sparse_conv_int8,
)
from voxelquant.sparse.backends.triton.epilogue import with_reciprocal
from voxelquant.sparse.backends.triton.planned_conv import (
    ConvTile,
    Fusion,
    SharedSums,
    launch_conv,
    pack_weight,
)
from voxelquant.sparse.backends.triton.row_groups import RowGroups

SHAPE, BATCH, CAPACITY = (5, 6, 7), 3, 128
SUBM = ConvGeometry((3, 3, 3), subm=True)
GEOMETRIES = {
    "kz 1": ConvGeometry((1, 3, 1), (1, 2, 1), (0, 1, 0)),
    "kz 2": ConvGeometry((2, 2, 1), (2, 1, 1), (1, 0, 0)),
    "kz 3": ConvGeometry((3, 3, 3), (2, 2, 2), (1, 1, 1)),
    "kz 4": ConvGeometry((4, 1, 2), (2, 1, 1), (2, 0, 0)),
}
POISON_ENTRY = 0x7FFFFFF7  # a row far outside, all taps there


def encode(kernel_map: KernelMap, geometry: ConvGeometry, *, inverse: bool) -> Tensor:
    """Entries of a map whose rows are in the order of columns, by loops."""
    kz, ky, kx = geometry.kernel_size
    table = kernel_map.table.view(kz, ky * kx, -1).tolist()
    entries = torch.full((ky * kx, CAPACITY), POISON_ENTRY, dtype=torch.int32)
    for column in range(ky * kx):
        for m in range(kernel_map.n_out):
            rows = [table[t][column][m] for t in range(kz)]
            taps = [t for t in range(kz) if rows[t] < kernel_map.n_in]
            first = min((rows[t] for t in taps), default=0)
            ordered = sorted(taps, reverse=inverse)
            assert [rows[t] for t in ordered] == list(range(first, first + len(taps)))
            entries[column, m] = first << kz | sum(1 << t for t in taps)
    return entries


def by_column(coords: Tensor) -> Tensor:
    """Coordinates sorted by (b, y, x, z), as a site index orders them."""
    b, z, y, x = coords.long().unbind(1)
    key = ((b * SHAPE[1] + y) * SHAPE[2] + x) * (SHAPE[0] + 1) + z
    return coords[key.argsort()]


def group_rows(entries: Tensor, kz: int, count: int) -> RowGroups:
    """The rows of a map in groups, in no order, by loops; poison where none is."""
    rows = torch.full((RowGroups.strips(kz), CAPACITY), POISON_ENTRY, dtype=torch.int32)
    counts = torch.zeros(1 << kz, dtype=torch.int32)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(count))
    for row in order.tolist():
        group = 0
        for entry in entries[:, row].tolist():
            group |= entry & ((1 << kz) - 1)
        number = int(counts[group])
        rows[group // 2, CAPACITY - 1 - number if group % 2 else number] = row
        counts[group] += 1
    return RowGroups(rows.to(DEVICE), counts.to(DEVICE))


def make_map(
    geometry: ConvGeometry, n: int, *, inverse: bool = False
) -> tuple[KernelMap, Tensor, int]:
    """Map, its entries, rows of the input."""
    coords = by_column(random_sites(n, SHAPE, [0, 2], n))
    kernel_map, outputs = build_kernel_map(coords, SHAPE, BATCH, geometry)
    if not geometry.subm:
        order = {tuple(site): i for i, site in enumerate(outputs.tolist())}
        rows = [order[tuple(site)] for site in by_column(outputs).tolist()]
        kernel_map = KernelMap(kernel_map.table[:, rows].contiguous(), n)
    if inverse:
        kernel_map = kernel_map.transposed()
    assert kernel_map.n_out <= CAPACITY
    return kernel_map, encode(kernel_map, geometry, inverse=inverse), kernel_map.n_in


@dataclass
class Problem:
    """Operands of one launch, on the CPU."""

    geometry: ConvGeometry
    kernel_map: KernelMap
    entries: Tensor
    features: Tensor
    weight: Tensor
    inverse: bool = False
    bias: Tensor = field(default_factory=lambda: torch.zeros(0))
    multiplier: Tensor = field(default_factory=lambda: torch.zeros(0))

    @staticmethod
    def make(
        geometry: ConvGeometry,
        n: int,
        channels: tuple[int, int],
        *,
        integer: bool,
        inverse: bool = False,
    ) -> "Problem":
        kernel_map, entries, n_in = make_map(geometry, n, inverse=inverse)
        generator = torch.Generator().manual_seed(n + channels[0])
        c_in, c_out = channels
        size = (c_out, *geometry.kernel_size, c_in)
        if integer:
            draw = {"low": -128, "high": 128, "generator": generator, "dtype": torch.int8}
            x, w = torch.randint(size=(n_in, c_in), **draw), torch.randint(size=size, **draw)
        else:
            x = torch.randn(n_in, c_in, generator=generator).half()
            w = torch.randn(size, generator=generator).half()
        bias = torch.randn(c_out, generator=generator)
        multiplier = torch.rand(c_out, generator=generator) * 2.0**-12 + 2.0**-13
        stored = bias if integer else bias.half()
        return Problem(geometry, kernel_map, entries, x, w, inverse, stored, multiplier)

    @property
    def integer(self) -> bool:
        return self.features.dtype == torch.int8

    def sums(self) -> Tensor:
        """`[m, c_out]` float32 after bias, by the reference and the law."""
        if self.integer:
            acc = sparse_conv_int8(self.features, self.weight, self.kernel_map, backend="reference")
            return dequantize_accumulator(acc, self.multiplier, self.bias)
        return sparse_conv_fp16(self.features, self.weight, self.kernel_map, self.bias)

    def run(
        self,
        tile: ConvTile,
        fusion: Fusion,
        *,
        scales: tuple[Tensor | None, ...] = (None,) * 4,
        residual: Tensor | None = None,
        count: int | None = None,
    ) -> Tensor:
        """Launch; returns the rows that exist, the others are checked to be as they were."""
        c_out, *_, c_in = self.weight.shape
        kz = self.geometry.kernel_size[0]
        c_pad = -(-c_in // 8) * 8
        if tile.steps != "together":
            c_pad = -(-c_in // tile.block_k) * tile.block_k
        m = self.kernel_map.n_out if count is None else count
        last = fusion.result if fusion.residual else fusion.own
        dtype = torch.int8 if last == "int8" else torch.float16
        mark = 77
        out = torch.full((CAPACITY + 2, c_out), mark, dtype=dtype, device=DEVICE)
        sums = SharedSums.elements(tile, CAPACITY, c_out, kz)
        shared = SharedSums(
            torch.full((sums[0],), torch.nan, device=DEVICE),
            torch.zeros(sums[1], dtype=torch.int32, device=DEVICE),
        )
        launch_conv(
            tile,
            fusion,
            x=self._poisoned(self.features, CAPACITY, c_in + 3),
            packed=pack_weight(self.weight, c_pad).to(DEVICE),
            entries=self.entries.to(DEVICE),
            count=torch.tensor([m], dtype=torch.int32, device=DEVICE),
            out=out[1:-1],
            kz=kz,
            c_in=c_in,
            inverse=self.inverse,
            groups=group_rows(self.entries, kz, m),
            multiplier=self.multiplier.to(DEVICE) if self.integer else None,
            bias=self.bias.to(DEVICE),
            scales=tuple(None if s is None else with_reciprocal(s).to(DEVICE) for s in scales),
            residual=None if residual is None else self._poisoned(residual, CAPACITY, c_out),
            shared_sums=shared,
        )
        around = torch.cat([out[:1], out[1 + m :]])
        assert (around == mark).all(), "rows that do not exist were written"
        assert (shared.arrivals == 0).all()
        return out[1 : 1 + m].cpu()

    @staticmethod
    def _poisoned(x: Tensor, rows: int, width: int) -> Tensor:
        worst = torch.nan if x.is_floating_point() else 113
        wide = torch.full((rows, width), worst, dtype=x.dtype, device=DEVICE)
        wide[: len(x), : x.shape[1]] = x
        return wide


def tile_of(steps: str, channels: tuple[int, int], kz: int, *, splits: int = 1) -> ConvTile:
    """A small tile; steps are those of `ConvTile`, after `bulk` for weights in bulk."""
    c_in, c_out = channels
    width = kz * -(-c_in // 8) * 8 if steps == "together" else c_in
    block_k = max(32, 1 << (width - 1).bit_length())
    block_n = min(32, max(16, 1 << (c_out - 1).bit_length()))
    *bulk, steps = steps.split()
    if steps in ("tap", "seen"):
        block_k = 32  # more than one part of the channels where there are more than 32
    if bulk:
        return ConvTile(32, block_n, block_k, steps, 4, 2, splits, bulk=True)
    return ConvTile(32, block_n, block_k, steps, 4, 2, splits)
