import runpy
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "custom_backbone.py"


def test_the_example_ends_in_a_file_that_equals_the_engine(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert runpy.run_path(str(EXAMPLE))["main"](tmp_path) is True
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ptq.safetensors", "scn.onnx"]
    printed = capsys.readouterr().out
    decibels = float(printed.partition("against float: ")[2].partition(" dB")[0])
    assert decibels > 40  # measured: 52
