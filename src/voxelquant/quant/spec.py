"""What a quantizer does, as a frozen value."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from voxelquant.errors import ConfigError
from voxelquant.numerics import INT8, Float8Format, NumberFormat

Granularity = Literal["per_tensor", "per_channel"]
Method = Literal["max", "percentile", "mse", "entropy"]
METHODS: tuple[str, ...] = get_args(Method)


@dataclass(frozen=True)
class QuantSpec:
    """Number format and the way in which its range is chosen.

    Attributes:
        fmt: format of the codes.
        granularity: one range for the tensor, or one for each output channel of a weight.
        method: how a calibrator picks the range from a histogram; weights take their maximum.
        percentile: share of magnitudes, in percent, that `percentile` keeps inside the range.
        skip_zeros: leave exact zeros out of `percentile` and `entropy`. Zeros cost no error, so
            `max` and `mse` give the same range either way.
    """

    fmt: NumberFormat = INT8
    granularity: Granularity = "per_tensor"
    method: Method = "mse"
    percentile: float = 99.99
    skip_zeros: bool = False

    def __post_init__(self) -> None:
        if not 0.0 < self.percentile <= 100.0:
            raise ConfigError(f"got percentile {self.percentile}, need above 0 and at most 100")
        if self.granularity == "per_channel" and self.method != "max":
            raise ConfigError(
                f"got method {self.method!r} for ranges per channel, need 'max': weights are known "
                "exactly, nothing is sampled"
            )
        if self.method == "entropy" and isinstance(self.fmt, Float8Format):
            raise ConfigError(
                "got method 'entropy' for an fp8 tensor, need max, percentile or mse: it compares "
                "histograms of evenly spaced codes"
            )
