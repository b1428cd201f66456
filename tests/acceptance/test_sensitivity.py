"""The shipped weights with the range of one layer's input 20 times too large: it is found.

`benchmarks/sensitivity_tiny.py` does the same with all frames and the whole range.
"""

from dataclasses import replace
from pathlib import Path

import pytest

from voxelquant.data.synthetic import TABLE_VERSION, SceneSpec, WorldConfig, write_dataset
from voxelquant.detection.config import config_to_yaml, load_config
from voxelquant.quant.state import ACTIVATION_AMAX, QuantState
from voxelquant.recipes.calibrated import calibration_batches, quantize_detector
from voxelquant.recipes.datasets import open_dataset
from voxelquant.recipes.demo import tiny_weights
from voxelquant.recipes.detect import Engine, open_detector
from voxelquant.recipes.progress import StageReporter
from voxelquant.recipes.sensitivity import run_sensitivity
from voxelquant.recipes.sensitivity_request import SensitivityRequest
from voxelquant.recipes.sensitivity_result import SensitivityResult, SuggestionRule

# In the middle of the network, with no skip around it; its input is read by nobody else.
SABOTAGED = "backbone.conv3.0"
FACTOR = 20.0


def sabotage(state: QuantState) -> QuantState:
    (tensor,) = state.plan.graph.node(SABOTAGED).inputs
    assert [node.name for node in state.plan.graph.consumers(tensor)] == [SABOTAGED]
    key = ACTIVATION_AMAX + tensor
    return replace(state, tensors={**state.tensors, key: state.tensors[key] * FACTOR})


@pytest.fixture(scope="module")
def profile(tmp_path_factory: pytest.TempPathFactory) -> SensitivityResult:
    """Two frames in a square of 51 m, which the world fills with two dozen objects each."""
    folder: Path = tmp_path_factory.mktemp("sensitivity")
    splits = {"ranges": [SceneSpec(2, 0, 1)], "frames": [SceneSpec(3, n, 1) for n in range(2)]}
    write_dataset(folder / "data", splits, config=WorldConfig(class_mix="balanced"))
    tiny = load_config("centerpoint_tiny")
    config = tiny.model_copy(update={"point_range": (-25.6, -25.6, -5.0, 25.6, 25.6, 3.0)})
    (folder / "near.yaml").write_text(config_to_yaml(config))
    detector = open_detector(config, tiny_weights(), Engine.FLOAT)
    dataset = open_dataset(config, folder / "data", "ranges", TABLE_VERSION)
    batches = calibration_batches(detector, dataset, 1, 1)
    state = quantize_detector(detector, batches, recipe="int8").state
    sabotage(state).save(folder / "sabotaged.safetensors")
    request = SensitivityRequest(
        config=str(folder / "near.yaml"),
        data=str(folder / "data"),
        weights=folder / "sabotaged.safetensors",
        float_weights=tiny_weights(),
        work_dir=folder / "profile",
        split="frames",
        rule=SuggestionRule(keep_worst=1),  # two frames make no layer's cost sure
        resamples=20,
        device="cpu",
    )
    result = run_sensitivity(request, StageReporter.silent())
    assert result is not None
    return result


def test_the_sabotaged_layer_is_the_worst_by_both_metrics(profile: SensitivityResult) -> None:
    assert len(profile.layers) == 28  # all but the one on the raw input
    worst, second = profile.layers[:2]
    assert worst.name == SABOTAGED
    assert worst.cost_mAP is not None
    assert second.cost_mAP is not None
    assert worst.cost_mAP.value > 0.01 + second.cost_mAP.value
    by_proxy = sorted(profile.layers, key=lambda layer: -layer.cost_proxy)
    assert by_proxy[0].name == SABOTAGED
    assert by_proxy[0].cost_proxy > 2 * by_proxy[1].cost_proxy


def test_the_suggested_recipe_keeps_it_in_fp16(profile: SensitivityResult) -> None:
    assert profile.suggestion.kept == (SABOTAGED,)
    assert profile.suggestion.recipe.setting(SABOTAGED, "precision") == "fp16"
