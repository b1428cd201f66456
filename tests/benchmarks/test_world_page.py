"""docs/world.md: written from a result alone, and current."""

import importlib
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from voxelquant.digest import file_digest

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results"
RESULT = RESULTS / "world_cpu.json"
PAGE = ROOT / "docs" / "world.md"
MODULES = (
    "world_report",
    "world_sections",
    "world_tables",
    "world_gaps",
    "world_pictures",
    "world_box_pictures",
    "world_scenes",
)


@pytest.fixture
def page(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    yield importlib.import_module("world_report")
    for name in MODULES:
        sys.modules.pop(name, None)


@pytest.fixture
def result() -> dict[str, Any]:
    content: dict[str, Any] = json.loads(RESULT.read_text())
    return content


def test_the_page_and_its_pictures_are_current(page: Any, result: dict[str, Any]) -> None:
    results = [json.loads(path.read_text()) for path in sorted(RESULTS.glob("world_*.json"))]
    text = page.page_text(result, results, page.NOTES.read_text())
    assert PAGE.read_text() == text, "run benchmarks/world_report.py"
    for name in page.draw_pictures(result):
        with Image.open(PAGE.parent / "pictures" / name) as picture:
            assert picture.text["Source"] == file_digest(RESULT), name


def test_every_picture_of_the_page_stands_in_the_docs(page: Any) -> None:
    named = re.findall(r"\]\((pictures/\w+\.png)\)", PAGE.read_text())
    assert len(named) == 7
    assert all((PAGE.parent / name).exists() for name in named)


def test_every_number_of_the_gap_table_is_of_the_result(page: Any, result: dict[str, Any]) -> None:
    frame = result["nuscenes"]["frames"]["scene 0061"]
    ours = result["synthetic"]["histograms"]["returns_over_beam"]
    frame["histograms"]["returns_over_beam"] = ours["share"]
    rows = [line for line in page.gap_table(result).splitlines() if "scene 0061" in line]
    beams = next(row for row in rows if "returns over beam" in row)
    assert "| 0.0 % |" in beams


def test_sight_above_and_below_the_sensor(page: Any, result: dict[str, Any]) -> None:
    measure = result["measures"]["histograms"]["returns_over_height"]
    bins = len(measure["edges"]) - 1
    above = measure["edges"].index(0)
    result["synthetic"]["histograms"]["returns_over_height"]["share"] = [
        {above: 0.03, above - 1: 0.01}.get(place, 0.0) for place in range(bins)
    ]
    result["synthetic"]["answers"]["mean"] = [1.0] * 21 + [0.5] * 11
    lines = page.sight_table(result).splitlines()
    assert lines[0].startswith("| key frame | synthetic | ten-sweep cloud | scene 0061 |")
    assert lines[2].startswith("| returns 0 to 0.25 m above the sensor | 3.0 % |")
    assert lines[3].startswith("| returns 0 to 0.25 m below it | 1.0 % |")
    assert lines[4].startswith("| firings of beams 21 to 31 that come back | 50.0 % |")


def test_a_class_without_a_curve_says_why(page: Any, result: dict[str, Any]) -> None:
    bicycles = result["synthetic"]["boxes"]["bicycle"]["points_by_distance"]
    assert max(sum(counts[1:]) for counts in bicycles) < page.FEWEST_BOXES
    panels = {axes.get_title(): axes for axes in page.draw_points(result).axes}
    said = {name: [text.get_text() for text in axes.texts] for name, axes in panels.items()}
    assert said["bicycle"] == ["fewer than 20 synthetic\nboxes in any 5 m"]
    assert said["car"] == []


def test_real_figures_are_no_points(result: dict[str, Any]) -> None:
    """Of licensed data nothing but histograms and single figures: no list is longer than bins."""
    bins = {name: len(m["edges"]) - 1 for name, m in result["measures"]["histograms"].items()}
    for frame in result["nuscenes"]["frames"].values():
        assert set(frame) == {"histograms", "scalars"}
        for name, shares in frame["histograms"].items():
            assert len(shares) == bins[name]


def test_a_result_without_real_figures_makes_no_page(
    page: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(page, "RESULT", tmp_path / "world_cpu.json")
    page.RESULT.write_text("{}")
    with pytest.raises(SystemExit, match="holds no figures of nuScenes"):
        page.main()
