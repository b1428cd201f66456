"""Kernel maps: which input row meets which output row through which tap."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from voxelquant.sparse.backends.choice import choose_map_backend


@dataclass(frozen=True)
class OutputChunk:
    """The pairs of a run of output rows, for executions that finish those rows at once.

    Attributes:
        rows: the run of output rows.
        in_rows: `[pairs]` int32 input rows, grouped by tap.
        tap_sizes: number of pairs of each tap.
        pair_order: `[pairs]` int32 places in `in_rows`, grouped by output row, taps ascending.
        row_starts: `[rows]` int32 place in `pair_order` at which each output row begins.
    """

    rows: slice
    in_rows: Tensor
    tap_sizes: tuple[int, ...]
    pair_order: Tensor
    row_starts: Tensor


class KernelMap:
    """Which input row every output row reads through every tap.

    The table is the truth; the other forms are derived from it on first use and kept, since all
    convolutions of one geometry on the same sites share one map. Executions that gather whole
    neighbourhoods (GPU) read `neighbour_rows`, those that multiply only what exists (CPU) read
    `output_chunks`.

    Args:
        table: `[k, m]` int32 input row of each tap and output row; `n_in` where there is none.
            Within a tap no input row occurs twice.
        n_in: number of input sites, `n`.
        identity_tap: the tap that joins every row with itself, if there is one: the centre of a
            submanifold kernel. Executions need neither gather nor scatter for it.
        mirrored: whether the table with its taps reversed is the transposed table. It is for a
            submanifold kernel, which is centred: where `a` reads `b` through a tap, `b` reads `a`
            through the tap on the other side of the centre.
    """

    def __init__(
        self,
        table: Tensor,
        n_in: int,
        identity_tap: int | None = None,
        *,
        mirrored: bool = False,
    ) -> None:
        self.table = table
        self.n_in = n_in
        self.identity_tap = identity_tap
        self.mirrored = mirrored
        self._pairs: tuple[Tensor, Tensor, tuple[int, ...]] | None = None
        self._chunks: dict[int, tuple[OutputChunk, ...]] = {}  # by rows in a chunk
        self._neighbour_rows: Tensor | None = None
        self._transposed: KernelMap | None = None
        # Weak: the two maps would otherwise keep each other's tables until garbage collection.
        self._origin: weakref.ref[KernelMap] | None = None

    def __repr__(self) -> str:
        return f"KernelMap(taps={self.taps}, n_in={self.n_in}, n_out={self.n_out})"

    @property
    def taps(self) -> int:
        """Number of taps, `k`."""
        return self.table.shape[0]

    @property
    def n_out(self) -> int:
        """Number of output sites, `m`."""
        return self.table.shape[1]

    @property
    def in_rows(self) -> Tensor:
        """`[pairs]` int32 input rows, grouped by tap."""
        return self._all_pairs()[0]

    @property
    def out_rows(self) -> Tensor:
        """`[pairs]` int64 output rows, grouped by tap and strictly increasing within one."""
        return self._all_pairs()[1]

    @property
    def tap_bounds(self) -> tuple[int, ...]:
        """`k + 1` positions; tap `t` owns pairs `tap_bounds[t]:tap_bounds[t + 1]`."""
        return self._all_pairs()[2]

    def pairs_of_tap(self, tap: int) -> tuple[Tensor, Tensor]:
        """Input and output rows that meet through one tap."""
        in_rows, out_rows, bounds = self._all_pairs()
        return in_rows[bounds[tap] : bounds[tap + 1]], out_rows[bounds[tap] : bounds[tap + 1]]

    def output_chunks(self, size: int) -> tuple[OutputChunk, ...]:
        """The pairs in runs of `size` output rows; the last run may be shorter."""
        if size not in self._chunks:
            even = self.n_out - self.n_out % size
            rest = self.n_out - even
            self._chunks[size] = (
                *_cut_chunks(self.table[:, :even], self.n_in, first_row=0, size=size),
                *_cut_chunks(self.table[:, even:], self.n_in, first_row=even, size=rest),
            )
        return self._chunks[size]

    def neighbour_rows(self) -> Tensor:
        """`[m, k]` int32, the table with the taps of an output row side by side."""
        if self._neighbour_rows is None:
            self._neighbour_rows = self.table.t().contiguous()
        return self._neighbour_rows

    def transposed(self) -> KernelMap:
        """The map of the inverse convolution: inputs and outputs trade places, taps stay."""
        origin = None if self._origin is None else self._origin()
        if origin is not None:
            return origin
        if self._transposed is None:
            table = self._transposed_table()
            self._transposed = KernelMap(
                table, self.n_out, self.identity_tap, mirrored=self.mirrored
            )
            self._transposed._origin = weakref.ref(self)
        return self._transposed

    def _transposed_table(self) -> Tensor:
        if self.mirrored:
            return self.table.flip(0)
        if choose_map_backend(self.table.device) == "triton":
            from voxelquant.sparse.backends.triton import neighbour_maps  # not before it is used

            return neighbour_maps.transpose_table(self.table, self.n_in)
        return _transpose_table(self.table, self.n_in)

    def _all_pairs(self) -> tuple[Tensor, Tensor, tuple[int, ...]]:
        if self._pairs is None:
            flat = self.table.reshape(-1)
            present = self.table < self.n_in
            position = torch.nonzero(present.view(-1)).squeeze(1)
            out_rows = position % self.n_out if self.n_out else position
            bounds = (0, *torch.cumsum(present.sum(1), 0).tolist())
            self._pairs = (flat.index_select(0, position), out_rows, bounds)
        return self._pairs


def _cut_chunks(table: Tensor, n_in: int, *, first_row: int, size: int) -> Iterator[OutputChunk]:
    """Chunks of `size` rows each; all of them are cut at once, `[chunks, k, size]`."""
    taps, n_rows = table.shape
    if n_rows == 0:
        return
    parts = table.view(taps, -1, size).transpose(0, 1).contiguous()
    present = parts < n_in
    by_tap = torch.nonzero(present.view(-1)).squeeze(1)  # pairs by chunk, tap, row
    in_rows = parts.view(-1).index_select(0, by_tap)
    # Stable, so that the taps of a row stay in order.
    row = torch.div(by_tap, taps * size, rounding_mode="floor").mul_(size).add_(by_tap % size)
    by_row = torch.sort(row.int(), stable=True)[1].int()
    per_row = present.sum(1, dtype=torch.int32).view(-1)  # [rows]
    starts = torch.cumsum(per_row, 0, dtype=torch.int32) - per_row
    begin = 0
    for chunk, sizes in enumerate(present.sum(2).tolist()):
        rows = slice(chunk * size, (chunk + 1) * size)
        end = begin + sum(sizes)
        yield OutputChunk(
            slice(first_row + rows.start, first_row + rows.stop),
            in_rows[begin:end],
            tuple(sizes),
            by_row[begin:end] - begin,
            starts[rows] - begin,
        )
        begin = end


def _transpose_table(table: Tensor, n_in: int) -> Tensor:
    taps, n_out = table.shape
    # One column more takes what has no input row; it is cut off again.
    transposed = table.new_full((taps, n_in + 1), n_out)
    out_rows = torch.arange(n_out, dtype=torch.int32, device=table.device)
    transposed.scatter_(1, table.long(), out_rows.expand(taps, -1))
    return transposed[:, :n_in].contiguous()
