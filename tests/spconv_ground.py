"""What networks of spconv stand on in tests: voxels, batch norms, and spconv mended on a CPU."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from spconv.pytorch import ops
from spconv.pytorch.conv import SparseConvolution
from torch import Tensor, nn

GRID = (41, 32, 32)


def batchnorm(channels: int) -> nn.BatchNorm1d:
    return nn.BatchNorm1d(channels, eps=1e-3, momentum=0.01)


@contextmanager
def spconv_mended_on_cpu() -> Iterator[None]:
    """What spconv 2.3.8 lacks on a CPU, put right inside: it was made for GPUs.

    Its convolutions are wrong there with more than one thread, refuse a bias in eval mode, and ask
    CUDA for its stream in the backward pass.
    """
    kernels = SparseConvolution._conv_forward

    def conv_forward(
        self: Any, training: bool, x: Any, weight: Any, bias: Any, *more: Any, **named
    ):
        out = kernels(self, training, x, weight, None, *more, **named)
        return out if bias is None else out.replace_feature(out.features + bias)

    threads, stream = torch.get_num_threads(), ops.get_current_stream
    SparseConvolution._conv_forward, ops.get_current_stream = conv_forward, lambda: 0
    torch.set_num_threads(1)
    try:
        yield
    finally:
        SparseConvolution._conv_forward, ops.get_current_stream = kernels, stream
        torch.set_num_threads(threads)


def make_voxels(
    seed: int, *, sites: int = 600, channels: int = 5, batch: int = 1, device: str = "cpu"
) -> tuple[Tensor, Tensor]:
    """Features `[n, c]` and coordinates `[n, 4]` int32 (batch, z, y, x), clustered like returns."""
    generator = torch.Generator().manual_seed(seed)
    size_z, size_y, size_x = GRID
    rows = []
    for index in range(batch):
        z = torch.randint(0, size_z, (4 * sites,), generator=generator)
        y = (torch.randn(4 * sites, generator=generator) * 6 + 16).long().clamp(0, size_y - 1)
        x = torch.randint(0, size_x, (4 * sites,), generator=generator)
        cells = torch.unique((z * size_y + y) * size_x + x)
        cells = cells[torch.randperm(len(cells), generator=generator)[:sites]]
        place = [cells // (size_y * size_x), cells // size_x % size_y, cells % size_x]
        rows.append(torch.stack([torch.full_like(cells, index), *place], 1))
    coords = torch.cat(rows).int()
    features = torch.randn(len(coords), channels, generator=generator)
    return features.to(device), coords.to(device)
