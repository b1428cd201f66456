from collections import Counter

import pytest
import torch

from voxelquant.data.hashing import Dice, hash_counters, mix_bits, quarter_uniforms, random_order

MASK = 2**64 - 1


def splitmix64(word: int) -> int:
    """The published finalizer in unbounded integers."""
    word = ((word ^ (word >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    word = ((word ^ (word >> 27)) * 0x94D049BB133111EB) & MASK
    return word ^ (word >> 31)


@pytest.mark.parametrize("word", [0, 1, 2**31, 2**62 + 12345, -1, -(2**63), 2**63 - 1])
def test_the_finalizer_is_splitmix64_bit_for_bit(word: int) -> None:
    mixed = int(mix_bits(torch.tensor([word])))
    assert mixed & MASK == splitmix64(word & MASK)


def test_the_first_output_of_splitmix64_from_state_zero_is_the_published_one() -> None:
    word = int(hash_counters(torch.zeros(1, dtype=torch.int64), torch.zeros(1, dtype=torch.int64)))
    assert word & MASK == 0xE220A8397B1DCDAF


def test_draws_depend_on_scene_seed_and_purpose_but_not_on_the_batch() -> None:
    alone = Dice(5, torch.tensor([3])).uniform("a", 8)
    together = Dice(5, torch.tensor([1, 3, 9])).uniform("a", 8)
    assert torch.equal(alone[0], together[1])
    for other in (
        Dice(5, torch.tensor([4])).uniform("a", 8),
        Dice(6, torch.tensor([3])).uniform("a", 8),
        Dice(5, torch.tensor([3])).uniform("b", 8),
    ):
        assert not torch.isclose(alone, other, atol=1e-4, rtol=0).any()


def test_moments_are_those_of_the_named_distributions() -> None:
    dice, count = Dice(1, torch.tensor([0])), 200_000
    uniform, bell = dice.uniform("u", count, 2.0, 6.0), dice.bell("n", count)
    assert abs(float(uniform.mean()) - 4.0) < 0.02
    assert abs(float(uniform.std()) - 4 / 12**0.5) < 0.01
    assert abs(float(bell.mean())) < 0.015
    assert abs(float(bell.std()) - 1.0) < 0.01
    share = torch.bincount(dice.choice("c", count, [1.0, 2.0, 5.0])[0]) / count
    assert torch.allclose(share, torch.tensor([0.125, 0.25, 0.625]), atol=0.006)


def test_the_quarters_of_a_word_are_independent_uniforms() -> None:
    words = Dice(1, torch.tensor([0])).words("w", 100_000)[0]
    quarters = torch.stack(quarter_uniforms(words))
    assert quarters.min() >= 0
    assert quarters.max() < 1
    correlation = torch.corrcoef(quarters) - torch.eye(4)
    assert correlation.abs().max() < 0.015


@pytest.mark.parametrize("count", [0, 1, 7, 8, 1000])
@pytest.mark.parametrize("key", [0, 123_456_789_012_345, 2**62 - 1])
def test_an_order_is_that_of_hashes(count: int, key: int) -> None:
    words = [splitmix64(step * 0x9E3779B97F4A7C15 & MASK) for step in range(1, count + 1)]
    products = [word * (2 * key + 1) & MASK for word in words]
    hashes = [product - (product >> 63 << 64) >> 32 for product in products]  # signed
    order = random_order(count, key, torch.device("cpu"))
    assert order.tolist() == sorted(range(count), key=hashes.__getitem__)


def test_all_orders_are_as_likely() -> None:
    keys = torch.randint(2**62, (12_000,), generator=torch.Generator().manual_seed(0)).tolist()
    orders = Counter(tuple(random_order(4, key, torch.device("cpu")).tolist()) for key in keys)
    expected = len(keys) / 24
    assert len(orders) == 24
    assert max(abs(times - expected) for times in orders.values()) < 4 * expected**0.5
