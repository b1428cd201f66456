"""docs/performance.md: written from a result, complete or not at all, and current."""

import copy
import importlib
import importlib.util
import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from voxelquant.digest import file_digest

ROOT = Path(__file__).resolve().parents[2]
RESULT = ROOT / "benchmarks" / "results" / "backbone_gpu.json"
PAGE = ROOT / "docs" / "performance.md"
PICTURES = ("performance_time.png", "performance_voxels.png")
NOTES = "A hash table lost: {backbone_ms.fp16:.2f} ms is without it."


@pytest.fixture
def page(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    yield importlib.import_module("performance_page")
    for name in ("performance_page", "performance_tables", "performance_pictures"):
        sys.modules.pop(name, None)


@pytest.fixture
def result() -> dict[str, Any]:
    spec = importlib.util.spec_from_file_location(
        "gpu_result", Path(__file__).with_name("gpu_result.py")
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.make_result()


def test_the_story_has_its_figures(page: Any, result: dict[str, Any]) -> None:
    text = page.page_text(result, NOTES)
    for expected in (
        "one Invented GPU",
        "takes\n9.50 ms of wall time",
        "| fp16, one frame | ≤ 0.45 ms | 0.440 ms | passed |",
        "| int8, one frame | ≤ 0.40 ms | 0.420 ms | **missed** |",
        "| int8 against fp16, batch of 8 | ≥ 1.3× | 1.05× | **missed** |",
        "| fp16 against spconv, batch of 8 | ≥ 4.0× | 21.59× | passed |",
        "| kernel maps | 0.088 | 0.084 |",
        "| `conv_input.0` | convolutions | 0.132 |",
        "| p50 | 91,090 | 0.503 | 0.480 | 10.9 |",
        "| fp8 (not measured: no recipe 'fp8' in this version) |",
        "A hash table lost: 0.44 ms is without it.",
        "--against spconv --frame voxels.npz --counts counts.csv --work-dir",
        "10,000 and the quantiles of counts.csv",
        "the GPU is busy for 0.352 ms of those 0.440 ms (80%)",
        "| fp16 | 256 | 256 | 512 | buffers 128, weights 8 |",
    ):
        assert expected in text, expected
    assert "{" not in text


def test_a_batchs_stages_stand_where_the_result_tells_them(
    page: Any, result: dict[str, Any]
) -> None:
    with_stages = page.page_text(result, NOTES)
    assert "Of all eight frames together, stages one by one:" in with_stages
    del result["batch_stages"]
    without = page.page_text(result, NOTES)
    assert "Of all eight" not in without
    assert with_stages.count("| **replay** |") == 1 + without.count("| **replay** |")


@pytest.mark.parametrize(
    ("path", "name"),
    [
        (("backbone_ms", "spconv_fp16"), "backbone_ms.spconv_fp16"),
        (("commit",), "commit"),
        (("latency", "fp16", "timing", "busy"), "latency.fp16.timing.busy"),
        (("busy_ms", "fp16"), "busy_ms.fp16"),
        (("memory", "int8", "peak"), "memory.int8.peak"),
    ],
)
def test_a_missing_figure_ends_the_page(
    page: Any, result: dict[str, Any], path: tuple[str, ...], name: str
) -> None:
    broken = copy.deepcopy(result)
    place = broken
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = None
    with pytest.raises(page.MissingFigureError, match=f"no figure {re.escape(name)} in the result"):
        page.page_text(broken, NOTES)


def test_notes_cannot_name_figures_that_are_not_there(page: Any, result: dict[str, Any]) -> None:
    with pytest.raises(page.MissingFigureError, match=r"no figure backbone_ms\.fp4"):
        page.page_text(result, "{backbone_ms.fp4:.2f}")


def test_pictures_carry_the_digest_of_their_result(
    page: Any, result: dict[str, Any], tmp_path: Path
) -> None:
    page.draw_pictures(result, tmp_path, "a digest")
    for name in PICTURES:
        with Image.open(tmp_path / name) as picture:
            assert picture.text["Source"] == "a digest"
            assert picture.width > 800


def test_times_are_marked_in_plain_numbers(page: Any, result: dict[str, Any]) -> None:
    axes = importlib.import_module("performance_pictures").draw_growth(page.Figures(result)).axes[0]
    low, high = axes.get_ylim()  # 0.055 ms at 10,000 voxels to 10.9 ms
    marked = [label.get_text() for label in axes.get_yticklabels()]
    assert marked == ["0.1", "0.2", "0.3", "0.5", "1", "2", "5", "10"]
    assert all(low <= float(label) <= high for label in marked)


def test_the_page_and_its_pictures_are_current(page: Any) -> None:
    if not RESULT.exists():
        assert not PAGE.exists(), "docs/performance.md stands without the result it is made from"
        return
    result = json.loads(RESULT.read_text())
    notes = page.NOTES.read_text()
    assert PAGE.read_text() == page.page_text(result, notes), "run benchmarks/performance_page.py"
    for name in PICTURES:
        with Image.open(PAGE.parent / "pictures" / name) as picture:
            assert picture.text["Source"] == file_digest(RESULT), name
