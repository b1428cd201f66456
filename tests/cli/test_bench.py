"""`voxelquant bench` where there is no GPU: what it measures, what it refuses, in one line."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from voxelquant.recipes import bench, bench_networks, bench_request, spconv_peer

SMALL = ("--device", "cpu", "--repeats", 2)


@pytest.fixture
def voxels(tmp_path: Path) -> Path:
    """A frame of 600 voxels on the grid of the small config."""
    rng = np.random.default_rng(0)
    cells = rng.choice(10 * 30 * 30, 600, replace=False)
    z, y, x = cells // 900, cells // 30 % 30, cells % 30
    path = tmp_path / "voxels.npz"
    coords = np.stack([np.zeros_like(z), z + 8, y + 50, x + 40], 1).astype(np.int16)
    np.savez(path, features=rng.normal(size=(600, 5)).astype(np.float16), coords_bzyx=coords)
    return path


def test_a_cpu_gets_numbers_of_the_reference(
    done, config, voxels, frame, tmp_path, monkeypatch
) -> None:
    out = tmp_path / "out"
    counts = tmp_path / "counts.csv"
    counts.write_text("num_voxels\n" + "".join(f"{n}\n" for n in range(200, 1000, 100)))
    files = ("--frame", voxels, "--cloud", frame, "--counts", counts)
    parts = ("--part", "scaling", "--part", "stages", "--part", "cloud")
    monkeypatch.setattr(bench_request, "SMALLEST_GROWTH", 300)  # 10,000 of 600 cannot be grown
    result = done("bench", config, *SMALL, *files, *parts, "--work-dir", out)
    found = json.loads((out / "result.json").read_text())
    assert found["frame"] == {"name": "voxels.npz", "voxels": 600}
    assert found["config"]["frame"] == "voxels.npz"
    assert next(point["what"] for point in found["scaling"]["int8"]) == "10 k"
    assert found["cloud"]["fp16"]["what"] == "frame.npz"
    assert str(tmp_path) not in (out / "result.json").read_text()
    for text in (
        "voxels.npz, 600 voxels",
        "fp16",
        "int8",
        "maps",
        "conv",
        "p50",
        "reference backend",
    ):
        assert text in result.stdout, text
    assert "spconv" not in result.stdout


def test_no_gpu_is_one_line(refusal, monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    line = refusal("bench", "--work-dir", tmp_path / "out")
    assert "without a GPU" in line
    assert "--device cpu" in line
    assert not (tmp_path / "out").exists()


def test_no_triton_is_one_line(refusal, monkeypatch) -> None:
    def absent(name: str) -> None:
        raise ImportError(f"No module named {name!r}")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(bench_networks, "import_module", absent)
    assert "got no Triton (No module named 'triton')" in refusal("bench")


def test_spconv_on_a_cpu_is_refused(refusal, tmp_path) -> None:
    line = refusal("bench", *SMALL, "--against", "spconv", "--work-dir", tmp_path / "out")
    assert "--against spconv on a CPU" in line
    assert not (tmp_path / "out").exists()


def test_a_missing_spconv_is_one_line(refusal, monkeypatch) -> None:
    def absent(name: str) -> None:
        raise ImportError(f"No module named {name!r}")

    monkeypatch.setattr(bench, "_choose_device", lambda request, planner: "cuda:0")
    monkeypatch.setattr(spconv_peer, "import_module", absent)
    assert "pip install spconv-cu126==2.3.8" in refusal("bench", "--against", "spconv")


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("--device", "tpu"), "got device 'tpu'"),
        (("--device", "cpu", "--precision", "int4"), "int4"),
        (("--device", "cpu", "--voxels", 0), "--voxels"),
        (("--device", "cpu", "--voxels", 10_000_000), "ask for fewer"),
        (("--device", "cpu", "--frame", "none.npz"), "none.npz: cannot be read"),
        (("--device", "cpu", "--cloud", "none.npz"), "none.npz: cannot be read"),
        (("--device", "cpu", "--counts", "none.csv", "--part", "scaling"), "none.csv: cannot be"),
    ],
)
def test_bad_input_is_one_line(refusal, config, tmp_path, arguments, text) -> None:
    assert text in refusal("bench", config, *arguments, "--work-dir", tmp_path / "out")
    assert not (tmp_path / "out" / "result.json").exists()


def test_a_frame_of_another_grid_is_one_line(refusal, config, tmp_path) -> None:
    path = tmp_path / "big.npz"
    coords = np.array([[0, 3, 1200, 900], [0, 4, 1, 2]], np.int16)
    np.savez(path, features=np.ones((2, 5), np.float32), coords_bzyx=coords)
    line = refusal("bench", config, *SMALL, "--frame", path, "--work-dir", tmp_path / "out")
    assert "need (batch, z, y, x) from 0 to below" in line
