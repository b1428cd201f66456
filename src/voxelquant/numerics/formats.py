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
    def name(self) -> str:
        """Short name, for messages: `int8`."""
        return f"int{self.bits}"

    @property
    def dtype(self) -> torch.dtype:
        """How codes are stored; narrower ones take a byte as well."""
        return torch.int8

    @property
    def code_of_amax(self) -> float:
        """The magnitude that `amax` maps to, in code units."""
        return float(self.qmax)

    @property
    def finest_code_gap(self) -> float:
        """Least distance of two codes, in code units."""
        return 1.0


@dataclass(frozen=True)
class Float8Format:
    """An 8-bit float format, `scale = amax / largest finite value` (Micikevicius, 2209.05433).

    e4m3fn has 3 bits of mantissa, subnormals down to `2**-9`, no infinity, and one NaN of each
    sign. A code is the float itself; its neighbours are a sixteenth to an eighth of it away,
    whatever the range, until it is subnormal.
    """

    dtype: torch.dtype = torch.float8_e4m3fn

    @property
    def name(self) -> str:
        """Short name, for messages."""
        return "fp8"

    @property
    def code_of_amax(self) -> float:
        """Largest finite value of the format (448 for e4m3fn)."""
        return torch.finfo(self.dtype).max

    @property
    def finest_code_gap(self) -> float:
        """Least distance of two codes, in code units: the smallest subnormal."""
        return torch.finfo(self.dtype).smallest_normal * torch.finfo(self.dtype).eps


NumberFormat = IntFormat | Float8Format

INT8 = IntFormat(8)
INT4 = IntFormat(4)
FP8_E4M3 = Float8Format()


def format_of_codes(codes: Tensor) -> NumberFormat | None:
    """The 8-bit format of a tensor of codes by its dtype; None for a tensor of values.

    >>> format_of_codes(torch.zeros(1, dtype=torch.int8)) == INT8
    True
    """
    return {fmt.dtype: fmt for fmt in (INT8, FP8_E4M3)}.get(codes.dtype)


def scale_from_amax(amax: Tensor, fmt: NumberFormat = INT8) -> Tensor:
    """Step size of a range: `fp32(amax / 127)` for int8, `fp32(amax / 448)` for fp8.

    Args:
        amax: largest magnitude of the range, any shape, > 0.
        fmt: the number format.

    Returns:
        float32 tensor of the shape of `amax`.

    >>> scale_from_amax(torch.tensor(127.0)).item()
    1.0
    """
    return amax.to(torch.float32) / torch.tensor(fmt.code_of_amax, device=amax.device)
