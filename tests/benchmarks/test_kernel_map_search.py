"""Ways to find neighbours on a few voxels, in Triton's interpreter where there is no GPU."""

import importlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
SHAPE = (25, 8, 8)
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
    occupied = generator.random(SHAPE) < 0.03
    occupied[:, 3, 6:] |= True
    occupied[0, :, 7] |= True
    occupied[24, 2:4, :5] |= True
    cells = np.argwhere(occupied).astype(np.int32)
    coords = np.concatenate([np.zeros_like(cells[:, :1]), generator.permutation(cells)], 1)
    features = generator.random((len(coords), 5), dtype=np.float32)
    path = tmp_path / "frame.npz"
    np.savez(path, features=features, coords_bzyx=coords)
    return path


def make_search(benchmark: Any, frame_file: Path, way: str, batch: int) -> tuple[Any, Any, Any]:
    frame = benchmark.read_voxel_frame(frame_file, 5, SHAPE)
    frame = benchmark.batch_of(frame, batch).to(DEVICE)
    net = benchmark.SpMiddleResNetFHD(benchmark.BackboneConfig(in_channels=5))
    problem = benchmark.make_problem(benchmark.convs_of(net), frame, len(frame))
    return benchmark.WAYS[way](problem), problem, frame


@pytest.mark.parametrize("way", WAYS)
def test_each_way_finds_what_the_reference_finds(
    benchmark: Any, frame_file: Path, way: str
) -> None:
    search, problem, frame = make_search(benchmark, frame_file, way, 2)
    found = benchmark.require_reference(way, search, problem, frame)
    again = benchmark.require_reference(way, search, problem, frame)  # over what the first left
    assert found == again
    assert found.sites[0] == len(frame)
    assert len(found.sites) == 5


def test_the_result_holds_stages_memory_and_origin(
    benchmark: Any, frame_file: Path, tmp_path: Path
) -> None:
    out = tmp_path / "search.json"
    arguments = ["--frame", str(frame_file), "--shape", *map(str, SHAPE), "--device", DEVICE]
    arguments += ["--batch", "1", "--bounds", "exact", "--ways", "hash", "sorted"]
    benchmark.main([*arguments, "--repeats", "2", "--commit", "0" * 40, "--out", str(out)])
    result = json.loads(out.read_text())
    assert list(result["cases"]) == ["b1_exact"]
    case = result["cases"]["b1_exact"]
    assert case["voxels"] == case["max_voxels"] == result["voxels"] == case["sites"][0]
    assert case["pairs"] > sum(case["sites"])
    assert set(case["ways"]["hash"]["stages"]) == {"sites", "maps"}
    assert set(case["ways"]["sorted"]["stages"]) == {"sites", "order", "maps"}
    for cost in case["ways"].values():
        assert {"median_ms", "p20_ms", "p80_ms"} <= set(cost["whole"])
        assert cost["bytes_held"] > 0
    assert result["commit"]
    assert {"gpu", "machine", "versions", "frame"} <= set(result)


@pytest.mark.parametrize("way", WAYS)
def test_a_wrong_pair_ends_the_run(benchmark: Any, frame_file: Path, way: str) -> None:
    search, problem, frame = make_search(benchmark, frame_file, way, 1)
    table = search.table

    def wrong(number: int) -> torch.Tensor:
        rows = table(number)
        if number == 2:
            rows[:, 0] = rows[:, 1]
        return rows

    search.table = wrong
    with pytest.raises(SystemExit, match=f"{way}: got .* of map 2, need the"):
        benchmark.require_reference(way, search, problem, frame)
