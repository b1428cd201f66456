"""What the scripts say when an environment cannot be made."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ENV = Path(__file__).resolve().parents[1] / "scripts" / "env.sh"


def find_python(**environment: str) -> subprocess.CompletedProcess[str]:
    bash = shutil.which("bash")
    assert bash is not None
    return subprocess.run(
        [bash, "-c", 'source "$0"; find_python', str(ENV)],
        env={"PATH": os.environ["PATH"], **environment},
        capture_output=True,
        text=True,
    )


def fake_python(folder: Path, name: str, version: str, has_venv: bool) -> Path:
    """An interpreter of which only the version and the presence of venv can be asked."""
    path = folder / name
    path.write_text(
        f'#!/bin/sh\ncase "$2" in *ensurepip*) exit {0 if has_venv else 1};; '
        f"*) echo {version};; esac\n"
    )
    path.chmod(0o755)
    return path


@pytest.mark.parametrize("version", ["3.10", "3.11", "3.12"])
def test_a_fitting_python_is_taken(tmp_path: Path, version: str) -> None:
    python = fake_python(tmp_path, "python", version, has_venv=True)
    result = find_python(PYTHON=str(python))
    assert result.returncode == 0
    assert result.stdout.strip() == str(python)


@pytest.mark.parametrize("version", ["3.9", "3.13", "2.7"])
def test_an_unfitting_python_is_named(tmp_path: Path, version: str) -> None:
    result = find_python(PYTHON=str(fake_python(tmp_path, "python", version, has_venv=True)))
    assert result.returncode == 1
    assert f"is Python {version}, which does not fit" in result.stderr


def test_a_python_without_venv_names_the_package(tmp_path: Path) -> None:
    result = find_python(PYTHON=str(fake_python(tmp_path, "python", "3.12", has_venv=False)))
    assert result.returncode == 1
    assert "apt-get install python3.12-venv" in result.stderr


def test_a_complete_python_is_preferred_to_an_earlier_one_without_venv(tmp_path: Path) -> None:
    fake_python(tmp_path, "python3.11", "3.11", has_venv=False)
    fake_python(tmp_path, "python3.12", "3.12", has_venv=True)
    (tmp_path / "dirname").symlink_to(shutil.which("dirname") or "")
    assert find_python(PATH=str(tmp_path)).stdout.strip() == "python3.12"


def test_no_python_at_all_says_how_to_get_one(tmp_path: Path) -> None:
    result = find_python(PYTHON=str(tmp_path / "absent"))
    assert result.returncode == 1
    assert "needs Python 3.10, 3.11 or 3.12" in result.stderr
    assert "apt-get install python3 python3-venv" in result.stderr
