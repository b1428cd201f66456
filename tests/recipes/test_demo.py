"""The demo end to end with the weights that ship, on a smaller plan; its own plan, by counting."""

import io
import json
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from rich.console import Console

from voxelquant import QuantState, check_file, cli
from voxelquant.data.synthetic import (
    CLASS_NAMES,
    TABLE_VERSION,
    SceneSpec,
    WorldConfig,
    count_visible_instances,
)
from voxelquant.data.synthetic.annotate import annotate
from voxelquant.data.synthetic.frames import group_scenes
from voxelquant.data.synthetic.layout import Scenes, lay_out
from voxelquant.data.synthetic.returns import fire
from voxelquant.data.synthetic.sensor import spin
from voxelquant.data.synthetic.taxonomy import KINDS
from voxelquant.errors import BadInputError
from voxelquant.recipes import demo
from voxelquant.recipes.demo import VALIDATION_SPLIT, DemoPlan, run_demo
from voxelquant.recipes.demo_text import print_demo
from voxelquant.recipes.progress import StageReporter
from voxelquant.recipes.report import write_report

MODEL_CARD = Path(__file__).resolve().parents[2] / "docs" / "tiny_weights.md"
SMALL = DemoPlan(calibration_scenes=2, validation_scenes=2, key_frames=1, pictures=2)
ENGINES = ("float", "fake", "int8")

Result = dict[str, Any]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs") / "demo"


@pytest.fixture(scope="module")
def returned(folder: Path) -> Result:
    return run_demo(folder, SMALL, StageReporter(io.StringIO()))


@pytest.fixture(scope="module")
def result(folder: Path, returned: Result) -> Result:
    return json.loads((folder / "result.json").read_text())


def test_result_holds_what_was_promised(result: Result) -> None:
    promised = {"metrics", "parity", "files", "seconds", "seeds", "versions"}
    assert promised <= result.keys()
    assert tuple(result["metrics"]) == ENGINES
    for engine in ENGINES:
        score = result["metrics"][engine]
        assert 0 < score["mAP"] <= 1
        assert 0 < score["NDS"] <= 1
        assert set(score["per_class_ap"]) == set(CLASS_NAMES)
        assert score["samples"] == 2
    assert result["seconds"]["total"] >= sum(
        seconds for stage, seconds in result["seconds"].items() if stage != "total"
    )
    assert {"python", "torch", "numpy", "nuscenes-devkit"} <= result["versions"].keys()


def test_the_detector_detects_and_int8_costs_little(result: Result) -> None:
    scores = {engine: result["metrics"][engine]["mAP"] for engine in ENGINES}
    assert scores["float"] > 0.3  # on two frames; the bar of 0.45 is the full plan's
    # One box of two frames weighs several points; the bar of 0.01 is the full plan's.
    assert abs(scores["fake"] - scores["float"]) < 0.1
    assert abs(scores["int8"] - scores["fake"]) < 0.02


def test_seeds_are_disjoint_and_those_of_the_model_card(result: Result) -> None:
    seeds = result["seeds"]
    assert len(set(seeds.values())) == 3
    card = MODEL_CARD.read_text()
    named = re.search(r"training (\d+), calibration (\d+), validation (\d+)", card)
    assert named is not None
    assert seeds == dict(
        zip(("training", "calibration", "validation"), map(int, named.groups()), strict=True)
    )
    trained = re.search(r"--data synthetic --seed (\d+)", card)
    assert trained is not None
    assert int(trained[1]) == seeds["training"]


def test_scenes_on_disk_are_of_the_seeds_that_are_named(folder: Path, result: Result) -> None:
    splits = json.loads((folder / "data" / TABLE_VERSION / "splits.json").read_text())
    seeds = {split: {int(name.split("-")[1]) for name in names} for split, names in splits.items()}
    assert seeds == {
        "demo_calibration": {result["seeds"]["calibration"]},
        "demo_validation": {result["seeds"]["validation"]},
    }


def test_seeds_that_meet_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match="three different ones"):
        run_demo(tmp_path / "demo", DemoPlan(validation_seed=1), StageReporter(io.StringIO()))
    assert list(tmp_path.iterdir()) == []


def test_parity_holds_and_the_file_equals_the_engine(result: Result) -> None:
    parity = result["parity"]
    assert parity["holds"]
    assert parity["unexplained"] == 0
    assert parity["engine_equals_file"]
    assert parity["flip_rate"] < 1e-4
    assert len(parity["layers"]) == 29  # 21 convolutions and 8 sums
    assert all(layer["file_equals_engine"] for layer in parity["layers"])
    int8 = [layer["path"] for layer in parity["layers"] if layer["precision"] == "int8 → int8"]
    assert len(int8) == 24


def test_files_are_whole(folder: Path, result: Result) -> None:
    sizes = {name: (folder / name).stat().st_size for name in result["files"]}
    assert result["files"] == sizes
    assert set(sizes) == {"ptq.safetensors", "scn.onnx", "report.html"}
    assert check_file(folder / "scn.onnx") == []
    assert QuantState.load(folder / "ptq.safetensors").recipe.name == "reference"
    assert not [path for path in folder.rglob(".*") if path.is_file()]


def test_the_page_needs_nothing_else(folder: Path, returned: Result) -> None:
    page = (folder / "report.html").read_text()
    assert "<script" not in page
    assert "<link" not in page
    references = re.findall(r"""(?:src|href)\s*=\s*["']([^"']*)""", page)
    assert references  # the pictures
    assert [r[:40] for r in references if not r.startswith(("data:", "#"))] == []
    assert "url(" not in page.replace("url(data:", "").replace("url(#", "")
    for text in (
        "mAP",
        "NDS",
        "traffic_cone",
        "conv4.4.add",
        "simulated",
        "executed",
        "Class mix balanced",
    ):
        assert text in page


def test_the_page_says_what_its_boxes_are_and_how_it_came_about(
    folder: Path, result: Result
) -> None:
    page = (folder / "report.html").read_text()
    captions = re.findall(r"<figcaption>(Scene [^<]*)</figcaption>", page)
    assert len(captions) == SMALL.pictures
    for caption in captions:
        assert "boxes annotated; detections with a score above 0.3: " in caption
        assert re.search(r"\d+ of float, \d+ of the int8 engine\.$", caption)
    assert f"<dt>synthetic world</dt><dd>version {result['world_version']}</dd>" in page
    for stage in ("synth", "ptq", "eval_float", "eval_fake", "eval_int8", "export", "parity"):
        assert f"<dt>{stage}</dt><dd>{result['seconds'][stage]:.1f} s</dd>" in page


def test_the_page_can_be_drawn_again(folder: Path, returned: Result) -> None:
    before = (folder / "report.html").read_bytes()
    assert write_report(folder).read_bytes() == before


def test_the_terminal_shows_every_table(folder: Path, returned: Result) -> None:
    console = Console(file=io.StringIO(), width=100)
    print_demo(returned, folder, console)
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    for text in (
        "int8 engine (executed)",
        "traffic_cone",
        "conv4.4.add",
        "are equal",
        "report.html",
    ):
        assert text in shown


@pytest.mark.parametrize("holds", [True, False])
def test_the_verb_fails_where_the_law_is_broken(
    folder: Path, returned: Result, monkeypatch: pytest.MonkeyPatch, holds: bool
) -> None:
    outcome = {**returned, "parity": {**returned["parity"], "holds": holds}}
    outcome["export"] = {"warnings": ["warning: conv0: [odd]"]}
    monkeypatch.setattr(demo, "run_demo", lambda *_: outcome)
    result = CliRunner().invoke(cli.main, ["demo", "--out", str(folder)])
    assert result.exit_code == (0 if holds else 1)
    assert ("The law of parity is broken." in result.stdout) == (not holds)
    assert "warning: conv0: [odd]" in result.stdout
    assert "scn.onnx, checked: 1 warning, no errors." in result.stdout


def test_the_weights_that_ship_are_small() -> None:
    assert demo.tiny_weights().stat().st_size <= 8_000_000


def visible_instances(plan: DemoPlan) -> Counter[str]:
    """What the metric will see, from the world itself: only key frames are cast."""
    specs = [
        SceneSpec(plan.validation_seed, scene, plan.key_frames)
        for scene in range(plan.validation_scenes)
    ]
    counts: Counter[str] = Counter()
    for group in group_scenes(specs, torch.device("cpu")):
        scenes = lay_out(group, WorldConfig(class_mix=plan.class_mix), torch.device("cpu"))
        for row, seen in visible_slots(scenes, len(group), plan.key_frames):
            kinds = scenes.slots.kind[row][seen].tolist()
            counts.update(CLASS_NAMES[kind] for kind in kinds)
    return counts


def visible_slots(
    scenes: Scenes, n_scenes: int, key_frames: int
) -> Iterator[tuple[int, torch.Tensor]]:
    """Of each scene, which of its objects are seen within range in any key frame."""
    config = WorldConfig()
    lead = config.sweeps - 1
    ranges_m = torch.tensor([kind.range_m for kind in KINDS])
    for row in range(n_scenes):
        numbers = torch.arange(key_frames) * config.key_frame_period + lead
        rows = torch.full_like(numbers, row)
        revolutions = spin(scenes, rows, numbers, config.lidar, lead)
        truth = annotate(scenes, revolutions, fire(scenes, revolutions, config.lidar), config)
        ego_xy = revolutions.ego_to_world[:, None, :2, 3]
        distance_m = (truth.centre_xyz_m[..., :2] - ego_xy).norm(dim=-1)
        kind = scenes.slots.kind[row]
        near = distance_m < ranges_m[kind.clamp(0, len(KINDS) - 1)]
        yield row, (truth.annotated & (truth.points > 0) & near).any(dim=0)


def test_the_count_is_that_of_the_tables(folder: Path, result: Result) -> None:
    counted = visible_instances(SMALL)
    assert {name: counted[name] for name in CLASS_NAMES} == result["instances"]
    tables = folder / "data" / TABLE_VERSION
    assert result["instances"] == count_visible_instances(tables, VALIDATION_SPLIT)


def test_the_full_plan_has_forty_frames_and_forty_of_every_class() -> None:
    plan = DemoPlan()
    assert plan.validation_scenes * plan.key_frames >= 40
    counted = visible_instances(plan)
    assert {name: counted[name] for name in CLASS_NAMES if counted[name] < 40} == {}
