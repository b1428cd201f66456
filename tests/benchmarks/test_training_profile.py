"""The profile of a training step, small, on a CPU: it runs, and its parts add up."""

import importlib
import json
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
SMALL = ["--config", "centerpoint_tiny", "--device", "cpu", "--no-amp", "--class-mix", "balanced"]
SMALL += ["--batch-size", "1", "--pool-size", "1", "--turnover", "1"]
SMALL += ["--warmup", "0", "--repeats", "1"]


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    module = importlib.import_module("training_profile")
    monkeypatch.setattr(module, "GENERATED_AT_ONCE", 1)
    return module


def test_parts_and_whole_steps_are_measured(benchmark: Any, tmp_path: Path) -> None:
    out = tmp_path / "profile.json"
    benchmark.main([*SMALL, "--out", str(out)])
    result = json.loads(out.read_text())
    assert result["setting"]["class_mix"] == "balanced"
    measured = result["measured"]
    parts = measured["parts_ms"]
    assert list(parts) == ["frames", "prepare", "forward", "backward", "update"]
    assert min(parts.values()) > 0
    assert measured["sum_of_parts_ms"] == pytest.approx(sum(parts.values()))
    assert list(measured["host_ms"]) == list(parts)
    assert all(0 < measured["host_ms"][name] <= parts[name] for name in parts)
    assert measured["step_ms"] > 0
    assert {"commit", "machine", "versions"} <= set(result)


def test_steps_go_on_in_one_thread_when_the_other_has_ended(benchmark: Any) -> None:
    """What is profiled is the same work."""
    setting = benchmark.Setting(
        config=benchmark.load_config("centerpoint_tiny"),
        batch_size=1,
        amp=False,
        graphed=True,
        joined=True,
        class_mix="balanced",
        pool_size=1,
        turnover=1,
        warmup=0,
        repeats=1,
    )
    with benchmark.join_world("cpu") as world:
        parts = benchmark.StepParts(setting, world)
        parts.whole()
        parts.stop()
        parts.alone()
    assert parts.step == 2
