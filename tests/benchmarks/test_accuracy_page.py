"""The accuracy part of docs/results.md: written from a result, and current."""

import copy
import importlib
import json
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def page(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    yield importlib.import_module("accuracy_page")
    for name in ("accuracy_page", "performance_tables"):
        sys.modules.pop(name, None)


def difference(value: float, half_width: float) -> dict[str, Any]:
    interval = {"value": value, "low": value - half_width, "high": value + half_width}
    return {"mAP": interval, "NDS": interval}


def scored(mean_ap: float, lost: float | None = None, half_width: float = 0.001) -> dict[str, Any]:
    row: dict[str, Any] = {"mAP": mean_ap, "NDS": mean_ap + 0.1, "per_class_ap": {"car": mean_ap}}
    return row if lost is None else {**row, "difference": difference(lost, half_width)}


@pytest.fixture
def result() -> dict[str, Any]:
    ring = {"near_m": 0, "far_m": 10, "recall": 0.9, "classes": {"car": {"recall": 0.95}}}
    far = {"near_m": 10, "far_m": 20, "recall": 0.5, "classes": {}}
    ptq = {
        f"ptq_{method}{suffix}": scored(0.6 - lost, -lost)
        for method, lost in (("mse", 0.001), ("max", 0.004), ("percentile", 0.002))
        for suffix in ("", "_16")
    }
    entropy = {f"ptq_entropy{suffix}": scored(0.1, -0.5) for suffix in ("", "_16")}
    return {
        "float": scored(0.6), **ptq, **entropy,
        "int8": scored(0.599, -0.001), "qat": scored(0.598, -0.002),
        "qat_int8": scored(0.598, -0.002), "float_tuned": scored(0.603, 0.003),
        "differences": {"qat - ptq_mse": difference(-0.0005, 0.003)},
        "rings": [ring, far], "frames": 600, "config": "centerpoint_voxel0075", "commit": "0" * 40,
        "seeds": {"calibration": 2, "validation": 3, "training": 5},
        "plan": {"batches": [400, 16], "steps": 1000, "batch_size": 4},
    }  # fmt: skip


def test_real_clouds_stand_at_the_end(page: Any, result: dict[str, Any]) -> None:
    found = {"found": {"float": 9, "int8": 8}, "found_by_both": 7, "points": 1234}
    labelled = {**found, "annotated": 68, "right": {"float": 5, "int8": 4}}
    limits = {"shown_score": 0.3, "matched_m": 2.0, "same_m": 0.5}
    clouds = {"clouds": {"sweeps": found, "key_frame": labelled}, "limits": limits}
    text = page.section_text(result, "", clouds)
    assert "| ten sweeps | 1,234 | – | 9 | 8 | 7 | – | – |" in text
    assert "| key frame | 1,234 | 68 | 9 | 8 | 7 | 5 | 4 |" in text
    assert "score above 0.3;" in text
    assert "In real clouds" not in page.section_text(result, "")


def test_rows_bars_and_rings_have_their_figures(page: Any, result: dict[str, Any]) -> None:
    text = page.section_text(result, "Entropy: {ptq_entropy.mAP:.2f}.")
    for expected in (
        "| float | 60.00 | 70.00 |  |",
        "| PTQ, mse (*simulated*) | 59.90 | 69.90 | -0.10 ± 0.10 |",
        "| best PTQ against float | not more than 0.3 lower | -0.10 (-0.20 to +0.00) | passed |",
        "| QAT against float | not more than 0.2 lower | -0.20 (-0.30 to -0.10) | **missed** |",
        "-0.05 (-0.35 to +0.25) | **missed** (± 0.30 is too wide) |",
        "| method | 400 batches | 16 batches |",
        "| entropy | -50.00 ± 0.10 | -50.00 ± 0.10 |",
        "Entropy: 0.10.",
        "|  | AP | recall, 0–10 m | recall, 10–20 m |",
        "| car | 60.00 | 95.00 | – |",
    ):
        assert expected in text, expected


def test_a_missing_figure_ends_the_page(page: Any, result: dict[str, Any]) -> None:
    broken = copy.deepcopy(result)
    broken["commit"] = None
    with pytest.raises(page.MissingFigureError, match="no figure commit"):
        page.section_text(broken, "")


def test_only_what_stands_between_the_marks_is_replaced(page: Any, result: dict[str, Any]) -> None:
    section = page.section_text(result, "")
    once = page.with_section("# Results\n\nBy hand.\n", section)
    assert once.startswith("# Results\n\nBy hand.\n\n")
    assert page.with_section(once + "More by hand.\n", section) == once + "More by hand.\n"


def test_the_page_is_current(page: Any) -> None:
    text = page.PAGE.read_text()
    if not page.RESULT.exists():
        assert page.BEGIN not in text, "docs/results.md tells a result that is not there"
        return
    result, notes = json.loads(page.RESULT.read_text()), page.NOTES.read_text()
    assert page.section_text(result, notes) in text, "run benchmarks/accuracy_page.py"
