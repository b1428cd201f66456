"""Arithmetic on the bits of occupancy words, for use inside of kernels.

Shifts, masks and sums alone: the same functions run compiled and in the interpreter, which has no
`popc` instruction.
"""

import triton
import triton.language as tl


@triton.jit
def popcount64(word):
    """Number of set bits of uint64 words, int32 (Warren, Hacker's Delight, section 5-1)."""
    pairs = word - ((word >> 1) & 0x5555555555555555)
    nibbles = (pairs & 0x3333333333333333) + ((pairs >> 2) & 0x3333333333333333)
    octets = (nibbles + (nibbles >> 4)) & 0x0F0F0F0F0F0F0F0F
    halves = octets + (octets >> 32)
    halves = halves + (halves >> 16)
    halves = halves + (halves >> 8)
    return (halves & 0x7F).to(tl.int32)


@triton.jit
def bits_below(place):
    """uint64 mask of the bits below a place, 0 <= place < 64."""
    one = place.to(tl.uint64) * 0 + 1
    return (one << place.to(tl.uint64)) - 1


@triton.jit
def popcount_small(bits, WIDTH: tl.constexpr):
    """Number of set bits among the lowest `WIDTH`."""
    count = bits & 1
    for place in tl.static_range(1, WIDTH):
        count += (bits >> place) & 1
    return count
