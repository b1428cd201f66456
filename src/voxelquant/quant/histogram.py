"""Histograms of magnitudes that merge exactly, whatever the order and the partition."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from voxelquant.errors import CalibrationError

BINS = 4096
_CHUNK = 1 << 20


@dataclass
class MagnitudeHistogram:
    """Counts of `|x|` over `BINS` equal bins of `[0, 2**exponent)`.

    The range is the smallest power of two above the largest magnitude. When it doubles,
    neighbouring bins join, and since scaling by a power of two is exact in floating point, the
    result is the histogram that one pass over all data would have made: batches and ranks merge
    without error. At least half of the bins are in use.

    Attributes:
        name: the tensor, for messages.
        exponent: log2 of the range; None before the first value that is not zero.
        counts: `[BINS]` float64 counts of values that are not exactly zero.
        zeros: count of exact zeros.
        largest: largest magnitude.
    """

    name: str = "tensor"
    exponent: int | None = None
    counts: Tensor = field(default_factory=lambda: torch.zeros(BINS, dtype=torch.float64))
    zeros: float = 0.0
    largest: float = 0.0

    @property
    def bin_width(self) -> float:
        """Width of a bin; a power of two."""
        return math.ldexp(1.0, self._require_exponent()) / BINS

    @property
    def total(self) -> float:
        """Number of values, zeros included."""
        return self.zeros + float(self.counts.sum())

    @property
    def used_bins(self) -> int:
        """Number of bins up to the one of the largest magnitude."""
        return min(int(self.largest / self.bin_width) + 1, BINS)

    def add(self, x: Tensor) -> None:
        """Count every element of a tensor.

        Raises:
            CalibrationError: an element is NaN or infinite.
        """
        if x.numel() == 0:
            return
        magnitudes = x.detach().reshape(-1).abs().to(torch.float32)
        largest = float(magnitudes.max())  # NaN propagates
        if not math.isfinite(largest):
            raise CalibrationError(
                f"{self.name}: got {largest} among the calibration data, need finite values; check "
                "the frames and the weights"
            )
        if largest == 0.0:
            self.zeros += magnitudes.numel()
            return
        self._widen(math.frexp(largest)[1])
        self.largest = max(self.largest, largest)
        for chunk in magnitudes.split(_CHUNK):
            self._count(chunk)

    def merge(self, other: MagnitudeHistogram) -> None:
        """Add the counts of another histogram of the same tensor."""
        self.zeros += other.zeros
        if other.exponent is None:
            return
        self._widen(other.exponent)
        self.counts += _join_bins(other.counts, self._require_exponent() - other.exponent)
        self.largest = max(self.largest, other.largest)

    def _count(self, magnitudes: Tensor) -> None:
        nonzero = int(torch.count_nonzero(magnitudes))
        zeros = magnitudes.numel() - nonzero
        # Two factors: near the end of the float32 range a single one would overflow or vanish.
        # Both products are exact, or so small that they fall into bin 0 either way.
        exponent = self._require_exponent()
        half = -exponent // 2
        scaled = magnitudes * math.ldexp(1.0, half)
        scaled *= math.ldexp(float(BINS), -exponent - half)
        counts = torch.bincount(scaled.to(torch.int32), minlength=BINS).to("cpu", torch.float64)
        counts[0] -= zeros
        self.counts += counts
        self.zeros += zeros

    def _widen(self, exponent: int) -> None:
        if self.exponent is None:
            self.exponent = exponent
        elif exponent > self.exponent:
            self.counts = _join_bins(self.counts, exponent - self.exponent)
            self.exponent = exponent

    def _require_exponent(self) -> int:
        if self.exponent is None:
            seen = "only exact zeros" if self.zeros else "no value at all"
            raise CalibrationError(
                f"{self.name}: got {seen} during calibration, need values that are not zero; "
                "calibrate on more frames, or leave the layers that read this tensor in fp16"
            )
        return self.exponent


def merge_histograms(
    parts: Iterable[Mapping[str, MagnitudeHistogram]],
) -> dict[str, MagnitudeHistogram]:
    """Histograms by tensor of several processes or spans of frames, as one; the parts stay.

    The result is the histogram of all values at once, bit for bit, in whatever order and parts
    they came: bins join exactly, and counts are whole numbers far below 2**53.
    """
    merged: dict[str, MagnitudeHistogram] = {}
    for part in parts:
        for name, histogram in part.items():
            merged.setdefault(name, MagnitudeHistogram(histogram.name)).merge(histogram)
    return merged


def _join_bins(counts: Tensor, doublings: int) -> Tensor:
    if doublings == 0:
        return counts.clone()
    joined = torch.zeros_like(counts)
    group = 1 << min(doublings, BINS.bit_length() - 1)
    joined[: BINS // group] = counts.view(-1, group).sum(1)
    return joined
