"""The reference execution in plain torch: every device, every channel count, with autograd.

This is the truth that every other backend is held against. It has two forms of one sum:

- *by taps*, for CPUs: for a run of output rows gather the input rows of all pairs, one GEMM for
  each tap, then sum the products of every output row, taps in the row-major order of the weight.
  Only pairs that exist are multiplied. `benchmarks/backbone_cpu.py` tells what was slower.
- *by columns*, for GPUs: gather whole neighbourhoods `[rows, k * c_in]` with zeros for missing
  sites, and one GEMM. More arithmetic, but three launches instead of some eighty, and no atomics:
  gradients are as deterministic as the forward pass.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import embedding_bag

from voxelquant.sparse.kernel_map import KernelMap

# Integers up to 2**24 are exact in float32; codes reach 128, so weights may sum to this magnitude.
_EXACT_WEIGHT_SUM = 2**24 // 128
# Elements of an input and an output row, over the rows of a chunk: some 10 MB over ten pairs a row.
_CHUNK_ELEMENTS = 1 << 18
# Gathered neighbourhoods at a time, in elements: 1 GiB of float32.
_COLUMN_ELEMENTS = 1 << 28


def sparse_conv(
    features: Tensor, weight: Tensor, kernel_map: KernelMap, *, by_columns: bool | None = None
) -> Tensor:
    """Convolution without bias; half precision is accumulated in float32 and rounded once.

    Args:
        features: `[n, c_in]` float.
        weight: `[c_out, k, c_in]` float of the same dtype.
        kernel_map: pairs of the convolution.
        by_columns: form of the sum; by default columns on GPUs, taps elsewhere.

    Returns:
        `[m, c_out]` of the dtype of `features`.
    """
    if by_columns is None:
        by_columns = features.is_cuda
    out: Tensor = _SparseConv.apply(features, weight, kernel_map, by_columns)
    return out


class _SparseConv(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, features: Tensor, weight: Tensor, kernel_map: KernelMap, by_columns: bool
    ) -> Tensor:
        ctx.save_for_backward(features, weight)
        ctx.kernel_map, ctx.by_columns = kernel_map, by_columns
        with torch.autocast(features.device.type, enabled=False):
            return _convolve(features, weight, kernel_map, by_columns)

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, *grad_outputs: Tensor
    ) -> tuple[Tensor | None, Tensor | None, None, None]:
        features, weight = ctx.saved_tensors
        grad_out = grad_outputs[0].contiguous()
        grad_features = grad_weight = None
        with torch.autocast(grad_out.device.type, enabled=False):
            if ctx.needs_input_grad[0]:
                transposed = ctx.kernel_map.transposed()
                grad_features = _convolve(
                    grad_out, weight.permute(2, 1, 0), transposed, ctx.by_columns
                )
            if ctx.needs_input_grad[1]:
                grad_of_weight = _weight_grad_by_columns if ctx.by_columns else _weight_grad_by_taps
                grad_weight = grad_of_weight(features, grad_out, ctx.kernel_map)
        return grad_features, grad_weight, None, None


def _convolve(features: Tensor, weight: Tensor, kernel_map: KernelMap, by_columns: bool) -> Tensor:
    if by_columns:
        return _convolve_columns(features, weight, kernel_map)
    if features.dtype in (torch.float16, torch.bfloat16):
        return _convolve_taps(features.float(), weight.float(), kernel_map).to(features.dtype)
    return _convolve_taps(features, weight, kernel_map)


def _convolve_taps(features: Tensor, weight: Tensor, kernel_map: KernelMap) -> Tensor:
    """`[m, c_out]` over all pairs; `weight` is `[c_out, k, c_in]`."""
    c_out, _, c_in = weight.shape
    out = features.new_empty((kernel_map.n_out, c_out))
    matrices = [tap.t() for tap in weight.unbind(1)]
    chunks = kernel_map.output_chunks(chunk_rows(c_in, c_out))
    # Allocated once: fresh pages for every chunk cost as much as the gather itself.
    most_pairs = max((len(chunk.in_rows) for chunk in chunks), default=0)
    gather_buffer = features.new_empty((most_pairs, c_in))
    product_buffer = features.new_empty((most_pairs, c_out))
    for chunk in chunks:
        gathered = gather_buffer[: len(chunk.in_rows)]
        products = product_buffer[: len(chunk.in_rows)]
        torch.index_select(features, 0, chunk.in_rows, out=gathered)
        sizes = chunk.tap_sizes
        for rows, matrix, product in zip(
            gathered.split(sizes), matrices, products.split(sizes), strict=True
        ):
            if len(rows):
                torch.mm(rows, matrix, out=product)
        out[chunk.rows] = embedding_bag(chunk.pair_order, products, chunk.row_starts, mode="sum")
    return out


def chunk_rows(c_in: int, c_out: int) -> int:
    """Output rows that the form by taps finishes at once, a power of two.

    What it gathers and multiplies should stay in cache, its GEMMs should not be small, and threads
    should not meet more often than needed.
    """
    fitting = _CHUNK_ELEMENTS // (c_in + c_out)
    return min(max(1 << (fitting.bit_length() - 1), 2048), 8192) if fitting else 2048


def _convolve_columns(features: Tensor, weight: Tensor, kernel_map: KernelMap) -> Tensor:
    """`[m, c_out]` over all taps; `weight` is `[c_out, k, c_in]`."""
    matrix = weight.reshape(weight.shape[0], -1).t()  # [k * c_in, c_out]
    chunks = [columns @ matrix for _, columns in _columns(features, kernel_map)]
    return chunks[0] if len(chunks) == 1 else torch.cat(chunks)


def _columns(features: Tensor, kernel_map: KernelMap) -> Iterator[tuple[slice, Tensor]]:
    """Neighbourhoods `[rows, k * c_in]` of the output rows, in chunks of bounded size."""
    width = kernel_map.taps * features.shape[1]
    step = max(_COLUMN_ELEMENTS // max(width, 1), 1)
    rows = kernel_map.neighbour_rows()
    padded = torch.cat([features, features.new_zeros((1, features.shape[1]))])
    for begin in range(0, max(kernel_map.n_out, 1), step):
        part = slice(begin, begin + step)
        yield part, _gather_rows(padded, rows[part].view(-1)).view(-1, width)


def _gather_rows(features: Tensor, rows: Tensor) -> Tensor:
    """`features[rows]`, with short rows read 16 bytes at a time.

    On a GPU `index_select` spends a thread block on every row; a row of 16 channels keeps four of
    its threads busy, and a training step spent 72 % of its time there. Indexing both axes of a
    16-byte view is elementwise instead.
    """
    row_bytes = features.shape[1] * features.element_size()
    if not features.is_cuda or row_bytes % 16 or row_bytes > 256:
        return features.index_select(0, rows)
    wide = features.contiguous().view(torch.complex128)
    words = torch.arange(wide.shape[1], device=features.device)
    return wide[rows.long().unsqueeze(1), words].view(features.dtype)


def _weight_grad_by_taps(features: Tensor, grad_out: Tensor, kernel_map: KernelMap) -> Tensor:
    shape = (grad_out.shape[1], kernel_map.taps, features.shape[1])
    grad = features.new_zeros(shape)  # [c_out, k, c_in]
    for tap in range(kernel_map.taps):
        in_rows, out_rows = kernel_map.pairs_of_tap(tap)
        gathered = grad_out.index_select(0, out_rows)
        grad[:, tap] = gathered.t() @ features.index_select(0, in_rows)
    return grad


def _weight_grad_by_columns(features: Tensor, grad_out: Tensor, kernel_map: KernelMap) -> Tensor:
    chunks = [grad_out[part].t() @ columns for part, columns in _columns(features, kernel_map)]
    total = chunks[0] if len(chunks) == 1 else torch.stack(chunks).sum(0)
    return total.view(grad_out.shape[1], kernel_map.taps, features.shape[1])


def sparse_conv_int8(
    codes: Tensor, weight_q: Tensor, kernel_map: KernelMap, *, by_columns: bool | None = None
) -> Tensor:
    """Integer convolution: int8 codes in, exact int32 accumulators out.

    By taps in float32, over as many input channels at a time as keep every partial sum within
    2**24; the weights tell how many. By columns in float64, which needs no split and which TF32
    settings do not touch.

    Args:
        codes: `[n, c_in]` int8.
        weight_q: `[c_out, k, c_in]` int8.
        kernel_map: pairs of the convolution.
        by_columns: form of the sum; by default columns on GPUs, taps elsewhere.

    Returns:
        `[m, c_out]` int32.
    """
    if by_columns is None:
        by_columns = codes.is_cuda
    if by_columns or kernel_map.taps > _EXACT_WEIGHT_SUM // 128:
        return _convolve_columns(codes.double(), weight_q.double(), kernel_map).int()
    weight = weight_q.float()
    parts = [
        _convolve_taps(codes[:, part].float(), weight[:, :, part], kernel_map).int()
        for part in _exact_parts(weight, slice(0, weight.shape[2]))
    ]
    return parts[0] if len(parts) == 1 else torch.stack(parts).sum(0, dtype=torch.int32)


def sparse_conv_fp8(
    codes: Tensor, weight_q: Tensor, kernel_map: KernelMap, *, by_columns: bool | None = None
) -> Tensor:
    """Convolution of e4m3 codes: the exact sums, each rounded to float32 once.

    A product of two codes is a multiple of `2**-18` of magnitude at most `448**2`, so float64 holds
    the sum of up to 171,196 of them exactly, in any order.

    Args:
        codes: `[n, c_in]` float8_e4m3fn.
        weight_q: `[c_out, k, c_in]` float8_e4m3fn.
        kernel_map: pairs of the convolution.
        by_columns: form of the sum; by default columns on GPUs, taps elsewhere.

    Returns:
        `[m, c_out]` float32.
    """
    if by_columns is None:
        by_columns = codes.is_cuda
    form = _convolve_columns if by_columns else _convolve_taps
    return form(codes.double(), weight_q.double(), kernel_map).float()


def _exact_parts(weight: Tensor, channels: slice) -> list[slice]:
    """Runs of input channels over which int8 products sum exactly in float32, in any order."""
    largest = weight[:, :, channels].abs().sum((1, 2)).max() if weight.numel() else 0.0
    if largest <= _EXACT_WEIGHT_SUM:
        return [channels]
    middle = (channels.start + channels.stop) // 2
    halves = (slice(channels.start, middle), slice(middle, channels.stop))
    return [part for half in halves for part in _exact_parts(weight, half)]
