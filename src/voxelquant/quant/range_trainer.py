"""Ranges in training: frozen, followed or learned, in step on every process, and frozen at last.

A forward never moves a range: what it saw is kept until the optimiser has stepped, and then all
ranges move together. So a checkpoint between two steps holds everything, and every process applies
the same statistics.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from voxelquant.quant.insert import quantization_of
from voxelquant.quant.modules import QuantConvBase
from voxelquant.quant.quantizer import TensorQuantizer, weight_amax
from voxelquant.quant.recipe import RangeTraining
from voxelquant.sparse import convolution_of


class RangeTrainer:
    """Moves the ranges of a calibrated fake-quant model while it trains.

    Args:
        qmodel: calibrated result of `quantize`, or of `QuantState.apply`; its learned ranges become
            parameters here, so the optimiser is built afterwards.
        policy: what becomes of the ranges; the `qat` section of a recipe.
        total_steps: length of the training, of which `policy.freeze_after` is a share.

    Attributes:
        learned: the parameters of learned ranges; they take no weight decay.

    Raises:
        CalibrationError: a range was never calibrated.
    """

    def __init__(self, qmodel: nn.Module, policy: RangeTraining, total_steps: int) -> None:
        self.policy = policy
        self.frozen_from = int(policy.freeze_after * total_steps)
        self._followed: list[TensorQuantizer] = []
        self._weights = quantized_weights(qmodel)
        self.learned: list[nn.Parameter] = []
        quantizers = quantization_of(qmodel).tensor_quantizers
        for quantizer in quantizers.values():
            if policy.activation_ranges == "learned":
                self.learned.append(quantizer.learn())
            elif policy.activation_ranges == "ema":
                quantizer.start_tracking()
                self._followed.append(quantizer)
        if policy.weight_ranges == "learned":
            self.learned += [quantizer.learn() for quantizer, _ in self._weights]

    def before_update(self, step: int) -> None:
        """After the backward pass of a step, counted from 0: frozen ranges get no gradient."""
        if step >= self.frozen_from:
            for growth in self.learned:
                growth.grad = None

    @torch.no_grad()
    def after_update(
        self, step: int, reduce_max: Callable[[Tensor], Tensor] = lambda values: values
    ) -> None:
        """After the optimiser has made a step, counted from 0.

        Args:
            step: the step that was made.
            reduce_max: elementwise maximum of a tensor over all processes.
        """
        if step >= self.frozen_from:
            return
        if self._followed:
            self._follow(reduce_max)
        if self.policy.weight_ranges == "max":
            for quantizer, weight in self._weights:
                quantizer.stored_amax.copy_(weight_amax(weight, quantizer.spec.fmt))

    def _follow(self, reduce_max: Callable[[Tensor], Tensor]) -> None:
        # One exchange for all tensors.
        seen = [q.largest for q in self._followed if q.largest is not None]
        largest = reduce_max(torch.stack(seen))
        share = self.policy.ema_momentum
        for quantizer, value in zip(self._followed, largest, strict=True):
            amax = quantizer.stored_amax
            # A step in which nothing was active has nothing to say of the range.
            moved = torch.where(value > 0.0, (1.0 - share) * amax + share * value, amax)
            amax.copy_(moved)
            quantizer.start_tracking()


def quantized_weights(qmodel: nn.Module) -> list[tuple[TensorQuantizer, Tensor]]:
    """Quantizer and weight of every convolution that computes in integers."""
    return [
        (module.weight_quantizer, conv.weight)
        for module in qmodel.modules()
        if isinstance(module, QuantConvBase) and module.weight_quantizer is not None
        if (conv := convolution_of(module)) is not None
    ]
