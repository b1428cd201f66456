"""Number formats: which codes exist and how a range maps onto them."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class IntFormat:
    """A signed symmetric integer format with zero point 0, `real ≈ scale * code`.

    The full two's-complement range is used when clamping (`-128..127` for int8), while the scale
    maps `amax` onto the largest positive code: `scale = amax / 127`.
    """

    bits: int

    def __post_init__(self) -> None:
        if not 2 <= self.bits <= 8:
            raise ValueError(f"got {self.bits} bits, need 2..8: codes are stored in torch.int8")

    @property
    def qmin(self) -> int:
        """Smallest code."""
        return -(1 << (self.bits - 1))

    @property
    def qmax(self) -> int:
        """Largest code; the code that `amax` maps to."""
        return (1 << (self.bits - 1)) - 1

    @property
    def code_of_amax(self) -> float:
        """The magnitude that `amax` maps to, in code units."""
        return float(self.qmax)


@dataclass(frozen=True)
class Float8Format:
    """An 8-bit float format, `scale = amax / largest finite value` (Micikevicius, 2209.05433)."""

    dtype: torch.dtype = torch.float8_e4m3fn

    @property
    def code_of_amax(self) -> float:
        """Largest finite value of the format (448 for e4m3fn)."""
        return torch.finfo(self.dtype).max


NumberFormat = IntFormat | Float8Format

INT8 = IntFormat(8)
INT4 = IntFormat(4)
FP8_E4M3 = Float8Format()


def scale_from_amax(amax: Tensor, fmt: NumberFormat = INT8) -> Tensor:
    """Step size of a range: `fp32(amax / 127)` for int8.

    Args:
        amax: largest magnitude of the range, any shape, > 0.
        fmt: the number format.

    Returns:
        float32 tensor of the shape of `amax`.

    >>> scale_from_amax(torch.tensor(127.0)).item()
    1.0
    """
    return amax.to(torch.float32) / torch.tensor(fmt.code_of_amax, device=amax.device)
