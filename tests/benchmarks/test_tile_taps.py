"""Taps that tiles need: which frame was counted, and which result it may replace."""

import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
REAL_RESULT = ROOT / "benchmarks" / "results" / "tile_taps.json"


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Any]:
    """The script on a machine without the real frame."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    module = importlib.import_module("tile_taps")
    monkeypatch.setattr(module, "REAL_FRAME", tmp_path / "absent.npz")
    yield module
    for name in ("tile_taps", "backbone_cpu"):
        sys.modules.pop(name, None)


def run(benchmark: Any, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["tile_taps.py", *arguments])
    benchmark.main()


def test_a_synthetic_frame_does_not_replace_the_real_ones_result(
    benchmark: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = REAL_RESULT.read_bytes()
    with pytest.raises(SystemExit, match=r"got a synthetic frame, and .* is of nuscenes_voxels"):
        run(benchmark, monkeypatch)
    assert REAL_RESULT.read_bytes() == before


def test_the_frame_is_named_and_figures_are_rounded(
    benchmark: Any,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    row = json.loads(REAL_RESULT.read_text())["maps"][0]
    monkeypatch.setattr(benchmark, "count_maps", lambda coords: [row])
    out = tmp_path / "taps.json"
    for _ in range(2):  # a synthetic result may take the place of another
        run(benchmark, monkeypatch, "--out", str(out))
    assert json.loads(out.read_text())["frame"] == "synthetic"
    shown = capsys.readouterr().out
    assert "frame synthetic, 79,745 voxels" in shown
    assert "tiles of 64 96.6 / 57.3 / 49.3 %; tiles of 128 99.4 / 57.3 / 54.5 %" in shown
    assert f"Written: {out}" in shown


def test_a_frame_that_is_named_must_be_there(
    benchmark: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        run(benchmark, monkeypatch, "--frame", "nowhere.npz")
    assert "got no file nowhere.npz" in capsys.readouterr().err


def test_two_neighbours_are_counted_by_hand(benchmark: Any) -> None:
    """Beside one another along y: each sees itself and the other, a tile of both three taps."""
    coords = torch.tensor([[0, 4, 8, 8], [0, 4, 9, 8]], dtype=torch.int32)
    counted, outputs = benchmark.count_map(coords, benchmark.SHAPE, benchmark.SUBM)
    assert len(outputs) == counted["rows"] == 2
    assert counted["groups"] == 1
    assert counted["seen_by_a_row"] == pytest.approx(2 / 27)
    assert counted["tile_of_64"]["in_order"] == pytest.approx(3 / 27)
    assert counted["tile_of_64"]["in_groups"] == pytest.approx(9 / 27)
