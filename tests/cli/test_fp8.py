"""A detector in fp8, from the recipe to the metric."""

import json
from pathlib import Path

import pytest
import torch

from voxelquant import QuantState
from voxelquant.detection.config import load_config
from voxelquant.quant import Fp8SparseAdd, Fp8SparseConv3d, load_recipe
from voxelquant.recipes.detect import Engine, open_detector


@pytest.fixture(scope="module")
def fp8_state(tmp_path_factory: pytest.TempPathFactory, done, config, data, weights) -> Path:
    folder = tmp_path_factory.mktemp("fp8")
    arguments = ("--data", data, "--weights", weights, "--work-dir", folder, "--split", "both")
    done("ptq", config, *arguments, "--calibrate-batches", 2, "--recipe", "fp8")
    return folder / "ptq.safetensors"


def test_ptq_takes_the_largest_magnitudes(fp8_state) -> None:
    state = QuantState.load(fp8_state)
    convs = [node.path for node in state.plan.quantized_convs]
    assert len(convs) == 20  # all but the one on the raw input
    assert {state.plan.precision[path] for path in convs} == {"fp8"}
    assert state.plan.precision["backbone.conv_input.0"] == "fp16"
    assert state.recipe.activations.method == "max"


@pytest.mark.parametrize("engine", ["fake", "fp8"])
def test_eval_says_what_ran(tmp_path, done, config, data, fp8_state, engine) -> None:
    arguments = ("--data", data, "--weights", fp8_state, "--work-dir", tmp_path)
    shown = done("eval", config, *arguments, "--engine", engine).stdout
    assert {"fake": "Engine fake (simulated)", "fp8": "Engine fp8 (executed)"}[engine] in shown
    assert json.loads((tmp_path / "metrics.json").read_text())["engine"] == engine


def test_a_state_is_not_executed_under_another_name(
    refusal, config, data, state, fp8_state
) -> None:
    evaluate = ("eval", config, "--data", data)
    line = refusal(*evaluate, "--weights", fp8_state, "--engine", "int8")
    assert "fp8 layers for engine int8, need --engine fp8" in line
    line = refusal(*evaluate, "--weights", state, "--engine", "fp8")
    assert "got a state with 0 fp8 layers for engine fp8, need --engine int8" in line
    line = refusal(*evaluate, "--weights", fp8_state)
    assert "--engine fake, int8 or fp8" in line


def test_the_engine_holds_fp8_layers(config, fp8_state) -> None:
    network = open_detector(load_config(config), fp8_state, Engine.FP8).network
    assert isinstance(network.backbone.conv4[0], Fp8SparseConv3d)
    assert network.backbone.conv4[0].weight_q.dtype == torch.float8_e4m3fn
    assert isinstance(network.backbone.conv1[0].add, Fp8SparseAdd)


def test_parity_holds(done, config, fp8_state, weights, frame) -> None:
    arguments = ("--weights", fp8_state, "--float-weights", weights, "--frame", frame)
    shown = done("parity", config, *arguments).stdout
    assert "The law holds." in shown
    assert "fp8 → fp8" in shown


def test_export_names_the_layers_that_no_file_can_hold(
    tmp_path, refusal, config, fp8_state, frame
) -> None:
    export = ("export", config, "--weights", fp8_state, "--out")
    line = refusal(*export, tmp_path / "scn.onnx", "--frame", frame)
    assert "fp8 layers (backbone.conv1.0.conv1, " in line
    assert "libspconv computes in int8 and fp16 alone" in line
    line = refusal(*export, tmp_path / "ptq.pth")
    assert "fp8 layers (backbone.conv1.0.conv1, " in line
    assert "NVIDIA's layout holds int8 and fp16 alone" in line
    assert list(tmp_path.iterdir()) == []


def test_a_method_without_fp8_is_refused_before_any_frame_is_read(
    tmp_path, refusal, config, data, weights
) -> None:
    ptq = ("ptq", config, "--data", data, "--weights", weights, "--work-dir", tmp_path)
    line = refusal(*ptq, "--recipe", "fp8", "--method", "entropy")
    assert "got method 'entropy' for an fp8 tensor, need max, percentile or mse" in line


def test_qat_trains_in_fp8(tmp_path, done, config, data, fp8_state) -> None:
    arguments = ("--data", data, "--weights", fp8_state, "--work-dir", tmp_path)
    done("qat", config, *arguments, "--steps", 1, "--batch-size", 1)
    trained, before = QuantState.load(tmp_path / "qat.safetensors"), QuantState.load(fp8_state)
    assert trained.plan == before.plan
    key = "backbone.conv4.0.weight"
    assert not torch.equal(trained.tensors[key], before.tensors[key])


def test_a_profile_in_fp8_suggests_fp8(tmp_path, done, config, data, weights, fp8_state) -> None:
    of_state = ("--weights", fp8_state, "--float-weights", weights)
    frames = ("--metric", "proxy", "--frames", 1, "--split", "both")
    profile = ("sensitivity", config, "--data", data, *of_state, *frames)
    done(*profile, "--keep-worst", 1, "--work-dir", tmp_path)
    suggested = load_recipe(tmp_path / "suggested.yaml")
    assert suggested.precision == "fp8"
    (kept,) = json.loads((tmp_path / "sensitivity.json").read_text())["suggestion"]["kept"]
    ptq = ("ptq", config, "--data", data, "--weights", weights, "--split", "both")
    recipe = ("--recipe", tmp_path / "suggested.yaml", "--calibrate-batches", 1)
    done(*ptq, *recipe, "--work-dir", tmp_path / "kept")
    precision = QuantState.load(tmp_path / "kept" / "ptq.safetensors").plan.precision
    assert precision[kept] == "fp16"
    assert set(precision.values()) == {"fp8", "fp16"}
