"""Observers: statistics only, no range, no rounding."""

from __future__ import annotations

import weakref

from torch import Tensor

from voxelquant.quant.histogram import MagnitudeHistogram


class Observer:
    """Counts the tensors that pass a quantizer, each once in a forward.

    Several consumers share one quantizer, so the same tensor object arrives several times in one
    forward; counting it again would only cost time. A frame that is given twice counts twice, or
    counts would depend on the order of the frames.

    Attributes:
        histogram: the statistics.
        watched: whether a tensor arrived in this forward.
    """

    def __init__(self, histogram: MagnitudeHistogram) -> None:
        self.histogram = histogram
        self.begin_forward()

    def begin_forward(self) -> None:
        """Tensors that arrive from now on belong to another forward."""
        self.watched = False
        self._last: weakref.ReferenceType[Tensor] | None = None

    def watch(self, x: Tensor) -> None:
        """Count a tensor, unless it is the one that was counted last."""
        self.watched = True
        if self._last is not None and self._last() is x:
            return
        self._last = weakref.ref(x)
        self.histogram.add(x)
