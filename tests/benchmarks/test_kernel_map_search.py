"""Ways to find neighbours on a few voxels, in Triton's interpreter where there is no GPU."""

import importlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
SHAPE = (25, 16, 16)
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
WAYS = ["bitmap", "hash", "column_hash", "sorted"]


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("kernel_map_search")


@pytest.fixture
def frame_file(tmp_path: Path) -> Path:
    """A few solid walls up to the borders, and scattered cells, in no order."""
    generator = np.random.default_rng(0)
    occupied = generator.random(SHAPE) < 0.02
    occupied[:, 3, 4:] |= True
    occupied[0, :, 15] |= True
    cells = np.argwhere(occupied).astype(np.int32)
    coords = np.concatenate([np.zeros_like(cells[:, :1]), generator.permutation(cells)], 1)
    features = generator.random((len(coords), 5), dtype=np.float32)
    path = tmp_path / "frame.npz"
    np.savez(path, features=features, coords_bzyx=coords)
    return path


def test_all_ways_agree_with_the_reference_and_are_timed(
    benchmark: Any, frame_file: Path, tmp_path: Path
) -> None:
    out = tmp_path / "search.json"
    arguments = ["--frame", str(frame_file), "--shape", *map(str, SHAPE), "--device", DEVICE]
    arguments += ["--batch", "2", "--max-voxels", "700", "--repeats", "2", "--commit", "0" * 40]
    benchmark.main([*arguments, "--out", str(out)])
    result = json.loads(out.read_text())
    assert set(result["cases"]) == {"b2_bound", "b2_exact"}
    for kind, case in result["cases"].items():
        assert list(case["ways"]) == WAYS, kind
        assert case["voxels"] == 2 * result["voxels"] == case["sites"][0]
        assert len(case["sites"]) == 5 and case["pairs"] > 27 * case["sites"][3]
        for way, cost in case["ways"].items():
            stages = {"sites", "maps"} | (set() if way == "hash" else {"order"})
            assert set(cost["stages"]) == stages
            assert {"median_ms", "p20_ms", "p80_ms"} <= set(cost["whole"])
            assert cost["bytes_held"] > 0
    assert result["commit"] and {"gpu", "machine", "versions", "frame"} <= set(result)


@pytest.mark.parametrize("way", WAYS)
def test_a_wrong_pair_ends_the_run(benchmark: Any, frame_file: Path, way: str) -> None:
    frame = benchmark.read_voxel_frame(frame_file, 5, SHAPE).to(DEVICE)
    net = benchmark.SpMiddleResNetFHD(benchmark.BackboneConfig(in_channels=5))
    problem = benchmark.make_problem(benchmark.convs_of(net), frame, len(frame))
    search = benchmark.WAYS[way](problem)
    table = search.table

    def wrong(number: int) -> torch.Tensor:
        rows = table(number)
        if number == 2:
            rows[:, 0] = rows[:, 1]
        return rows

    search.table = wrong
    with pytest.raises(SystemExit, match=f"{way}: got .* of map 2, need the"):
        benchmark.require_reference(way, search, problem, frame)
