"""Counter-based randomness: a value is a pure function of (seed, scene, purpose, counter).

No generator state exists, so frames can be made in any order, in any batch and on any device with
the same result. Only integer arithmetic and exact conversions stand between counter and value.
Source: splitmix64 (Steele, Lea, Flood 2014, "Fast splittable pseudorandom number generators").
"""

import zlib
from functools import lru_cache

import torch
from torch import Tensor

_GOLDEN = -0x61C8864680B583EB  # 0x9E3779B97F4A7C15 as int64
_MIX_1 = -0x40A7B892E31B1A47  # 0xBF58476D1CE4E5B9
_MIX_2 = -0x6B2FB644ECCEEE15  # 0x94D049BB133111EB


def mix_bits(words: Tensor) -> Tensor:
    """Finalizer of splitmix64: scatters int64 counters over all 64 bits (multiplication wraps)."""
    words = (words ^ _shift_right(words, 30)) * _MIX_1
    words = (words ^ _shift_right(words, 27)) * _MIX_2
    return words ^ _shift_right(words, 31)


def hash_counters(keys: Tensor, counters: Tensor) -> Tensor:
    """Independent 64-bit words for each pair (key, counter), broadcast against each other."""
    return mix_bits(keys + (counters + 1) * _GOLDEN)


def purpose_code(purpose: str) -> int:
    """Number of a named stream of draws; the name is its only identity."""
    return zlib.crc32(purpose.encode())


def quarter_uniforms(words: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Four float32 uniforms in [0, 1) from the four 16-bit quarters of each word."""
    quarters = [((words >> shift) & 0xFFFF).to(torch.float32) for shift in (0, 16, 32, 48)]
    first, second, third, fourth = (quarter * 2.0**-16 for quarter in quarters)
    return first, second, third, fourth


def _shift_right(words: Tensor, bits: int) -> Tensor:
    """Logical shift; torch's `>>` repeats the sign bit."""
    return (words >> bits) & ((1 << (64 - bits)) - 1)


def random_order(count: int, key: int, device: torch.device) -> Tensor:
    """A permutation of 0 ... count - 1, [count] int64, the same on every device.

    Numbers in the order of 32-bit hashes; of equal ones the first comes first. A number's hash is
    the upper half of its own random word times an odd factor (multiply-shift; Dietzfelbinger 1997,
    "A reliable randomized algorithm for the closest-pair problem").

    Args:
        count: numbers.
        key: drawn at random from 0 ... 2**62 - 1.
        device: where the order is made.

    Example:
        >>> random_order(6, 5, torch.device("cpu"))
        tensor([5, 3, 0, 1, 4, 2])
    """
    # Words up to the next power of two: few sizes are kept, for clouds of any.
    words = _own_words(1 << count.bit_length(), device)[:count]
    hashes = ((words * (2 * key + 1)) >> 32).to(torch.int32)  # half as long to sort as 64 bits
    return torch.argsort(hashes, stable=True)


@lru_cache(maxsize=64)
def _own_words(count: int, device: torch.device) -> Tensor:
    """A random 64-bit word for each number, always the same, [count]; shared."""
    return mix_bits(_steps(count, device)[0])


@lru_cache(maxsize=1024)
def _steps(count: int, device: torch.device) -> Tensor:
    """What `hash_counters` adds to a key for each of the first counters, [1, count]; shared."""
    return (torch.arange(1, count + 1, device=device) * _GOLDEN)[None]


class Dice:
    """Named streams of random numbers for a batch of scenes; every draw is float64.

    Args:
        seed: world seed.
        scenes: scene numbers, [b] int64; one row of every draw each.
    """

    def __init__(self, seed: int, scenes: Tensor) -> None:
        numbers = scenes.cpu()
        own_keys = hash_counters(mix_bits(torch.full_like(numbers, seed)), numbers)[:, None]
        self._hold(own_keys, scenes.device)

    def _hold(self, own_keys: Tensor, device: torch.device) -> None:
        # Keys of a purpose are mixed by the host, for a batch of scenes the sooner; draws are not.
        self._own_keys = own_keys  # [b, 1], in main memory
        self.keys = own_keys.to(device)  # [b, 1]

    def branch(self, name: str) -> "Dice":
        """Other dice for the same scenes: what draws from them twice draws something else."""
        other = Dice.__new__(Dice)
        other._hold(self._keys_of(f"branch {name}"), self.device)
        return other

    @property
    def device(self) -> torch.device:
        """Where the draws live."""
        return self.keys.device

    def words(self, purpose: str, count: int) -> Tensor:
        """Raw 64-bit words, [b, count] int64."""
        keys = self._keys_of(purpose).to(self.device, non_blocking=True)
        return mix_bits(keys + _steps(count, self.device))

    def _keys_of(self, purpose: str) -> Tensor:
        """`hash_counters` of the keys and the purpose's code, which is one number, [b, 1] int64."""
        step = (purpose_code(purpose) + 1) * _GOLDEN
        return mix_bits(self._own_keys + ((step + 2**63) % 2**64 - 2**63))

    def uniform(self, purpose: str, count: int, low: float = 0.0, high: float = 1.0) -> Tensor:
        """Uniform in [low, high), [b, count]."""
        unit = _shift_right(self.words(purpose, count), 11).to(torch.float64) * 2.0**-53
        return low + unit * (high - low)

    def bell(self, purpose: str, count: int) -> Tensor:
        """Zero mean, unit deviation, bounded by ±3.46: the sum of four 16-bit uniforms, [b, count].

        A sum is exact on every device; a true normal would need `log` and `cos`, which are not.
        """
        words = self.words(purpose, count)
        quarters = [(words >> shift) & 0xFFFF for shift in (0, 16, 32, 48)]
        total = quarters[0] + quarters[1] + quarters[2] + quarters[3]
        return (total.double() * 2.0**-16 - 2.0) * 3.0**0.5

    def chance(self, purpose: str, count: int, probability: float) -> Tensor:
        """True with the given probability, [b, count] bool."""
        return self.uniform(purpose, count) < probability

    def choice(self, purpose: str, count: int, weights: list[float]) -> Tensor:
        """Index drawn in proportion to `weights`, [b, count] int64."""
        edges = [sum(weights[:index]) / sum(weights) for index in range(1, len(weights))]
        unit = self.uniform(purpose, count)
        index_drawn = torch.zeros_like(unit, dtype=torch.int64)
        for edge in edges:
            index_drawn = index_drawn + (unit >= edge)
        return index_drawn
