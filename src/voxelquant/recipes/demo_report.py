"""From the results of a demo run to the values that its page is drawn from."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from voxelquant.data.records import FrameDataset
from voxelquant.detection.decode import Detections
from voxelquant.plural import counted
from voxelquant.quant.calibrate import TensorStatistics
from voxelquant.quant.histogram import BINS
from voxelquant.recipes.calibrated import Calibrated
from voxelquant.recipes.detect import Engine
from voxelquant.recipes.evaluate import Evaluation
from voxelquant.recipes.parity import ParityResult
from voxelquant.recipes.report import save_report_data, write_report
from voxelquant.report.model import (
    DatasetSummary,
    EngineScore,
    Execution,
    FramePicture,
    RunReport,
    TensorHistogram,
)

# Boxes below this score are left out of the pictures; the metric counts all of them.
_SHOWN_SCORE = 0.3

_NAMES = {
    Engine.FLOAT: ("float", Execution.FLOAT),
    Engine.FAKE: ("fake-quant", Execution.SIMULATED),
    Engine.INT8: ("int8 engine", Execution.EXECUTED),
}


def draw_demo_report(
    folder: Path,
    dataset: FrameDataset,
    calibrated: Calibrated,
    scores: Mapping[Engine, Evaluation],
    parity: ParityResult,
    result: Mapping[str, Any],
) -> Path:
    """Keep the page's data in the folder and draw `report.html`; returns its path."""
    report = RunReport(
        title="voxelquant demo",
        summary=_summary(result),
        dataset=DatasetSummary(
            name="synthetic LiDAR world",
            split=dataset.split,
            synthetic=True,
            frames=len(dataset),
            boxes=sum(result["instances"].values()),
            note=_world_in_words(result["seeds"], result["plan"]["class_mix"]),
        ),
        scores=tuple(_score(engine, score) for engine, score in scores.items()),
        calibration={
            "recipe": calibrated.state.recipe.name,
            "description": calibrated.state.recipe.description,
            "frames": str(result["plan"]["calibration_scenes"]),
        },
        pictures=_pictures(dataset, scores, result["plan"]["pictures"]),
        histograms=tuple(_histogram(name, entry) for name, entry in calibrated.statistics.items()),
        layers=parity.layers,
        seconds=result["seconds"],
        provenance={
            **{key: result[key] for key in ("voxelquant", "commit", "versions", "machine")},
            "synthetic world": f"version {result['world_version']}",
        },
    )
    save_report_data(report, folder)
    return write_report(folder)


def _world_in_words(seeds: Mapping[str, int], class_mix: str) -> str:
    named = ", ".join(f"{purpose} {seed}" for purpose, seed in seeds.items())
    return (
        "Boxes are distinct instances within the range of the metric. "
        f"Class mix {class_mix}; world seeds: {named}."
    )


def _summary(result: Mapping[str, Any]) -> str:
    parity = result["parity"]
    same = "equals" if parity["engine_equals_file"] else "does NOT equal"
    return (
        "A CenterPoint with an INT8 sparse backbone, scored by nuscenes-devkit on synthetic "
        f"frames. The exported file, executed from its bytes, {same} the integer engine bit for "
        f"bit; given equal inputs, {1e6 * parity['flip_rate']:.2g} in a million fake-quant codes "
        f"differ from the engine's, {parity['unexplained']} of them beyond rounding."
    )


def _score(engine: Engine, score: Evaluation) -> EngineScore:
    name, execution = _NAMES[engine]
    return EngineScore(
        name=name,
        execution=execution,
        mean_ap=score.metrics.mAP,
        nds=score.metrics.NDS,
        class_ap=score.metrics.per_class_ap,
        mean_errors=score.metrics.tp_errors,
        seconds_per_frame=score.seconds_per_frame,
    )


def _pictures(
    dataset: FrameDataset, scores: Mapping[Engine, Evaluation], count: int
) -> tuple[FramePicture, ...]:
    pictures = []
    for index in np.linspace(0, len(dataset) - 1, count).round().astype(int).tolist():
        frame = dataset[index]
        boxes = frame.boxes_det3d
        truth = np.zeros((0, 9), np.float32) if boxes is None else boxes.numpy()
        float_boxes = _shown(scores[Engine.FLOAT].detections[frame.token])
        int8_boxes = _shown(scores[Engine.INT8].detections[frame.token])
        sample = dataset.nusc.get("sample", frame.token)
        scene = dataset.nusc.get("scene", sample["scene_token"])["name"]
        pictures.append(
            FramePicture(
                caption=f"Scene {scene}, validation frame {index}: "
                f"{counted(len(truth), 'box', 'boxes')} annotated; "
                f"detections with a score above {_SHOWN_SCORE:g}: {len(float_boxes)} of float, "
                f"{len(int8_boxes)} of the int8 engine.",
                points=frame.points.numpy(),
                ground_truth=truth,
                float_boxes=float_boxes,
                int8_boxes=int8_boxes,
            )
        )
    return tuple(pictures)


def _shown(detections: Detections) -> NDArray[np.float32]:
    boxes: NDArray[np.float32] = detections.boxes_det3d[detections.scores > _SHOWN_SCORE].numpy()
    return boxes


def _histogram(name: str, entry: TensorStatistics) -> TensorHistogram:
    histogram = entry.histogram
    return TensorHistogram(
        name=name,
        counts=histogram.counts.numpy(),
        top=histogram.bin_width * BINS,
        amax=entry.amax,
        method=entry.spec.method,
    )
