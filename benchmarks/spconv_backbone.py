"""SpMiddleResNetFHD built of `spconv.pytorch`: the peer of `training_step_gpu.py`.

The network of CenterPoint's own code; its state keys are those of this package's backbone.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import spconv.pytorch as spconv
from torch import Tensor, nn

from voxelquant.detection.backbone import sparse_batchnorm


class Block(spconv.SparseModule):
    """Two submanifold convolutions around a skip, with bias, as det3d has them."""

    def __init__(self, channels: int, key: str) -> None:
        super().__init__()
        conv = partial(spconv.SubMConv3d, channels, channels, 3, padding=1, bias=True)
        self.conv1 = conv(indice_key=key)
        self.bn1 = sparse_batchnorm(channels)
        self.conv2 = conv(indice_key=key)
        self.bn2 = sparse_batchnorm(channels)
        self.relu = nn.ReLU()

    def forward(self, x: Any) -> Any:
        """`[n, c]` → `[n, c]` on the same sites."""
        out = self.conv1(x)
        out = out.replace_feature(self.relu(self.bn1(out.features)))
        out = self.conv2(out)
        return out.replace_feature(self.relu(self.bn2(out.features) + x.features))


def _stage(c_in: int, c_out: int, padding: Any, key: str) -> nn.Module:
    return spconv.SparseSequential(
        spconv.SparseConv3d(c_in, c_out, 3, 2, padding=padding, bias=False),
        sparse_batchnorm(c_out),
        nn.ReLU(),
        Block(c_out, key),
        Block(c_out, key),
    )


class SpconvBackbone(nn.Module):
    """Voxels → bird's-eye-view map.

    Args:
        channels: of the five stages.
        shape: grid (z, y, x).
    """

    def __init__(self, channels: tuple[int, ...], shape: tuple[int, int, int]) -> None:
        super().__init__()
        first, last = channels[0], channels[-1]
        self.shape = list(shape)
        self.conv_input = spconv.SparseSequential(
            spconv.SubMConv3d(5, first, 3, bias=False, indice_key="res0"),
            sparse_batchnorm(first),
            nn.ReLU(),
        )
        self.conv1 = spconv.SparseSequential(Block(first, "res0"), Block(first, "res0"))
        self.conv2 = _stage(channels[1], channels[2], 1, "res1")
        self.conv3 = _stage(channels[2], channels[3], 1, "res2")
        self.conv4 = _stage(channels[3], channels[4], [0, 1, 1], "res3")
        self.extra_conv = spconv.SparseSequential(
            spconv.SparseConv3d(last, last, (3, 1, 1), (2, 1, 1), bias=False),
            sparse_batchnorm(last),
            nn.ReLU(),
        )

    def forward(self, features: Tensor, coords_bzyx: Tensor, batch_size: int) -> Tensor:
        """`[n, 5]`, `[n, 4]` int32 → `[b, c * z, y, x]`."""
        x = spconv.SparseConvTensor(features, coords_bzyx, self.shape, batch_size)
        stages: list[Callable[[Any], Any]] = [self.conv_input, self.conv1, self.conv2]
        for stage in (*stages, self.conv3, self.conv4, self.extra_conv):
            x = stage(x)
        dense: Tensor = x.dense().flatten(1, 2)
        return dense
