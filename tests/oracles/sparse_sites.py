"""Sparse convolution from first principles: sets, loops, dense conv3d; nothing of the library."""

from itertools import product

import torch
from torch import Tensor
from torch.nn import functional

Site = tuple[int, int, int, int]
Triple = tuple[int, int, int]


def random_sites(n: int, shape: Triple, batches: list[int], seed: int = 0) -> Tensor:
    """`[n, 4]` int32 unique coordinates in shuffled order, spread over the given samples."""
    generator = torch.Generator().manual_seed(seed)
    cells = shape[0] * shape[1] * shape[2]
    flat = torch.randperm(cells * len(batches), generator=generator)[:n]
    b = torch.tensor(batches)[flat // cells]
    rest = flat % cells
    z, y, x = rest // (shape[1] * shape[2]), rest // shape[2] % shape[1], rest % shape[2]
    return torch.stack([b, z, y, x], 1).int()


def strided_pairs(
    sites: list[Site],
    shape: Triple,
    kernel: Triple,
    stride: Triple,
    padding: Triple,
    dilation: Triple,
) -> tuple[set[tuple[int, Site, Site]], list[Site]]:
    """Triples (tap, input site, output site), and the outputs in row-major order."""
    sizes = [
        (n + 2 * p - d * (k - 1) - 1) // s + 1
        for n, k, s, p, d in zip(shape, kernel, stride, padding, dilation, strict=True)
    ]
    pairs = set()
    for b, *position in sites:
        for tap, offset in enumerate(product(*(range(k) for k in kernel))):
            out = []
            for axis in range(3):
                numerator = position[axis] + padding[axis] - dilation[axis] * offset[axis]
                if numerator % stride[axis] == 0 and 0 <= numerator // stride[axis] < sizes[axis]:
                    out.append(numerator // stride[axis])
            if len(out) == 3:
                pairs.add((tap, (b, *position), (b, *out)))
    return pairs, sorted({pair[2] for pair in pairs})


def submanifold_pairs(
    sites: list[Site], kernel: Triple, dilation: Triple
) -> set[tuple[int, Site, Site]]:
    """Triples (tap, input site, output site) of a centred kernel on a fixed set of sites."""
    present = set(sites)
    pairs = set()
    for b, z, y, x in sites:
        for tap, (tz, ty, tx) in enumerate(product(*(range(k) for k in kernel))):
            neighbour = (
                b,
                z + dilation[0] * (tz - kernel[0] // 2),
                y + dilation[1] * (ty - kernel[1] // 2),
                x + dilation[2] * (tx - kernel[2] // 2),
            )
            if neighbour in present:
                pairs.add((tap, neighbour, (b, z, y, x)))
    return pairs


def scatter(features: Tensor, coords: Tensor, shape: Triple, batch_size: int) -> Tensor:
    """`[b, c, z, y, x]` dense grid, differentiable in the features."""
    b, z, y, x = coords.long().unbind(1)
    empty = features.new_zeros((batch_size, *shape, features.shape[1]))
    return empty.index_put((b, z, y, x), features).permute(0, 4, 1, 2, 3)


def gather(dense: Tensor, coords: Tensor) -> Tensor:
    """`[m, c]` rows of a dense grid."""
    b, z, y, x = coords.long().unbind(1)
    return dense[b, :, z, y, x]


def dense_conv(
    dense: Tensor, weight: Tensor, stride: Triple, padding: Triple, dilation: Triple
) -> Tensor:
    """Dense cross-correlation; `weight` is `[c_out, kz, ky, kx, c_in]`."""
    return functional.conv3d(dense, weight.permute(0, 4, 1, 2, 3), None, stride, padding, dilation)
