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
    assert list(parts) == ["frames", "prepare", "forward", "loss", "backward", "update"]
    assert min(parts.values()) > 0
    assert measured["sum_of_parts_ms"] == pytest.approx(sum(parts.values()))
    assert measured["step_ms"] > 0
    assert {"commit", "machine", "versions"} <= set(result)
