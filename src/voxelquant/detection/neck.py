"""RPN: the dense two-stage pyramid over the bird's-eye-view map (SECOND, Yan 2018)."""

import torch
from torch import Tensor, nn

from voxelquant.detection.config_schema import NeckConfig


def bev_batchnorm(channels: int) -> nn.BatchNorm2d:
    """BatchNorm of the neck: eps 1e-3, momentum 0.01."""
    return nn.BatchNorm2d(channels, eps=1e-3, momentum=0.01)


class RPN(nn.Module):
    """Strided stages, each brought back to one size and concatenated.

    Args:
        in_channels: channels of the bird's-eye-view map.
        config: stages and upsampling.
    """

    def __init__(self, in_channels: int, config: NeckConfig) -> None:
        super().__init__()
        filters = config.ds_num_filters
        self.blocks = nn.ModuleList(
            _stage(c_in, c_out, stride, layers)
            for c_in, c_out, stride, layers in zip(
                (in_channels, *filters[:-1]),
                filters,
                config.ds_layer_strides,
                config.layer_nums,
                strict=True,
            )
        )
        self.first_upsampled = len(filters) - len(config.us_num_filters)
        self.deblocks = nn.ModuleList(
            _upsampling(c_in, c_out, stride)
            for c_in, c_out, stride in zip(
                filters[self.first_upsampled :],
                config.us_num_filters,
                config.us_layer_strides,
                strict=True,
            )
        )

    def forward(self, bev: Tensor) -> Tensor:
        """`[b, c_in, h, w]` → `[b, sum of us_num_filters, h', w']`."""
        upsampled = []
        for index, block in enumerate(self.blocks):
            bev = block(bev)
            if index >= self.first_upsampled:
                upsampled.append(self.deblocks[index - self.first_upsampled](bev))
        return torch.cat(upsampled, dim=1)


def _stage(c_in: int, c_out: int, stride: int, layers: int) -> nn.Sequential:
    # The padding is a layer of its own at index 0, which shifts every key of a checkpoint by one.
    modules: list[nn.Module] = [
        nn.ZeroPad2d(1),
        nn.Conv2d(c_in, c_out, 3, stride=stride, bias=False),
        bev_batchnorm(c_out),
        nn.ReLU(),
    ]
    for _ in range(layers):
        modules += [
            nn.Conv2d(c_out, c_out, 3, padding=1, bias=False),
            bev_batchnorm(c_out),
            nn.ReLU(),
        ]
    return nn.Sequential(*modules)


def _upsampling(c_in: int, c_out: int, stride: float) -> nn.Sequential:
    resize: nn.Module
    if stride > 1:
        resize = nn.ConvTranspose2d(c_in, c_out, int(stride), stride=int(stride), bias=False)
    else:
        # A stride of 1 or a fraction is an ordinary convolution with kernel = stride.
        size = round(1 / stride)
        resize = nn.Conv2d(c_in, c_out, size, stride=size, bias=False)
    return nn.Sequential(resize, bev_batchnorm(c_out), nn.ReLU())
