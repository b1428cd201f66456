"""Quantized CenterPoint checkpoints as NVIDIA's package writes them, from the table of their names.

Written from the specification of the layout alone: nothing here comes from the package's own
reader or writer.
"""

from collections import OrderedDict
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

# Container, index of a strided or first convolution, indices of its residual blocks.
STAGES = (("conv1", None, (0, 1)), ("conv2", 0, (2, 3)), ("conv3", 0, (2, 3)), ("conv4", 0, (2, 3)))


def nvidia_weights(
    widths: Sequence[int] = (16, 32, 64, 128),
    in_channels: int = 5,
    seed: int = 0,
    dense: Mapping[str, Tensor] | None = None,
) -> OrderedDict[str, Tensor]:
    """State dict of a `ptq.pth`: fused backbone with 50 ranges, then neck and head as given.

    Biases are values that fp16 holds; weights are not.
    """
    generator = torch.Generator().manual_seed(seed)
    found: OrderedDict[str, Tensor] = OrderedDict()

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(shape, generator=generator)

    def conv(path: str, c_out: int, c_in: int, kernel: tuple[int, ...], bias: bool = True) -> None:
        bound = 2.0 / (c_in * kernel[0] * kernel[1] * kernel[2]) ** 0.5
        weight = uniform(-bound, bound, c_out, *kernel, c_in)
        found[f"{path}.weight"] = weight
        if bias:
            found[f"{path}.bias"] = uniform(-0.2, 0.2, c_out).half().float()
        found[f"{path}._input_quantizer._amax"] = uniform(1.0, 2.5)
        largest = weight.abs().amax((1, 2, 3, 4), keepdim=True)
        found[f"{path}._weight_quantizer._amax"] = largest

    conv("backbone.conv_input.0", widths[0], in_channels, (3, 3, 3), bias=False)
    found["backbone.conv_input.1.weight"] = uniform(0.5, 1.5, widths[0])
    found["backbone.conv_input.1.bias"] = uniform(-0.2, 0.2, widths[0])
    found["backbone.conv_input.1.running_mean"] = uniform(-0.3, 0.3, widths[0])
    found["backbone.conv_input.1.running_var"] = uniform(0.5, 1.5, widths[0])
    found["backbone.conv_input.1.num_batches_tracked"] = torch.tensor(1234)
    before = widths[0]
    for (stage, strided, blocks), width in zip(STAGES, widths, strict=True):
        if strided is not None:
            conv(f"backbone.{stage}.{strided}", width, before, (3, 3, 3))
        for block in blocks:
            conv(f"backbone.{stage}.{block}.conv1", width, width, (3, 3, 3))
            conv(f"backbone.{stage}.{block}.conv2", width, width, (3, 3, 3))
            name = f"backbone.{stage}.{block}.quant_add._input_quantizer._amax"
            found[name] = uniform(1.5, 3.0)
        before = width
    conv("backbone.extra_conv.0", before, before, (3, 1, 1))
    found.update(dense or {})
    return found


def amax_names(weights: Mapping[str, Tensor]) -> list[str]:
    """Names of the ranges."""
    return [name for name in weights if name.endswith("_amax")]
