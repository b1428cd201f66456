import pytest
import torch
from torch import nn
from torch.nn import functional

from voxelquant.detection.config_schema import NeckConfig
from voxelquant.detection.neck import RPN

CONFIG = NeckConfig(
    layer_nums=(2, 1),
    ds_layer_strides=(1, 2),
    ds_num_filters=(4, 6),
    us_layer_strides=(1, 2),
    us_num_filters=(3, 5),
)


def _norm(x: torch.Tensor, norm: nn.BatchNorm2d) -> torch.Tensor:
    scale = norm.weight / torch.sqrt(norm.running_var + 1e-3)
    shape = (1, -1, 1, 1)
    return (x - norm.running_mean.view(shape)) * scale.view(shape) + norm.bias.view(shape)


def test_neck_equals_its_formula() -> None:
    torch.manual_seed(0)
    neck = RPN(7, CONFIG).eval()
    for norm in neck.modules():
        if isinstance(norm, nn.BatchNorm2d):
            nn.init.uniform_(norm.weight, 0.5, 1.5)
            nn.init.normal_(norm.running_mean)
    x = torch.randn(2, 7, 8, 10)
    with torch.no_grad():
        got = neck(x)
        maps = []
        for stage, (stride, layers) in enumerate(((1, 2), (2, 1))):
            block = neck.blocks[stage]
            for index in range(layers + 1):
                conv, norm = block[1 + 3 * index], block[2 + 3 * index]
                step = stride if index == 0 else 1
                x = _norm(functional.conv2d(x, conv.weight, stride=step, padding=1), norm).relu()
            deblock = neck.deblocks[stage]
            up = functional.conv2d if stage == 0 else functional.conv_transpose2d
            maps.append(_norm(up(x, deblock[0].weight, stride=stage + 1), deblock[1]).relu())
    assert got.shape == (2, 8, 8, 10)
    torch.testing.assert_close(got, torch.cat(maps, 1), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("strides", "kinds", "kernels", "size"),
    [
        ((1, 2), (nn.Conv2d, nn.ConvTranspose2d), ((1, 1), (2, 2)), 8),
        ((2, 4), (nn.ConvTranspose2d, nn.ConvTranspose2d), ((2, 2), (4, 4)), 16),
        ((0.5, 1), (nn.Conv2d, nn.Conv2d), ((2, 2), (1, 1)), 4),
    ],
)
def test_upsampling_follows_the_stride(strides, kinds, kernels, size) -> None:
    neck = RPN(7, CONFIG.model_copy(update={"us_layer_strides": strides}))
    assert tuple(type(deblock[0]) for deblock in neck.deblocks) == kinds
    assert tuple(deblock[0].kernel_size for deblock in neck.deblocks) == kernels
    assert neck(torch.zeros(2, 7, 8, 8)).shape == (2, 8, size, size)


def test_only_the_last_stages_may_be_upsampled() -> None:
    config = CONFIG.model_copy(update={"us_layer_strides": (2,), "us_num_filters": (5,)})
    neck = RPN(7, config)
    assert len(neck.deblocks) == 1
    assert neck(torch.zeros(1, 7, 8, 8)).shape == (1, 5, 8, 8)


def test_weights_start_as_torch_starts_them() -> None:
    """The original's xavier initialisation is never called."""
    torch.manual_seed(0)
    neck = RPN(64, CONFIG.model_copy(update={"ds_num_filters": (64, 64)}))
    for conv, fan_in in ((neck.blocks[0][1], 64 * 9), (neck.blocks[1][1], 64 * 9)):
        bound = fan_in**-0.5  # Kaiming-uniform with a = √5; xavier reaches half as far again
        assert 0.98 * bound < conv.weight.abs().max().item() <= bound
