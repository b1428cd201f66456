import json
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

import voxelquant
from voxelquant.recipes import artifacts


def test_json_is_strict_and_plain(tmp_path: Path) -> None:
    @dataclass(frozen=True)
    class Score:
        mean_ap: float

    payload = {
        "score": Score(float("nan")),
        "array": np.arange(3, dtype=np.int32),
        "scalar": np.float32(0.5),
        "tensor": torch.tensor([[1.0, float("inf")]]),
        "path": Path("a/b"),
        "seeds": {3, 1, 2},
        "flag": True,
    }
    written = artifacts.write_json_atomic(tmp_path / "result.json", payload)
    assert json.loads(written.read_text()) == {
        "score": {"mean_ap": None},
        "array": [0, 1, 2],
        "scalar": 0.5,
        "tensor": [[1.0, None]],
        "path": "a/b",
        "seeds": [1, 2, 3],
        "flag": True,
    }


def test_what_has_no_json_form_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="object"):
        artifacts.write_json_atomic(tmp_path / "result.json", {"x": object()})
    assert list(tmp_path.iterdir()) == []


def test_provenance_says_what_and_where() -> None:
    record = artifacts.provenance(config={"name": "tiny"}, seed=7)
    assert record["voxelquant"] == voxelquant.__version__
    assert record["versions"]["torch"] == torch.__version__
    assert record["versions"]["numpy"] == np.__version__
    assert record["machine"]["cores"] >= 1
    assert record["seed"] == 7
    assert record["config"] == {"name": "tiny"}
    json.dumps(record, allow_nan=False)


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
def test_a_repository_around_an_installed_package_is_not_its_checkout(
    tmp_path: Path,
) -> None:
    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", str(tmp_path), "-c", "user.name=n", "-c", "user.email=e", *arguments],
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()

    package = tmp_path / "voxelquant"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (tmp_path / "README").write_text("")
    git("init", "-q")
    git("add", "README")
    git("commit", "-q", "-m", "someone else's project")
    assert artifacts.checkout_commit(package) is None

    git("add", ".")
    git("commit", "-q", "-m", "now it is ours")
    assert artifacts.checkout_commit(package) == git("rev-parse", "HEAD")
    (tmp_path / "README").write_text("changed")
    assert artifacts.checkout_commit(package) == git("rev-parse", "HEAD") + "-dirty"
