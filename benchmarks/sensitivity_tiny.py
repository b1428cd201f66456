"""Sensitivity of the shipped tiny model, and whether a sabotaged layer is found.

Writes a synthetic world, profiles every layer by the official metric and by the proxy, and scores
the recipe that the profile suggests: for INT8, and for a coarse quantization of which every layer
bears a part. Then the INT8 profile again, with the range of one layer's input made 20 times too
large. What is interrupted goes on with the same command; times are those of its last run.

    python benchmarks/sensitivity_tiny.py runs/sensitivity_tiny
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

from voxelquant.data.synthetic import TABLE_VERSION, SceneSpec, WorldConfig, write_dataset
from voxelquant.quant.state import ACTIVATION_AMAX, QuantState
from voxelquant.recipes.artifacts import provenance, to_jsonable, write_json_atomic
from voxelquant.recipes.demo import CONFIG, tiny_weights
from voxelquant.recipes.evaluate import EvaluateRequest, Evaluation, run_evaluation
from voxelquant.recipes.progress import StageReporter
from voxelquant.recipes.ptq import PtqRequest, run_ptq
from voxelquant.recipes.sensitivity import run_sensitivity
from voxelquant.recipes.sensitivity_request import SensitivityRequest
from voxelquant.recipes.sensitivity_result import SensitivityResult

# 4-bit weights, 98th percentile, ranges of one batch: benchmarks/qat_recovery.py has the same.
COARSE = Path(__file__).parent / "recipes" / "bad_ptq.yaml"
CALIBRATION_SEED, VALIDATION_SEED = 2, 3  # neither is the training's; docs/tiny_weights.md
CALIBRATION_SPLIT, VALIDATION_SPLIT = "profile_calibration", "profile_validation"
# In the middle of the network, with no skip around it; its input is read by nobody else.
SABOTAGED = "backbone.conv3.0"
FACTOR = 20.0
RESULT = Path(__file__).parent / "results" / "sensitivity_tiny.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--scenes", type=int, default=52, help="of two validation frames each")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--out", type=Path, default=RESULT)
    options = parser.parse_args()
    folder, reporter = options.folder, StageReporter()
    data = write_world(folder / "data", options.scenes)
    request = SensitivityRequest(
        config=CONFIG,
        data=str(data),
        weights=tiny_weights(),
        work_dir=folder / "int8",
        split=VALIDATION_SPLIT,
        calibration_split=CALIBRATION_SPLIT,
        version=TABLE_VERSION,
        device=options.device,
    )
    coarse = replace(request, recipe=str(COARSE), calibrate_batches=1, work_dir=folder / "coarse")
    write_json_atomic(
        options.out,
        {
            "command": "python benchmarks/sensitivity_tiny.py runs/sensitivity_tiny",
            "frames": 2 * options.scenes,
            "int8": profile_and_suggestion(request, reporter),
            "coarse": profile_and_suggestion(coarse, reporter),
            "sabotaged": profile_sabotaged(request, folder / "sabotaged", reporter),
            "seconds": reporter.seconds,
            "seeds": {"calibration": CALIBRATION_SEED, "validation": VALIDATION_SEED},
            **provenance(),
        },
    )
    print(options.out)


def write_world(root: Path, scenes: int) -> Path:
    splits = {
        CALIBRATION_SPLIT: [SceneSpec(CALIBRATION_SEED, scene, 1) for scene in range(10)],
        VALIDATION_SPLIT: [SceneSpec(VALIDATION_SEED, scene, 2) for scene in range(scenes)],
    }
    write_dataset(root, splits, config=WorldConfig(class_mix="balanced"))
    return root


def profile_and_suggestion(request: SensitivityRequest, reporter: StageReporter) -> dict[str, Any]:
    """The profile, and float against `ptq --recipe suggested.yaml` on the same frames."""
    profile = run_sensitivity(request, reporter)
    assert profile is not None
    folder = request.work_dir
    state = run_ptq(
        PtqRequest(
            config=CONFIG,
            data=request.data,
            weights=request.weights,
            work_dir=folder / "ptq",
            recipe=str(folder / "suggested.yaml"),
            split=CALIBRATION_SPLIT,
            version=request.version,
            device=request.device,
            calibrate_batches=request.calibrate_batches,
        ),
        reporter,
    )
    score_float = evaluation_of(request, folder / "float", "float", request.weights)
    run_evaluation(score_float, reporter)
    score_fake = evaluation_of(request, folder / "fake", "fake", state)
    scored = run_evaluation(replace(score_fake, against=folder / "float"), reporter)
    assert isinstance(scored, Evaluation)
    suggested = {
        "mAP": scored.metrics.mAP,
        "NDS": scored.metrics.NDS,
        "difference_to_float": to_jsonable(scored.difference),
    }
    return {**summary(profile), "suggested": suggested}


def evaluation_of(
    request: SensitivityRequest, work_dir: Path, engine: str, weights: Path
) -> EvaluateRequest:
    return EvaluateRequest(
        config=CONFIG,
        data=request.data,
        weights=weights,
        work_dir=work_dir,
        engine=engine,
        split=VALIDATION_SPLIT,
        version=request.version,
        device=request.device,
    )


def profile_sabotaged(
    request: SensitivityRequest, folder: Path, reporter: StageReporter
) -> dict[str, Any]:
    """The profile of the same ranges, but for one of them."""
    state = QuantState.load(request.work_dir / "ranges.safetensors")
    (tensor,) = state.plan.graph.node(SABOTAGED).inputs
    assert [n.name for n in state.plan.graph.consumers(tensor)] == [SABOTAGED]
    key = ACTIVATION_AMAX + tensor
    tensors = {**state.tensors, key: state.tensors[key] * FACTOR}
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "sabotaged.safetensors"
    replace(state, tensors=tensors).save(path)
    profile = run_sensitivity(
        replace(request, weights=path, float_weights=request.weights, work_dir=folder / "profile"),
        reporter,
    )
    assert profile is not None
    return {
        "layer": SABOTAGED,
        "factor": FACTOR,
        "rank_by_mAP": 1 + [layer.name for layer in profile.layers].index(SABOTAGED),
        "rank_by_proxy": 1 + by_proxy(profile).index(SABOTAGED),
        **summary(profile),
    }


def by_proxy(profile: SensitivityResult) -> list[str]:
    ranked = sorted(profile.layers, key=lambda layer: -layer.cost_proxy)
    return [layer.name for layer in ranked]


def summary(profile: SensitivityResult) -> dict[str, Any]:
    return {
        "float": to_jsonable(profile.float_score),
        "quantized": to_jsonable(profile.quantized_score),
        "spearman_proxy_mAP": profile.spearman,
        "kept": profile.suggestion.kept,
        "dragged": profile.suggestion.dragged,
        "rule": profile.rule,
        "layers": [
            {
                "name": layer.name,
                "mAP_lost": to_jsonable(layer.cost_mAP),
                "NDS_lost": to_jsonable(layer.cost_NDS),
                "proxy": layer.cost_proxy,
                "head_error": layer.score.proxy.head_error,
                "churn": layer.score.proxy.churn,
            }
            for layer in profile.layers
        ],
    }


if __name__ == "__main__":
    main()
