import signal
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from voxelquant import __version__, cli
from voxelquant.errors import AnotherProcessFailedError, DatasetError, MissingDependencyError


@pytest.fixture
def failing_verb(monkeypatch: pytest.MonkeyPatch) -> list[BaseException]:
    """A verb `doctor` that raises whatever the test puts into the returned list."""
    to_raise: list[BaseException] = []

    @click.command()
    def command() -> None:
        raise to_raise[0]

    monkeypatch.setattr(cli.VerbGroup, "get_command", lambda self, ctx, name: command)
    return to_raise


@pytest.mark.parametrize("error", [DatasetError, MissingDependencyError])
def test_what_the_user_can_mend_is_one_line_and_exit_2(
    failing_verb: list[BaseException], error: type[Exception]
) -> None:
    failing_verb.append(error("no tables in data/;\n  run voxelquant synth"))
    result = CliRunner().invoke(cli.main, ["doctor"])
    assert result.exit_code == 2
    assert result.stderr == "voxelquant: no tables in data/; run voxelquant synth\n"
    assert result.stdout == ""


def test_a_process_that_ends_because_another_failed_leaves_in_silence_by_itself(
    failing_verb: list[BaseException],
) -> None:
    failing_verb.append(AnotherProcessFailedError("it says why"))
    before = signal.getsignal(signal.SIGTERM)
    try:
        result = CliRunner().invoke(cli.main, ["doctor"])
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_IGN  # torchrun would end it
    finally:
        signal.signal(signal.SIGTERM, before)
    assert result.exit_code == 2
    assert result.output == ""


def test_our_own_defects_keep_their_traceback(failing_verb: list[BaseException]) -> None:
    failing_verb.append(RuntimeError("a defect"))
    result = CliRunner().invoke(cli.main, ["doctor"])
    assert isinstance(result.exception, RuntimeError)


def test_an_interrupt_exits_130(failing_verb: list[BaseException]) -> None:
    failing_verb.append(KeyboardInterrupt())
    result = CliRunner().invoke(cli.main, ["doctor"])
    assert result.exit_code == 130
    assert result.stderr == "voxelquant: interrupted\n"


def test_help_names_every_verb_in_order() -> None:
    result = CliRunner().invoke(cli.main, ["--help"])
    assert result.exit_code == 0
    listed = result.stdout.partition("Commands:")[2].splitlines()
    assert tuple(line.split()[0] for line in listed if line.strip()) == cli.VERBS


def test_every_verb_file_is_listed() -> None:
    folder = Path(cli.__file__).parent
    files = {path.stem for path in folder.glob("*.py") if "\ndef command(" in path.read_text()}
    assert files == set(cli.VERBS)


def test_unknown_verb_is_bad_usage() -> None:
    result = CliRunner().invoke(cli.main, ["quantise"])
    assert result.exit_code == 2
    assert "No such command 'quantise'" in result.stderr


def test_version() -> None:
    result = CliRunner().invoke(cli.main, ["--version"])
    assert result.stdout == f"voxelquant, version {__version__}\n"


def test_doctor_reports_and_exits_0() -> None:
    result = CliRunner().invoke(cli.main, ["doctor"])
    assert result.exit_code == 0
    for subject in ("python", "torch", "cuda", "triton", "nuscenes-devkit", "disk"):
        assert f" {subject} " in result.stdout


def test_of_several_processes_only_the_first_says_what_all_would(monkeypatch, run) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank, speaks in (("0", True), ("1", False)):
        monkeypatch.setenv("RANK", rank)
        assert bool(run("doctor").stdout) == speaks
        misused = run("eval", "--foo")
        assert misused.exit_code == 2
        assert bool(misused.stderr) == speaks
