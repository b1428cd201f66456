"""The whole promise, small, on a CPU: world → PTQ → official metric → integers → file → report."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

from voxelquant.data.records import FrameDataset
from voxelquant.data.synthetic import (
    TABLE_VERSION,
    WORLD_VERSION,
    ClassMix,
    SceneSpec,
    WorldConfig,
    count_visible_instances,
    write_dataset,
)
from voxelquant.detection.config import DetectorConfig, load_config
from voxelquant.errors import BadInputError
from voxelquant.export.from_graph import export_libspconv
from voxelquant.plural import counted
from voxelquant.recipes.artifacts import provenance, write_json_atomic
from voxelquant.recipes.calibrated import (
    STATE_FILE,
    Calibrated,
    calibration_batches,
    quantize_detector,
)
from voxelquant.recipes.datasets import open_dataset
from voxelquant.recipes.demo_report import draw_demo_report
from voxelquant.recipes.detect import Detector, Engine, open_detector
from voxelquant.recipes.evaluate import Evaluation, evaluate_detector
from voxelquant.recipes.parity import Forms, ParityResult, measure_parity
from voxelquant.recipes.progress import StageReporter
from voxelquant.recipes.synth import say_unfinished

CONFIG = "centerpoint_tiny"
TRAINING_SEED = 1  # of the world that the shipped weights were trained on; docs/tiny_weights.md
RESULT_FILE = "result.json"
# Not `val`: the devkit keeps that name for v1.0-trainval.
CALIBRATION_SPLIT = "demo_calibration"
VALIDATION_SPLIT = "demo_validation"


@dataclass(frozen=True)
class DemoPlan:
    """How large the demo is; the defaults are what `voxelquant demo` promises.

    Attributes:
        calibration_seed: world seed of the calibration scenes.
        validation_seed: world seed of the validation scenes.
        calibration_scenes: scenes of one key frame each.
        validation_scenes: scenes of `key_frames` key frames each.
        key_frames: key frames of a validation scene, 0.5 s apart.
        pictures: validation frames drawn in the report.
        class_mix: of the world; balanced, since so few frames must show every class.
    """

    calibration_seed: int = 2
    validation_seed: int = 3
    calibration_scenes: int = 10
    validation_scenes: int = 21
    key_frames: int = 2
    pictures: int = 4
    class_mix: ClassMix = "balanced"


@dataclass
class DemoRun:
    """What the steps hand to one another."""

    plan: DemoPlan
    folder: Path
    reporter: StageReporter
    config: DetectorConfig = field(default_factory=lambda: load_config(CONFIG))

    @property
    def data_root(self) -> Path:
        """Root of the synthetic dataset."""
        return self.folder / "data"

    def dataset(self, split: str) -> FrameDataset:
        """One split of the synthetic dataset."""
        return open_dataset(self.config, self.data_root, split, TABLE_VERSION)


def run_demo(folder: Path, plan: DemoPlan, reporter: StageReporter) -> dict[str, Any]:
    """Run every step and write `result.json` and `report.html` into the folder.

    Args:
        folder: work dir; the dataset in it is kept if it was written with the same plan.
        plan: sizes and seeds.
        reporter: progress on stderr.

    Returns:
        The content of `result.json`.

    Raises:
        BadInputError: the folder holds another dataset, or seeds are not disjoint.
        MissingDependencyError: nuscenes-devkit or matplotlib is not installed.
    """
    started = time.perf_counter()
    seeds = {
        "training": TRAINING_SEED,
        "calibration": plan.calibration_seed,
        "validation": plan.validation_seed,
    }
    if len(set(seeds.values())) != len(seeds):
        raise BadInputError(f"got seeds {seeds}, need three different ones: no frame is seen twice")
    run = DemoRun(plan, folder, reporter)
    instances = _write_world(run)
    float_detector = open_detector(run.config, tiny_weights(), Engine.FLOAT)
    calibrated = _quantize(run, float_detector)
    state_path = folder / STATE_FILE
    forms = Forms(
        fake=open_detector(run.config, state_path, Engine.FAKE),
        engine=open_detector(run.config, state_path, Engine.INT8),
        float=float_detector,
    )
    scores = _evaluate(run, forms)
    parity, defects = _export_and_compare(run, forms)
    result = {
        "metrics": {engine.value: _headline(score) for engine, score in scores.items()},
        "instances": instances,
        "parity": _parity_summary(parity),
        "export": {"warnings": defects},
        "seeds": seeds,
        "plan": asdict(plan),
        "world_version": WORLD_VERSION,
        "seconds": dict(run.reporter.seconds),  # of the steps before the page, which names them
        **provenance(config=run.config),
    }
    with reporter.stage("report", "drawing the report"):
        draw_demo_report(folder, run.dataset(VALIDATION_SPLIT), calibrated, scores, parity, result)
    files = ("ptq.safetensors", "scn.onnx", "report.html")
    result["files"] = {name: (folder / name).stat().st_size for name in files}
    result["seconds"] = {**reporter.seconds, "total": time.perf_counter() - started}
    write_json_atomic(folder / RESULT_FILE, result)
    return result


def tiny_weights() -> Path:
    """The weights of `centerpoint_tiny` that ship in the package."""
    return Path(str(resources.files("voxelquant.detection"))) / "weights" / f"{CONFIG}.safetensors"


def _write_world(run: DemoRun) -> dict[str, int]:
    plan = run.plan
    splits = {
        CALIBRATION_SPLIT: [
            SceneSpec(plan.calibration_seed, scene, 1) for scene in range(plan.calibration_scenes)
        ],
        VALIDATION_SPLIT: [
            SceneSpec(plan.validation_seed, scene, plan.key_frames)
            for scene in range(plan.validation_scenes)
        ],
    }
    say_unfinished(run.data_root, run.reporter)
    with run.reporter.stage("synth", "writing a synthetic LiDAR world") as advance:
        config = WorldConfig(class_mix=plan.class_mix)
        write_dataset(run.data_root, splits, config=config, progress=advance)
    return count_visible_instances(run.data_root / TABLE_VERSION, VALIDATION_SPLIT)


def _quantize(run: DemoRun, detector: Detector) -> Calibrated:
    dataset = run.dataset(CALIBRATION_SPLIT)
    with run.reporter.stage("ptq", f"calibrating on {counted(len(dataset), 'frame')}") as advance:
        batches = calibration_batches(detector, dataset, len(dataset), 1)
        calibrated = quantize_detector(
            detector, batches, progress=lambda done, _: advance(done, len(dataset))
        )
        calibrated.state.save(run.folder / STATE_FILE)
    return calibrated


def _evaluate(run: DemoRun, forms: Forms) -> dict[Engine, Evaluation]:
    assert forms.float is not None
    dataset = run.dataset(VALIDATION_SPLIT)
    scores = {}
    for engine, detector in (
        (Engine.FLOAT, forms.float),
        (Engine.FAKE, forms.fake),
        (Engine.INT8, forms.engine),
    ):
        title = f"evaluating {engine.value} on {counted(len(dataset), 'frame')}"
        with run.reporter.stage(f"eval_{engine.value}", title) as advance:
            out_dir = run.folder / "eval" / engine.value
            scores[engine] = evaluate_detector(detector, dataset, out_dir, advance)
    return scores


def _export_and_compare(run: DemoRun, forms: Forms) -> tuple[ParityResult, list[str]]:
    onnx = run.folder / "scn.onnx"
    x = forms.engine.read([run.dataset(VALIDATION_SPLIT)[0].points])
    with run.reporter.stage("export", "exporting scn.onnx and checking it"):
        exported = export_libspconv(forms.fake.network, onnx, example=x)
    with run.reporter.stage("parity", "comparing float, fake-quant, integer engine and file"):
        parity = measure_parity(forms, x, onnx)
    return parity, [str(defect) for defect in exported.warnings]


def _headline(score: Evaluation) -> dict[str, Any]:
    metrics = score.metrics
    return {
        "mAP": metrics.mAP,
        "NDS": metrics.NDS,
        "per_class_ap": metrics.per_class_ap,
        "tp_errors": metrics.tp_errors,
        "seconds_per_frame": score.seconds_per_frame,
        "samples": metrics.samples,
    }


def _parity_summary(parity: ParityResult) -> dict[str, Any]:
    return {
        "holds": parity.holds,
        "flip_rate": parity.flip_rate,
        "unexplained": parity.unexplained,
        "engine_equals_file": parity.output_equal is True and parity.first_difference is None,
        "layers": [asdict(layer) for layer in parity.layers],
    }
