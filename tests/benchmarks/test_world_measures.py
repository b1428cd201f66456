"""What the comparison of worlds measures, on inputs that can be counted by hand."""

import importlib
import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from voxelquant.data.synthetic import WorldConfig, generate_frames

ROOT = Path(__file__).resolve().parents[2]
MODULES = (
    "world_measures",
    "world_boxes",
    "world_summary",
    "world_gaps",
    "world_nuscenes",
    "world_comparison",
    "world",
)


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The modules by name, as attributes."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    modules = {name: importlib.import_module(name) for name in MODULES}
    yield type("World", (), modules)
    for name in MODULES:
        sys.modules.pop(name, None)


def test_bins_take_their_lower_edge_and_the_outer_ones_take_the_rest(world: Any) -> None:
    measure = world.world_measures.Measure("m", "points", "m", (0.0, 1.0, 3.0))
    counts = measure.count(torch.tensor([-5.0, 0.0, 0.99, 1.0, 2.9, 3.0, 70.0]))
    assert counts.tolist() == [3, 4]


def test_points_of_the_ego_vehicle_are_left_out(world: Any) -> None:
    points = torch.tensor([[1.0, 1.0, 0, 0, 0], [1.2, 1.2, 0, 0, 0]])
    assert world.world_measures.without_own_returns(points).tolist() == points[1:].tolist()


def test_the_beam_is_the_nearest_elevation(world: Any) -> None:
    elevations = torch.deg2rad(torch.tensor([-10.0, 0.0, 10.0], dtype=torch.float64))
    height = [math.tan(math.radians(degrees)) for degrees in (-30, -6, -4, 4, 6)]
    points = torch.tensor([[3.0, 4.0, 5 * z] for z in height])
    assert world.world_measures.beams_of(points, elevations).tolist() == [0, 0, 1, 1, 2]


def test_neighbours_of_three_cells_in_a_row(world: Any) -> None:
    row = torch.tensor([[4, 8, 8], [4, 8, 9], [4, 8, 10], [20, 500, 500]])
    levels = world.world_measures.count_neighbours(row)
    assert levels[0].sort().values.tolist() == [1, 2, 2, 3]
    # Stride 2, kernel 3, padding 1: x 8 to 10 are reached by outputs 4 and 5, and z 4 and y 8,
    # which are even, by one output each.
    assert [len(level) for level in levels[1:2]] == [3]
    assert levels[1].sort().values.tolist() == [1, 2, 2]


def test_a_cloud_is_counted_in_points_and_voxels(world: Any) -> None:
    points = torch.zeros(5, 5)
    points[:, 0] = torch.tensor([10.01, 10.02, 10.03, 20.01, 60.0])  # the last is off the grid
    figures = world.world_measures.measure_cloud(points)
    assert figures.scalars["points"] == 5
    assert figures.scalars["voxels"] == figures.scalars["sites_level_0"] == 2
    per_voxel = figures.histograms["points_per_voxel"]
    assert per_voxel[0] == per_voxel[2] == 1
    assert per_voxel.sum() == 2
    assert figures.histograms["points_over_range"][5] == 3  # 10 to 12 m
    assert figures.histograms["voxels_over_range"][5] == 1


def test_intensity_by_range(world: Any) -> None:
    points = torch.tensor([[3.0, 4.0, 0, 7, 0], [3.0, 4.0, 0, 255, 0], [0.0, 4.0, 0, 7, 0]])
    counts = world.world_measures.intensity_over_range(points)
    assert counts[1, 7] == counts[1, 255] == counts[0, 7] == 1
    assert counts.sum() == 3
    summary = world.world_summary.summarize_intensity(counts)
    assert summary["ranges"][0]["quantiles"] == [7] * 6
    assert summary["ranges"][1]["quantiles"][-1] == 255


def test_points_in_boxes_over_distance(world: Any) -> None:
    boxes = torch.tensor([[7.0, 0, 0, 2, 2, 2, 0, 0.1, 0], [0, 52, 0, 2, 4, 2, 3, 4, 0]])
    points = torch.tensor([[7.5, 0.5, 0.5], [6.5, 0.5, 0.5], [7.0, 0.0, 0.9], [9.0, 0, 0]])
    measured = world.world_boxes.measure_boxes(boxes, torch.tensor([0, 0]), points)
    assert measured.points.tolist() == [3, 0]
    car = world.world_boxes.describe_boxes(measured, frames=2)["car"]
    assert (car["per_frame"], car["visible_per_frame"], car["scored_per_frame"]) == (1, 0.5, 0.5)
    by_distance = torch.tensor(car["points_by_distance"])
    assert by_distance[1, 3] == by_distance[10, 0] == 1
    assert by_distance.sum() == 2
    assert car["moving"] == 0.5
    assert car["speed_counts"][5] == 1
    assert car["point_quantiles"][1] is None  # one box says nothing about a distribution


def test_brightness_of_points_in_boxes(world: Any) -> None:
    boxes = torch.tensor([[7.0, 0, 0, 2, 2, 2, 0, 0, 0], [20.0, 0, 0, 2, 2, 2, 0, 0, 0]])
    points = torch.tensor([[7.0, 0, 0, 9.0], [7.5, 0, 0, 255.0], [20.0, 0, 0, 3.0], [9.0, 0, 0, 1]])
    counts = world.world_boxes.intensity_in_boxes(boxes, torch.tensor([0, 8]), points)
    assert counts[0, 9] == counts[0, 255] == counts[8, 3] == 1
    assert counts.sum() == 3
    few = world.world_summary.describe_brightness(counts[0], [0.5])
    assert few == {"points": 2, "quantiles": None}
    many = world.world_summary.describe_brightness(50 * counts[0], [0.25, 0.5, 0.75])
    assert many == {"points": 100, "quantiles": [9, 255, 255]}


@pytest.mark.parametrize("count", [1, 2, 7, 200, 1001])
def test_quantiles_are_the_same_of_values_and_of_their_counts(world: Any, count: int) -> None:
    values = torch.randint(0, 256, (count,), generator=torch.Generator().manual_seed(count))
    levels = (0.0, 0.05, 0.2, 0.25, 0.5, 0.75, 0.8, 0.95, 0.99, 1.0)
    of_values = world.world_summary.quantiles(values, levels).tolist()
    assert set(of_values) <= set(values.tolist())
    counts = torch.bincount(values, minlength=256)
    assert world.world_summary.levels_of(counts, levels) == of_values


def test_unknown_speeds_do_not_stand(world: Any) -> None:
    boxes = torch.tensor([[7.0, 0, 0, 2, 2, 2, math.nan, math.nan, 0]])
    measured = world.world_boxes.measure_boxes(boxes, torch.tensor([8]), torch.zeros(1, 3))
    person = world.world_boxes.describe_boxes(measured, frames=1)["pedestrian"]
    assert person["moving"] == 0
    assert person["speed_quantiles"] is None


def test_single_frames_are_compared_with_their_mean(world: Any) -> None:
    counts = torch.tensor([[8.0, 2.0], [2.0, 8.0]], dtype=torch.float64)
    summary = world.world_summary.summarize_histograms(counts)
    assert summary["share"] == [0.5, 0.5]
    assert summary["distance"] == pytest.approx({"p50": 0.3, "p95": 0.3})


def test_distances_of_histograms(world: Any) -> None:
    one, other = torch.tensor([0.5, 0.5, 0.0]), torch.tensor([0.0, 0.5, 0.5])
    assert world.world_summary.distance_between(one, other) == 0.5
    assert world.world_summary.largest_gap(one, other) == 0.5
    assert world.world_summary.largest_gap(one, one) == 0


def test_where_most_is_missing(world: Any) -> None:
    first, last, weight = world.world_gaps.heaviest_run([-1.0, 0.25, 0.5, -0.5, 0.125])
    assert (first, last, weight) == (1, 2, 0.75)


def test_lists_of_numbers_take_a_line_each(world: Any) -> None:
    text = world.world.dump({"share": [0.1234567, 1 / 3], "names": ["a"], "rows": [[1, 2], None]})
    assert "[ 0.12346, 0.33333 ]" in text
    assert json.loads(text) == {"share": [0.12346, 0.33333], "names": ["a"], "rows": [[1, 2], None]}


def test_two_frames_are_compared_without_real_data(world: Any) -> None:
    config = WorldConfig()
    frames = generate_frames(31, [0, 1], key_frames=1, config=config)
    compared = world.world_comparison.compare_world(frames, 31, config, None)
    assert compared["frames"] == 2
    synthetic = compared["synthetic"]
    for name, measure in compared["measures"]["histograms"].items():
        share = synthetic["histograms"][name]["share"]
        assert len(share) == len(measure["edges"]) - 1
        assert sum(share) == pytest.approx(1)
    answers = torch.tensor(synthetic["answers"]["mean"])
    returns = synthetic["scalars"]["returns"]["mean"]
    assert float(answers.sum() * compared["firings"]) == pytest.approx(returns, rel=1e-4)
    boxes = sum(len(frame.labels) for frame in frames if frame.labels is not None)
    assert sum(c["per_frame"] for c in synthetic["boxes"].values()) * 2 == pytest.approx(boxes)


def test_beams_of_a_real_key_frame_by_order_and_by_elevation(world: Any, real_data: Path) -> None:
    _, key, beams = world.world_nuscenes.read_cloud(real_data)
    found = world.world_measures.beams_of(key, WorldConfig().lidar.elevations_rad())
    # The lasers do not start in one point, which turns what is near by more than a beam.
    far = key[:, :2].norm(dim=1) > 10
    assert float((found == beams)[far].double().mean()) > 0.99


def make_result(real_share: list[float], real_boxes: list[list[int]]) -> dict[str, Any]:
    share = {"share": [0.5, 0.5], "distance": {"p50": 0.01, "p95": 0.1}}
    spread = {"mean": 5, "p5": 4, "p25": 4, "p50": 5, "p75": 6, "p95": 6}
    measure = {"counted": "points", "axis": "range, m", "edges": [0, 10, 20]}
    real = {"histograms": {"far": real_share}, "scalars": {"voxels": 7}}
    boxes = {"car": {"points_by_distance": [[9, 20, 10], [1, 0, 0]]}}
    return {
        "measures": {"histograms": {"far": measure}},
        "synthetic": {"histograms": {"far": share}, "scalars": {"voxels": spread}, "boxes": boxes},
        "nuscenes": {
            "frames": {"a frame": real},
            "boxes": {"car": {"points_by_distance": real_boxes}},
        },
    }


def test_a_gap_says_where_it_is(world: Any) -> None:
    gap = world.world_gaps.histogram_gaps(make_result([0.2, 0.8], []))[0]
    assert gap.distance == pytest.approx(0.3)
    assert gap.differs
    assert gap.ratio == pytest.approx(3)
    assert (gap.too_few, gap.too_many) == ("10 to 20: 30.0 %", "0 to 10: 30.0 %")
    assert not world.world_gaps.histogram_gaps(make_result([0.45, 0.55], []))[0].differs
    assert world.world_gaps.single_figures(make_result([1, 0], []))[0].outside


def test_what_is_printed_as_equal_is_no_difference(world: Any) -> None:
    """0.1003 beside 0.1 is printed as a ratio of 1.00, a share of 2e-6 beside 0 as 0.000 %."""
    gaps = world.world_gaps
    assert not gaps.histogram_gaps(make_result([0.3997, 0.6003], []))[0].differs
    assert gaps.histogram_gaps(make_result([0.399, 0.601], []))[0].differs
    share = {"p5": 2e-6, "p95": 0.01}
    assert not gaps.Outlier("intensity_from_200", "a frame", 0.0, share).outside
    assert gaps.Outlier("intensity_from_200", "a frame", 0.0, {**share, "p5": 1e-5}).outside


def test_the_file_that_was_written_is_named(
    world: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "world.json"
    arguments = ["world.py", "--frames", "1", "--threads", "1", "--timed-only", "--out", str(out)]
    monkeypatch.setattr(sys, "argv", arguments)
    monkeypatch.setattr(torch, "set_num_threads", lambda threads: None)  # of later tests, too
    world.world.main()
    assert capsys.readouterr().out == f"Written: {out}\n"
    assert json.loads(out.read_text())["frames"] == 1


def test_real_boxes_rank_among_synthetic_ones(world: Any) -> None:
    rank = world.world_gaps.mean_rank
    assert rank(make_result([1, 0], [[5, 1, 0], [0, 0, 0]]), "car") == (1, pytest.approx(1 / 3))
    assert rank(make_result([1, 0], [[0, 0, 1], [0, 0, 1]]), "car") == (1, pytest.approx(5 / 6))
    assert rank(make_result([1, 0], [[0, 0, 0], [0, 0, 1]]), "car") is None  # too few to rank
