"""The storage law: a quantized weight is stored as `fp16(q * scale)`, and rounding finds `q` again.

Every engine that reads the file rounds the stored weight by the stored range. The range is never
recomputed from the stored weight: its largest element may have been rounded away from it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from voxelquant.errors import QuantStateError
from voxelquant.numerics import NumberFormat, dequantize, quantize, scale_from_amax


def weight_codes(weight: Tensor, amax: Tensor, fmt: NumberFormat) -> Tensor:
    """Codes of a weight `[c_out, kz, ky, kx, c_in]` with ranges `[c_out]`."""
    return quantize(weight.detach(), _channel_scale(amax, fmt), fmt)


def encode_weight(weight: Tensor, amax: Tensor, fmt: NumberFormat, path: str) -> Tensor:
    """The stored form `fp16(q * scale)` of a weight.

    Raises:
        QuantStateError: rounding the stored form does not find `q` again; the channel is named.
    """
    codes = weight_codes(weight, amax, fmt)
    stored = dequantize(codes, _channel_scale(amax, fmt)).to(torch.float16)
    _compare(weight_codes(stored, amax, fmt), codes, amax, path)
    return stored


def verify_stored_weight(stored: Tensor, amax: Tensor, fmt: NumberFormat, path: str) -> None:
    """Check that a stored weight is what its own codes are stored as.

    Raises:
        QuantStateError: it is not; the channel is named.
    """
    codes = weight_codes(stored, amax, fmt)
    again = dequantize(codes, _channel_scale(amax, fmt)).to(torch.float16)
    _compare(again, stored, amax, path)


def _compare(found: Tensor, wanted: Tensor, amax: Tensor, path: str) -> None:
    # In float32, which holds every code and every stored value: few devices compare fp8.
    channels = (found.float() != wanted.float()).flatten(1).any(1)
    if bool(channels.any()):
        channel = int(torch.nonzero(channels)[0])
        raise QuantStateError(
            f"{path}: got a weight in output channel {channel} that fp16 storage does not give "
            f"back (amax {float(amax[channel]):g}), need codes that survive it; a range this far "
            "from its weights was not set by calibrate(): run it again"
        )


def _channel_scale(amax: Tensor, fmt: NumberFormat) -> Tensor:
    return scale_from_amax(amax, fmt).view(-1, 1, 1, 1, 1)
