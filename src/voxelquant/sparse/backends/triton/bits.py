"""Arithmetic on the bits of occupancy words, for use inside of kernels."""

import triton
import triton.language as tl

# The interpreter cannot run an instruction: there the same number is counted by shifts and sums.
_INTERPRETED: tl.constexpr = tl.constexpr(triton.knobs.runtime.interpret)


@triton.jit
def popcount64(word):
    """Number of set bits of uint64 words, int32."""
    if _INTERPRETED:
        return popcount64_by_sums(word)
    else:
        return tl.inline_asm_elementwise(
            "popc.b64 $0, $1;", "=r,l", [word], dtype=tl.int32, is_pure=True, pack=1
        )


@triton.jit
def popcount64_by_sums(word):
    """The same by shifts, masks and sums alone (Warren, Hacker's Delight, section 5-1)."""
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
