"""How far an approximation is from its reference: SQNR in dB and relative L2."""

import math

import torch
from torch import Tensor


def sqnr_db(reference: Tensor, approximation: Tensor) -> float:
    """Signal to quantization noise ratio, `10 log10(Σ ref² / Σ (ref - approx)²)` in dB.

    Returns `inf` when the two are equal and `nan` when the reference is all zero but the
    approximation is not (there is no signal to compare with).

    >>> sqnr_db(torch.tensor([1.0, 1.0]), torch.tensor([1.0, 1.0]))
    inf
    """
    signal = reference.double().square().sum().item()
    noise = (reference.double() - approximation.double()).square().sum().item()
    if noise == 0.0:
        return math.inf
    if signal == 0.0:
        return math.nan
    return 10.0 * math.log10(signal / noise)


def relative_l2(reference: Tensor, approximation: Tensor) -> float:
    """Relative error `‖ref - approx‖ / ‖ref‖`; 0 when both are zero, `inf` for a zero reference."""
    noise = torch.linalg.vector_norm(reference.double() - approximation.double()).item()
    signal = torch.linalg.vector_norm(reference.double()).item()
    if noise == 0.0:
        return 0.0
    return noise / signal if signal > 0.0 else math.inf
