"""The tensor quantizer: one range, one explicit mode."""

from __future__ import annotations

import math
from enum import Enum

import torch
from torch import Tensor, nn

from voxelquant.errors import CalibrationError
from voxelquant.numerics import (
    NumberFormat,
    fake_quantize,
    fake_quantize_learned,
    scale_from_amax,
)
from voxelquant.quant.histogram import MagnitudeHistogram
from voxelquant.quant.observer import Observer
from voxelquant.quant.spec import QuantSpec

# Stored weights are fp16(q * scale). Where neighbouring codes lie closer than this, fp16 subnormals
# (2**-24 apart) no longer tell them apart, so a weaker channel is given a larger step: its codes
# are coarser than its own maximum would allow, and resolve what the fp16 weights do but for a bit.
# Of fp8 that concerns subnormal codes alone, which are 2**-9 steps apart: its least step is 2**-14.
_SMALLEST_WEIGHT_GAP = 2.0**-23
# A learned range stays within e**±20 of where it began, hence above 0 and finite.
_MOST_GROWTH = 20.0


class QuantizerMode(Enum):
    """What a quantizer does in a forward."""

    OFF = "off"
    OBSERVE = "observe"
    QUANTIZE = "quantize"


class TensorQuantizer(nn.Module):
    """Fake-quantizes the tensor it is shared by all consumers of, or watches it, or stands aside.

    The range is the buffer `stored_amax`, or, while it is learned, `stored_amax * exp(growth)` with
    the parameter `growth`: positive whatever an optimiser does, and a step of `growth` is the same
    share of a small range as of a large one.

    Args:
        spec: format, granularity and method.
        name: module path of the tensor or weight, for messages.
        channels: number of output channels for ranges per channel, else None.
    """

    stored_amax: Tensor
    growth: nn.Parameter | None

    def __init__(self, spec: QuantSpec, name: str, channels: int | None = None) -> None:
        super().__init__()
        self.spec = spec
        self.name = name
        self.mode = QuantizerMode.QUANTIZE
        self.observer: Observer | None = None
        shape = () if channels is None else (channels,)
        self.register_buffer("stored_amax", torch.full(shape, math.nan))
        self.register_parameter("growth", None)
        self.largest: Tensor | None = None

    @property
    def calibrated(self) -> bool:
        """Whether the range is known."""
        return not bool(torch.isnan(self.stored_amax).any())

    @property
    def amax(self) -> Tensor:
        """Range, `[]` or `[c_out]` float32.

        Raises:
            CalibrationError: it was never calibrated.
        """
        if not self.calibrated:
            raise CalibrationError(
                f"{self.name}: got a quantizer without a range, need a calibrated one; run "
                "calibrate(qmodel, frames) or load a QuantState first"
            )
        return self.stored_amax if self.growth is None else self._grown().detach()

    @property
    def scale(self) -> Tensor:
        """Step, `fp32(amax / 127)` for int8, `fp32(amax / 448)` for fp8.

        Raises:
            CalibrationError: the range was never calibrated.
        """
        return scale_from_amax(self.amax, self.spec.fmt)

    def set_amax(self, amax: Tensor | float) -> None:
        """Fix the range.

        Raises:
            CalibrationError: as `checked_amax`.
        """
        self.stored_amax.copy_(self.checked_amax(amax))
        if self.growth is not None:
            nn.init.zeros_(self.growth)

    def learn(self) -> nn.Parameter:
        """Let the range be learned from here on; returns the parameter to optimise.

        Raises:
            CalibrationError: the range was never calibrated.
        """
        self.growth = nn.Parameter(torch.zeros_like(self.amax))
        return self.growth

    def start_tracking(self) -> None:
        """Keep the largest magnitude of what is quantized in training mode, in `largest`.

        Raises:
            CalibrationError: the range was never calibrated.
        """
        self.largest = torch.zeros_like(self.amax)

    def checked_amax(self, amax: Tensor | float) -> Tensor:
        """A range in the form that is kept, if it can be one; the quantizer stays as it is.

        Raises:
            CalibrationError: a range is not a positive finite number, has no step above 0 in
                float32, or the shape differs.
        """
        value = torch.as_tensor(amax, dtype=torch.float32)
        if value.shape != self.stored_amax.shape:
            raise CalibrationError(
                f"{self.name}: got ranges of shape {tuple(value.shape)}, need "
                f"{tuple(self.stored_amax.shape)}"
            )
        positive = torch.isfinite(value) & (value > 0.0)
        _refuse_first(value, ~positive, self.name, "need above 0")
        step = scale_from_amax(value, self.spec.fmt)
        _refuse_first(
            value,
            step == 0.0,
            self.name,
            "need one whose step is above 0 in float32; leave the "
            "layers that use it in fp16, or check the weights",
        )
        return value

    def start_observing(self) -> None:
        """Begin a calibration: watch what passes, forget nothing until it is finished."""
        self.observer = Observer(MagnitudeHistogram(self.name))
        self.mode = QuantizerMode.OBSERVE

    def stop_observing(self) -> MagnitudeHistogram:
        """End a calibration and hand over the statistics; the range is not touched."""
        if self.observer is None:
            raise CalibrationError(f"{self.name}: got a quantizer that was not observing")
        histogram = self.observer.histogram
        self.observer = None
        self.mode = QuantizerMode.QUANTIZE
        return histogram

    def forward(self, x: Tensor) -> Tensor:
        """`x` itself, or every element as `scale * code` in float32."""
        if self.mode is QuantizerMode.QUANTIZE:
            if self.growth is not None:
                return self._learnable(x, self._grown())
            if self.largest is not None and self.training and x.numel():
                self.largest = torch.maximum(self.largest, x.detach().abs().amax())
            return fake_quantize(x, _per_channel(self.amax, x), self.spec.fmt)
        if self.mode is QuantizerMode.OBSERVE and self.observer is not None:
            self.observer.watch(x)
        return x

    def as_left_behind(self, x: Tensor) -> Tensor:
        """What later readers see of a tensor that this quantizer changed in place; not observed."""
        seen: Tensor = self(x) if self.mode is QuantizerMode.QUANTIZE else x
        return seen

    def _grown(self) -> Tensor:
        assert self.growth is not None
        amax = self.stored_amax * self.growth.clamp(-_MOST_GROWTH, _MOST_GROWTH).exp()
        return amax.clamp(min=smallest_weight_amax(self.spec.fmt)) if amax.ndim else amax

    def _learnable(self, x: Tensor, amax: Tensor) -> Tensor:
        # Only active elements are in x, so their number is that of the batch at hand; were the
        # paper's scale missing, the rate would follow the number of points.
        sharing = max(1, x.numel() // amax.numel())
        grad_scale = (sharing * self.spec.fmt.code_of_amax) ** -0.5
        return fake_quantize_learned(x, _per_channel(amax, x), grad_scale, self.spec.fmt)

    def extra_repr(self) -> str:
        """Name, format and mode."""
        return f"{self.name}, {self.spec.fmt.name}, {self.mode.value}"


def _refuse_first(values: Tensor, bad: Tensor, name: str, need: str) -> None:
    """Name the first bad range and, where there are several, its channel."""
    indices = torch.nonzero(bad.reshape(-1)).reshape(-1)
    if indices.numel():
        worst = float(values.reshape(-1)[indices[0]])
        where = f" in channel {int(indices[0])}" if values.ndim else ""
        raise CalibrationError(f"{name}: got a range of {worst:g}{where}, {need}")


def weight_amax(weight: Tensor, fmt: NumberFormat) -> Tensor:
    """Range of each output channel of a weight: its largest magnitude.

    A channel of zeros only has no range of its own and takes the layer's; ranges too small for the
    stored fp16 weight to keep its codes apart are raised to the smallest that does.

    Args:
        weight: `[c_out, kz, ky, kx, c_in]`.
        fmt: format of the codes.

    Returns:
        `[c_out]` float32, > 0.
    """
    largest = weight.detach().to(torch.float32).flatten(1).abs().amax(1)
    largest = torch.where(largest > 0.0, largest, largest.max())
    return largest.clamp(min=smallest_weight_amax(fmt))


def smallest_weight_amax(fmt: NumberFormat) -> float:
    """The least range whose codes fp16 storage keeps apart."""
    return fmt.code_of_amax * _SMALLEST_WEIGHT_GAP / fmt.finest_code_gap


def _per_channel(amax: Tensor, x: Tensor) -> Tensor:
    return amax.view(-1, *[1] * (x.ndim - 1)) if amax.ndim else amax
