import json
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from nuscenes.eval.common.config import config_factory
from nuscenes.eval.detection.evaluate import DetectionEval
from torch import Tensor

from nuscenes_world import CLASS_NAMES, KEY_FRAMES, VERSION, TinyNuScenes, write_tiny_nuscenes
from voxelquant.data.nuscenes import NuScenesDataset
from voxelquant.errors import BadInputError, DatasetError, MissingDependencyError
from voxelquant.evaluation.nuscenes import Metrics, evaluate_detections

ABSENT = ("truck", "construction_vehicle")  # the only truck has no point, so the metric drops it
PRESENT = tuple(name for name in CLASS_NAMES if name not in ABSENT)


@dataclass
class Found:
    boxes_det3d: Tensor
    scores: Tensor
    labels: Tensor


Change = Callable[[Found], Found]


def detect(dataset: NuScenesDataset, change: Change = lambda found: found) -> dict[str, Found]:
    """The ground truth as detections, distorted by `change`."""
    found = {}
    for frame in dataset:
        assert frame.boxes_det3d is not None
        assert frame.labels is not None
        scores = torch.linspace(0.9, 0.5, len(frame.labels))
        found[frame.token] = change(Found(frame.boxes_det3d.clone(), scores, frame.labels))
    return found


def evaluate(dataset: NuScenesDataset, found: dict[str, Found], out_dir: Path) -> Metrics:
    return evaluate_detections(
        dataset.root, VERSION, dataset.split, found, out_dir, nusc=dataset.nusc
    )


def test_perfect_detections(
    dataset: NuScenesDataset, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    metrics = evaluate(dataset, detect(dataset), tmp_path / "out")
    assert metrics.per_class_ap == pytest.approx(
        {name: float(name in PRESENT) for name in CLASS_NAMES}
    )
    assert metrics.mAP == pytest.approx(len(PRESENT) / 10)
    errors = metrics.per_class_tp_errors
    for name in PRESENT:
        assert errors[name]["trans_err"] < 1e-4
        assert errors[name]["scale_err"] < 1e-4
        assert name == "traffic_cone" or errors[name]["orient_err"] < 1e-4
        if name not in ("traffic_cone", "barrier", "trailer"):  # the trailer's speed is unknown
            assert errors[name]["vel_err"] < 1e-4
            assert errors[name]["attr_err"] == 0
    assert math.isnan(errors["barrier"]["vel_err"])
    assert errors["truck"] == dict.fromkeys(errors["truck"], 1.0)
    assert (metrics.samples, metrics.detections, metrics.notes) == (KEY_FRAMES, 28, ())
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "metrics_summary.json",
        "submission.json",
    ]
    assert capfd.readouterr() == ("", "")


def distort(found: Found) -> Found:
    """Every kind of error at once, and a false positive at the top of the list."""
    boxes = found.boxes_det3d
    boxes[:, 0] += 0.7
    boxes[:, 4] *= 1.2
    boxes[:, 6] += 0.5
    boxes[:, 8] += 0.3
    stray = torch.tensor([[20.0, -20, 0, 2, 4, 2, 0, 0, 0]])
    return Found(
        torch.cat((boxes, stray)),
        torch.cat((found.scores, torch.tensor([0.95]))),
        torch.cat((found.labels, torch.tensor([0]))),
    )


def test_same_numbers_as_the_devkit(dataset: NuScenesDataset, tmp_path: Path) -> None:
    """Our call against the devkit's own main on the submission that we left behind."""
    metrics = evaluate(dataset, detect(dataset, distort), tmp_path)
    direct = DetectionEval(
        dataset.nusc,
        config_factory("detection_cvpr_2019"),
        str(tmp_path / "submission.json"),
        "check",
        str(tmp_path / "devkit"),
        verbose=False,
    ).main(plot_examples=0, render_curves=False)
    assert 0 < metrics.mAP < 0.8
    assert metrics.mAP == direct["mean_ap"]
    assert direct["nd_score"] == metrics.NDS
    assert metrics.per_class_ap == direct["mean_dist_aps"]
    assert metrics.tp_errors == direct["tp_errors"]
    summary = json.loads((tmp_path / "metrics_summary.json").read_text())
    assert summary["nd_score"] == metrics.NDS
    assert {sense for sense, used in summary["meta"].items() if used} == {"use_lidar"}
    assert {"use_camera", "use_radar", "use_map", "use_external"} <= summary["meta"].keys()


def test_errors_have_the_size_of_the_distortion(dataset: NuScenesDataset, tmp_path: Path) -> None:
    errors = evaluate(dataset, detect(dataset, distort), tmp_path).per_class_tp_errors
    assert errors["bus"]["trans_err"] == pytest.approx(0.7, abs=1e-4)
    assert errors["bus"]["orient_err"] == pytest.approx(0.3, abs=1e-4)
    assert errors["bus"]["vel_err"] == pytest.approx(0.5, abs=1e-4)
    assert errors["bus"]["scale_err"] == pytest.approx(1 - 1 / 1.2, abs=1e-4)
    assert errors["bus"]["attr_err"] == 1  # at 0.5 m/s it no longer counts as stopped
    assert errors["bicycle"]["attr_err"] == 0


def test_a_shift_costs_the_thresholds_below_it(dataset: NuScenesDataset, tmp_path: Path) -> None:
    """Matching distances are 0.5, 1, 2 and 4 m: 1.5 m fails two of the four."""

    def shift(found: Found) -> Found:
        return replace(found, boxes_det3d=found.boxes_det3d + 1.5 * torch.eye(9)[1])

    metrics = evaluate(dataset, detect(dataset, shift), tmp_path)
    for name in set(PRESENT) - {"car", "pedestrian"}:  # single objects: no neighbour to match
        assert metrics.per_class_ap[name] == pytest.approx(0.5), name


@pytest.mark.parametrize(("score", "low", "high"), [(0.95, 0.38, 0.46), (0.01, 0.98, 1.0)])
def test_false_positives_cost_by_their_rank(
    dataset: NuScenesDataset, tmp_path: Path, score: float, low: float, high: float
) -> None:
    """One stray car a frame beside two right ones: above them it costs precision, below nothing."""

    def stray(found: Found) -> Found:
        strayed = distort(found)
        strayed.scores[-1] = score
        return strayed

    ap = evaluate(dataset, detect(dataset, stray), tmp_path).per_class_ap["car"]
    # Missed at 0.5 m, matched at 1, 2 and 4 m (the distortion is 0.7 m). With three strays on top
    # precision climbs as k / (k + 3) over six matches: about 0.42 above the floor of 0.1.
    assert 0.75 * low < ap <= 0.75 * high


def nothing(found: Found) -> Found:
    return Found(found.boxes_det3d[:0], found.scores[:0], found.labels[:0])


def test_no_detection_at_all(dataset: NuScenesDataset, tmp_path: Path) -> None:
    metrics = evaluate(dataset, detect(dataset, nothing), tmp_path)
    assert metrics.mAP == metrics.NDS == 0
    assert metrics.notes == ("nothing was detected: the devkit refuses that, its formulas give 0",)
    assert metrics.tp_errors == dict.fromkeys(metrics.tp_errors, 1.0)
    assert json.loads((tmp_path / "submission.json").read_text())["results"] == {
        token: [] for token in dataset.sample_tokens
    }


def test_only_hopeless_detections_score_the_same_as_none(
    dataset: NuScenesDataset, tmp_path: Path
) -> None:
    """Here the devkit does not crash: its own answer must equal the one for no detection."""

    def far(found: Found) -> Found:
        return replace(found, boxes_det3d=found.boxes_det3d + 500 * torch.eye(9)[0])

    hopeless = evaluate(dataset, detect(dataset, far), tmp_path / "far")
    none = evaluate(dataset, detect(dataset, nothing), tmp_path / "none")
    assert hopeless.detections > none.detections == 0
    assert hopeless.notes == ()
    # As text, because NaN is not equal to itself.
    assert str(replace(hopeless, detections=0)) == str(replace(none, notes=()))


def test_too_many_boxes_leave_a_note(dataset: NuScenesDataset, tmp_path: Path) -> None:
    def crowd(found: Found) -> Found:
        return Found(
            found.boxes_det3d.repeat(60, 1),
            torch.cat((found.scores, found.scores.repeat(59) * 0.1)),
            found.labels.repeat(60),
        )

    metrics = evaluate(dataset, detect(dataset, crowd), tmp_path)
    assert metrics.detections == 500 * KEY_FRAMES
    assert metrics.notes == ("3 samples had more than 500 boxes: the best were kept",)
    # The copies come after the last match and cost the last of the 90 recall bins at most.
    assert metrics.mAP > len(PRESENT) / 10 * (1 - 1 / 90)


def test_tokens_must_match_the_split(dataset: NuScenesDataset, tmp_path: Path) -> None:
    found = detect(dataset)
    removed = found.pop("scene-b-s1")
    with pytest.raises(DatasetError, match=r"has 3 samples; .* miss 1 .*scene-b-s1"):
        evaluate(dataset, found, tmp_path / "out")
    found |= {"scene-b-s1": removed, "scene-a-s0": removed}
    with pytest.raises(DatasetError, match=r"miss 0 of them and hold 1 others.*scene-a-s0"):
        evaluate(dataset, found, tmp_path / "out")
    with pytest.raises(DatasetError, match="nosuch"):
        evaluate_detections(
            dataset.root, VERSION, "nosuch", found, tmp_path / "out", nusc=dataset.nusc
        )
    assert not (tmp_path / "out").exists()


def test_opens_the_tables_itself(tiny: TinyNuScenes, tmp_path: Path) -> None:
    dataset = NuScenesDataset(tiny.root, VERSION, "check", CLASS_NAMES, nsweeps=1)
    found = detect(dataset)
    metrics = evaluate_detections(tiny.root, VERSION, "check", found, tmp_path)
    assert metrics.mAP == pytest.approx(len(PRESENT) / 10)
    with pytest.raises(DatasetError, match=r"cannot open these tables .*v1\.0-none"):
        evaluate_detections(tiny.root, "v1.0-none", "check", found, tmp_path)


def test_official_split_of_another_version(dataset: NuScenesDataset, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="split mini_val has 0 samples"):
        evaluate_detections(
            dataset.root, VERSION, "mini_val", detect(dataset), tmp_path, nusc=dataset.nusc
        )


def test_split_without_ground_truth(tmp_path: Path) -> None:
    tiny = write_tiny_nuscenes(tmp_path / "data")
    keep = "animal"
    animals = {
        row["token"] for row in tiny.table("instance") if row["category_token"] == f"cat-{keep}"
    }
    annotations = [r for r in tiny.table("sample_annotation") if r["instance_token"] in animals]
    (tiny.tables / "sample_annotation.json").write_text(json.dumps(annotations))
    dataset = NuScenesDataset(tiny.root, VERSION, "check", CLASS_NAMES, nsweeps=1)
    box = Found(torch.ones(1, 9), torch.ones(1), torch.zeros(1, dtype=torch.int64))
    with pytest.raises(DatasetError, match="no annotated box of any detection class"):
        evaluate(dataset, dict.fromkeys(dataset.sample_tokens, box), tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())


def test_without_the_devkit(
    dataset: NuScenesDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "nuscenes.nuscenes", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'voxelquant\[nuscenes\]'"):
        evaluate_detections(dataset.root, VERSION, "check", detect(dataset), tmp_path)


def test_broken_detections_leave_nothing_behind(dataset: NuScenesDataset, tmp_path: Path) -> None:
    def break_last(found: Found) -> Found:
        found.scores[-1] = math.nan
        return found

    with pytest.raises(BadInputError, match="not finite"):
        evaluate(dataset, detect(dataset, break_last), tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_file_in_the_way_of_the_folder(dataset: NuScenesDataset, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("")
    with pytest.raises(BadInputError, match="out: cannot be made"):
        evaluate(dataset, detect(dataset), tmp_path / "out")
