"""One layer of an NVIDIA checkpoint as the tensors of a QuantState: checks and the storage law."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from voxelquant.detection.checkpoint import checked_tensor
from voxelquant.detection.nvidia_layout import WEIGHT_AMAX, NvidiaLayer
from voxelquant.errors import CheckpointError
from voxelquant.numerics import INT8
from voxelquant.quant.fold import float16_values, folded_values
from voxelquant.quant.quantizer import smallest_weight_amax, weight_amax
from voxelquant.quant.stored_weight import encode_weight
from voxelquant.sparse import SparseConvBase

_COUNTER = "num_batches_tracked"


@dataclass(frozen=True)
class ConvValues:
    """A convolution of the file in float32, checked.

    Attributes:
        weight: `[c_out, kz, ky, kx, c_in]`, not yet scaled by `norm`.
        bias: `[c_out]`, or None.
        norm: the batch norm that is not fused, or None.
        amax: `[c_out]` ranges of the weight as the file has them, 0 included.
    """

    weight: Tensor
    bias: Tensor | None
    norm: nn.BatchNorm1d | None
    amax: Tensor


@dataclass(frozen=True)
class StoredConv:
    """A convolution as a QuantState stores it.

    Attributes:
        weight: fp16, `fp16(q * scale)` in an int8 layer.
        bias: fp16.
        amax: `[c_out]` ranges of an int8 layer; None in an fp16 one.
        raised: channels whose range was too small for the stored weight and had to grow.
    """

    weight: Tensor
    bias: Tensor
    amax: Tensor | None
    raised: int = 0


def read_conv(
    stored: Mapping[str, Tensor], layer: NvidiaLayer, conv: SparseConvBase, norm: nn.BatchNorm1d
) -> ConvValues:
    """The tensors of one convolution.

    Args:
        stored: tensors of the file.
        layer: the convolution.
        conv: our module, for shapes.
        norm: our batch norm after it, for its shapes and ε.

    Raises:
        CheckpointError: a tensor has another shape or type, or is not finite; it is named.
    """
    weight = _float(stored, f"{layer.theirs}.weight", conv.weight)
    amax = range_of(stored, layer.theirs + WEIGHT_AMAX, conv.out_channels)
    without_range = (amax == 0.0) & weight.flatten(1).any(1)
    if bool(without_range.any()):
        channel = int(torch.nonzero(without_range)[0])
        raise CheckpointError(
            f"{layer.theirs}{WEIGHT_AMAX}: got a range of 0 for output channel {channel}, whose "
            "weights are not 0; calibrate the checkpoint again"
        )
    channels = torch.zeros(conv.out_channels)
    if layer.norm is None:
        return ConvValues(weight, _float(stored, f"{layer.theirs}.bias", channels), None, amax)
    own = nn.BatchNorm1d(conv.out_channels, eps=norm.eps)
    given = {
        key: checked_tensor(f"{layer.norm}.{key}", stored.get(f"{layer.norm}.{key}"), value)
        for key, value in own.state_dict().items()
    }
    own.load_state_dict(given)
    return ConvValues(weight, None, own.eval(), amax)


def store_conv(values: ConvValues, path: str, *, int8: bool) -> StoredConv:
    """The storage law: codes are those of the file's own weights, ranges are not recomputed.

    A range below what fp16 can hold the codes of (dead channels) is raised to the smallest that
    it can, that of a channel of zeros to the layer's.

    Raises:
        QuantStateError: values that fp16 cannot hold.
    """
    weight, bias = values.weight.double(), None if values.bias is None else values.bias.double()
    if values.norm is not None:
        weight, bias = folded_values(weight, bias, values.norm, path)
    assert bias is not None
    half_bias = float16_values(bias, path, "bias").to(torch.float16)
    if not int8:
        return StoredConv(float16_values(weight, path, "weight").to(torch.float16), half_bias, None)
    whole = torch.where(values.amax > 0.0, values.amax, weight_amax(values.weight, INT8))
    amax = whole.clamp(min=smallest_weight_amax(INT8))
    stored = encode_weight(weight.to(torch.float32), amax, INT8, path)
    return StoredConv(stored, half_bias, amax, int((amax != values.amax).sum()))


def range_of(stored: Mapping[str, Tensor], name: str, channels: int | None = None) -> Tensor:
    """A range as a QuantState holds it: `[]`, or `[c_out]` of a weight, where 0 is allowed.

    Raises:
        CheckpointError: it is absent, of another size, not finite, or not above 0.
    """
    value = stored.get(name)
    if value is None:
        raise CheckpointError(f"{name}: missing; the checkpoint was saved without its calibration")
    if value.numel() != (channels or 1) or not value.dtype.is_floating_point:
        raise CheckpointError(
            f"{name}: got {value.dtype} {list(value.shape)}, need {channels or 1} floating point "
            "values"
        )
    amax = value.detach().to(torch.float32).reshape(() if channels is None else (channels,))
    usable = torch.isfinite(amax) & (amax > 0.0 if channels is None else amax >= 0.0)
    if not bool(usable.all()):
        worst = float(amax.reshape(-1)[int(torch.nonzero(~usable.reshape(-1))[0])])
        raise CheckpointError(f"{name}: got a range of {worst:g}, need a finite one above 0")
    return amax


def carried_values(stored: Mapping[str, Tensor], layer: NvidiaLayer) -> dict[str, Tensor]:
    """The file's own tensors of one layer, for a writer to give back."""
    present = (name for name in layer.names if name in stored)
    return {name: _plain(name, stored[name]) for name in present}


def _plain(name: str, value: Tensor) -> Tensor:
    return value if name.endswith(_COUNTER) else value.detach().to(torch.float32)


def _float(stored: Mapping[str, Tensor], name: str, like: Tensor) -> Tensor:
    if name not in stored:
        raise CheckpointError(f"{name}: missing; this is a checkpoint of another model")
    return checked_tensor(name, stored[name], like.detach())
