import io

import pytest

from voxelquant.recipes.progress import StageReporter


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_without_a_terminal_one_line_per_finished_stage() -> None:
    stream = io.StringIO()
    reporter = StageReporter(stream)
    with reporter.stage("evaluate", "evaluating float") as advance:
        for done in range(100):
            advance(done + 1, 100)
    assert stream.getvalue().startswith("evaluating float ... ")
    assert stream.getvalue().count("\n") == 1
    assert reporter.seconds["evaluate"] >= 0


def test_on_a_terminal_the_bar_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    stream = Terminal()
    with StageReporter(stream).stage("evaluate", "evaluating float") as advance:
        advance(7, 40)
        advance(40, 40)
    assert "40/40" in stream.getvalue()


def test_an_unknown_total_is_not_shown_as_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    stream = Terminal()
    with StageReporter(stream).stage("calibrate", "calibrating") as advance:
        advance(7, 0)
    assert "7/?" in stream.getvalue()
    assert "7/0" not in stream.getvalue()


def test_the_same_stage_twice_adds_up() -> None:
    reporter = StageReporter(io.StringIO())
    reporter.seconds["evaluate"] = 100.0
    with reporter.stage("evaluate", "evaluating"):
        pass
    assert reporter.seconds["evaluate"] >= 100.0


def test_a_stage_that_fails_is_not_reported_as_done() -> None:
    stream = io.StringIO()
    reporter = StageReporter(stream)
    with pytest.raises(ValueError, match="broken"), reporter.stage("a", "working"):
        raise ValueError("broken")
    assert stream.getvalue() == ""
    assert reporter.seconds == {}
