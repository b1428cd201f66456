import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from voxelquant.evaluation.gpu_timing import covered_length, measure_in_order

SPANS = st.lists(st.tuples(st.integers(0, 40), st.integers(0, 12)), max_size=12)


@given(SPANS)
def test_overlaps_count_once(starts_and_lengths: list[tuple[int, int]]) -> None:
    spans = [(begin, begin + length) for begin, length in starts_and_lengths]
    covered = {tick for begin, end in spans for tick in range(begin, end)}
    assert covered_length(spans) == len(covered)


def test_steps_run_whole_passes_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """Step `b` takes 5 ms only after `a`: a pass that left `a` out would find another time."""
    now_s = 0.0
    ran: list[str] = []

    def a() -> None:
        nonlocal now_s
        now_s += 2e-3
        ran.append("a")

    def b() -> None:
        nonlocal now_s
        now_s += 5e-3 if ran[-1] == "a" else 1.0
        ran.append("b")

    monkeypatch.setattr(time, "perf_counter", lambda: now_s)
    assert measure_in_order([a, b], device="cpu", warmup=2, repeats=3) == pytest.approx([2, 5])
    assert ran == ["a", "b"] * 5
