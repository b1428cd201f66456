import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from voxelquant.cli import main
from voxelquant.errors import BadInputError
from voxelquant.recipes import report as recipe
from voxelquant.report.html import render_report
from voxelquant.report.model import (
    DatasetSummary,
    EngineScore,
    Execution,
    FramePicture,
    LayerParity,
    RunReport,
    TensorHistogram,
)


@pytest.fixture
def small_report() -> RunReport:
    boxes = np.array([[1, 2, 0, 2, 4, 1.5, 0, 0, 0.3]], dtype=np.float32)
    points = np.array([[1, 2, -1.5, 10, 0], [3, 4, 0.5, 20, 0.05]], dtype=np.float32)
    unmeasured = {"car": 0.5, "bus": math.nan}
    return RunReport(
        title="a run",
        summary="small",
        dataset=DatasetSummary("world", "val", True, 1, 1),
        scores=(
            EngineScore("float", Execution.FLOAT, 0.5, 0.6, unmeasured, {"mATE": 0.2}),
            EngineScore("int8", Execution.EXECUTED, 0.49, 0.59, unmeasured, {"mATE": 0.2}),
        ),
        calibration={"method": "mse"},
        pictures=(FramePicture("frame", points, boxes, boxes, boxes[:0]),),
        histograms=(TensorHistogram("t", np.array([5.0, 1.0]), 2.0, 1.0, "mse"),),
        layers=(LayerParity("a", "conv", "int8", 30.0, 0.03, 100, 1, 1, True),),
        seconds={"total": 1.5},
        files_bytes={"scn.onnx": 1000},
        provenance={"versions": {"python": "3.11"}, "seed": 3},
    )


def test_the_page_can_be_drawn_again_from_the_folder(
    small_report: RunReport, tmp_path: Path
) -> None:
    recipe.save_report_data(small_report, tmp_path)
    result = CliRunner().invoke(main, ["report", str(tmp_path)])
    assert result.exit_code == 0
    assert result.stdout == f"{tmp_path / 'report.html'}\n"
    assert (tmp_path / "report.html").read_text() == render_report(small_report)
    assert {path.name for path in tmp_path.iterdir()} == {"report.html", "report_data.npz"}


def test_a_folder_without_a_run_is_one_line(tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["report", str(tmp_path / "nowhere")])
    assert result.exit_code == 2
    assert result.stderr.count("\n") == 1
    assert "got no report_data.npz" in result.stderr


def test_a_truncated_file_is_bad_input(small_report: RunReport, tmp_path: Path) -> None:
    path = recipe.save_report_data(small_report, tmp_path)
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(BadInputError, match="damaged"):
        recipe.write_report(tmp_path)
    assert not (tmp_path / "report.html").exists()


def test_another_format_is_refused(
    small_report: RunReport, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recipe, "FORMAT", 2)
    recipe.save_report_data(small_report, tmp_path)
    monkeypatch.setattr(recipe, "FORMAT", 1)
    with pytest.raises(BadInputError, match="got format 2, need 1"):
        recipe.load_report_data(tmp_path)


def test_nothing_is_lost(small_report: RunReport, tmp_path: Path) -> None:
    recipe.save_report_data(small_report, tmp_path)
    loaded = recipe.load_report_data(tmp_path)
    for kept, given in zip(loaded.pictures, small_report.pictures, strict=True):
        for name in ("points", "ground_truth", "float_boxes", "int8_boxes"):
            np.testing.assert_array_equal(getattr(kept, name), getattr(given, name))
    np.testing.assert_array_equal(loaded.histograms[0].counts, small_report.histograms[0].counts)
    assert math.isnan(loaded.scores[0].class_ap["bus"])
    assert loaded.scores[1].execution is Execution.EXECUTED
    without_arrays = {"pictures": (), "histograms": (), "scores": ()}
    assert replace(loaded, **without_arrays) == replace(small_report, **without_arrays)
