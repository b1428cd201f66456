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
def reached_bits(word, KERNEL: tl.constexpr, STRIDE: tl.constexpr, PADDING: tl.constexpr):
    """Bit o of the result: whether any of the bits `s * o - p ... s * o - p + k - 1` is set.

    What is asked of bits beyond the word's ends is asked in vain.
    """
    seen = word & 0
    for tap in tl.static_range(KERNEL):
        if tap >= PADDING:
            seen |= word >> (tap - PADDING)
        else:
            seen |= word << (PADDING - tap)
    # Now bit s * o answers for o.
    if STRIDE == 1:
        return seen
    elif STRIDE == 2:
        return even_bits(seen)
    else:
        found = word & 0
        for place in tl.static_range((63 + STRIDE) // STRIDE):
            found |= ((seen >> (place * STRIDE)) & 1) << place
        return found


@triton.jit
def even_bits(word):
    """Bits 0, 2, 4, ... of uint64 words side by side (Warren, Hacker's Delight, section 7-4)."""
    word = word & 0x5555555555555555
    word = (word | (word >> 1)) & 0x3333333333333333
    word = (word | (word >> 2)) & 0x0F0F0F0F0F0F0F0F
    word = (word | (word >> 4)) & 0x00FF00FF00FF00FF
    word = (word | (word >> 8)) & 0x0000FFFF0000FFFF
    return (word | (word >> 16)) & 0x00000000FFFFFFFF


@triton.jit
def popcount_small(bits, WIDTH: tl.constexpr):
    """Number of set bits among the lowest `WIDTH`."""
    count = bits & 1
    for place in tl.static_range(1, WIDTH):
        count += (bits >> place) & 1
    return count
