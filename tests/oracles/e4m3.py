"""The codes of e4m3 from their bits, and rounding to them: nothing of torch's casts."""

import math

import numpy as np


def value_of(bits: int) -> float:
    """Sign, four bits of exponent with bias 7, three of mantissa; all ones is NaN (2209.05433)."""
    sign = -1.0 if bits & 0x80 else 1.0
    exponent, mantissa = bits >> 3 & 0xF, bits & 0x7
    if exponent == 0xF and mantissa == 0x7:
        return math.nan
    if exponent == 0:
        return sign * mantissa / 8 * 2.0**-6
    return sign * (1 + mantissa / 8) * 2.0 ** (exponent - 7)


# By magnitude: code i has bits i, so an even code has an even mantissa.
MAGNITUDES = np.array([value_of(bits) for bits in range(0x7F)], np.float32)
MIDPOINTS = (MAGNITUDES[1:] + MAGNITUDES[:-1]) / 2  # exact: one more bit of mantissa


def nearest(ratio: np.ndarray) -> np.ndarray:
    """Nearest code of float32 values, a tie to the even one, the largest beyond the range."""
    magnitude = np.abs(ratio)
    above = np.searchsorted(MIDPOINTS, magnitude, side="left")  # midpoints below the value
    tied = (above < len(MIDPOINTS)) & (MIDPOINTS[np.minimum(above, 125)] == magnitude)
    index = above + (tied & (above % 2 == 1))
    return np.copysign(MAGNITUDES[index], ratio)
