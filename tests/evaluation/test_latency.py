import time

import pytest

from voxelquant.errors import BadInputError
from voxelquant.evaluation.latency import measure_latency


def test_calls_and_quantiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that only the timed call moves forward: 1, 2, ... ms, after two warm-up calls."""
    now_s = 0.0
    calls = 0

    def run() -> None:
        nonlocal now_s, calls
        calls += 1
        now_s += 1.0 if calls <= 2 else 1e-3 * (calls - 2)

    monkeypatch.setattr(time, "perf_counter", lambda: now_s)
    latency = measure_latency(run, warmup=2, repeats=11)
    assert calls == 13
    assert latency.median_ms == pytest.approx(6)
    assert (latency.p20_ms, latency.p80_ms) == pytest.approx((3, 9))
    assert latency.repeats == 11
    assert str(latency) == "6.00 ms (3.00..9.00, 11x)"


def test_real_time_is_measured() -> None:
    latency = measure_latency(lambda: time.sleep(0.01), warmup=0, repeats=3)
    assert latency.p20_ms >= 10


@pytest.mark.parametrize(("warmup", "repeats"), [(0, 1), (0, 0), (-1, 5)])
def test_a_spread_needs_two_calls(warmup: int, repeats: int) -> None:
    with pytest.raises(BadInputError, match=f"warmup {warmup} and repeats {repeats}"):
        measure_latency(lambda: None, warmup=warmup, repeats=repeats)


def test_what_comes_before_a_call_is_not_in_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = 0.0
    order = []

    def spend(name: str, seconds: float) -> None:
        nonlocal now_s
        now_s += seconds
        order.append(name)

    monkeypatch.setattr(time, "perf_counter", lambda: now_s)
    latency = measure_latency(
        lambda: spend("call", 2e-3), warmup=1, repeats=3, before=lambda: spend("before", 1.0)
    )
    assert latency.p20_ms == pytest.approx(2)
    assert latency.p80_ms == pytest.approx(2)
    assert order == ["call", *["before", "call"] * 3]
