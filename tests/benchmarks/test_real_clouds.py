"""What is counted of two engines in a real cloud, on invented boxes."""

import importlib
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from voxelquant.detection.decode import Detections

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("real_clouds")


def boxes_at(*centres: tuple[float, float]) -> Tensor:
    boxes = torch.ones(len(centres), 9)
    boxes[:, :2] = torch.tensor(centres)
    return boxes


def detections(centres: list[tuple[float, float]], scores: list[float], labels: list[int]) -> Any:
    return Detections(boxes_at(*centres), torch.tensor(scores), torch.tensor(labels))


def test_boxes_pair_up_once_nearest_first_within_their_class(benchmark: Any) -> None:
    a, b = torch.tensor([[0.0, 0.0], [1.0, 0.0]]), torch.tensor([[0.9, 0.0], [0.2, 0.0]])
    same = torch.zeros(2, dtype=torch.int64)
    assert benchmark.pair_up(a, same, b, same, 2.0) == [(1, 0), (0, 1)]
    assert benchmark.pair_up(a, same, b, same, 0.15) == [(1, 0)]
    assert benchmark.pair_up(a, same, b, same + 1, 2.0) == []
    assert benchmark.pair_up(a[:0], same[:0], b, same, 2.0) == []


def test_engines_are_compared_with_each_other_and_with_the_labels(benchmark: Any) -> None:
    truth = boxes_at((10.0, 0.0), (20.0, 0.0))
    labels = torch.tensor([0, 1])
    cloud = benchmark.Cloud("key_frame", torch.zeros(5, 5), truth, labels, labelled=True)
    of_float = detections([(10.5, 0.0), (20.0, 1.0), (40.0, 0.0)], [0.9, 0.5, 0.2], [0, 1, 0])
    of_int8 = detections([(10.6, 0.0), (20.0, 5.0)], [0.8, 0.4], [0, 1])
    found = benchmark.compare(cloud, of_float, of_int8)
    assert found["found"] == {"float": 2, "int8": 2}  # one score is too low to be shown
    assert found["found_by_both"] == 1
    assert found["largest_score_gap"] == pytest.approx(0.1, abs=1e-6)
    assert (found["annotated"], found["right"]) == (2, {"float": 2, "int8": 1})
    unlabelled = benchmark.Cloud("sweeps", cloud.points, truth[:0], labels[:0], labelled=False)
    assert "right" not in benchmark.compare(unlabelled, of_float, of_int8)


def test_a_picture_shows_cells_not_points(benchmark: Any) -> None:
    points = torch.tensor([[0.1, 0.1, 1.0], [0.9, 0.7, 3.0], [-0.1, 5.0, 0.5]])
    cells = benchmark.occupied_cells(points)
    assert cells.tolist() == [[-0.5, 5.5, 0.5], [0.5, 0.5, 2.0]]
