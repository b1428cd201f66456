"""What the user can mend: one line, exit code 2, nothing under a final name."""

import io
import json
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from small_detector import make_detector
from voxelquant.detection.checkpoint import save_weights

Refusal = Callable[..., str]


@pytest.fixture
def work(tmp_path: Path) -> Path:
    return tmp_path / "work"


@pytest.fixture(autouse=True)
def _nothing_is_left(work: Path) -> object:
    """A refused verb may have made its work dir, and leaves no file in it."""
    yield
    assert [path for path in work.rglob("*") if path.is_file()] == []


def eval_arguments(config: Path, data: Path, weights: Path, work: Path) -> tuple[object, ...]:
    return ("eval", config, "--data", data, "--weights", weights, "--work-dir", work)


def ptq_arguments(config: Path, data: Path, weights: Path, work: Path) -> tuple[object, ...]:
    return ("ptq", config, "--data", data, "--weights", weights, "--work-dir", work)


# The dataset.


@pytest.mark.parametrize("verb", ["eval", "ptq", "train"])
def test_a_missing_dataset(config, weights, work, refusal: Refusal, verb: str) -> None:
    given = () if verb == "train" else ("--weights", weights)
    line = refusal(verb, config, "--data", "/no/such", "--work-dir", work, *given)
    assert line.startswith("/no/such: no such folder")


@pytest.mark.parametrize("verb", ["eval", "sensitivity", "ptq", "train", "qat"])
def test_what_data_may_be(config, weights, work, refusal: Refusal, verb: str) -> None:
    given = () if verb == "train" else ("--weights", weights)
    call = (verb, config, "--work-dir", work, *given)
    may_be_generated = verb in ("ptq", "train", "qat")
    for data in ((), ("--data", "nonsense")):
        line = refusal(*call, *data)
        assert "give --data the root of a nuScenes dataset" in line
        assert line.endswith(", or `synthetic`") == may_be_generated
    if not may_be_generated:
        line = refusal(*call, "--data", "synthetic")
        assert line.startswith("synthetic: no such folder; give --data the root")
        assert line.endswith("; `voxelquant synth --out DATA` writes a synthetic one")


def test_a_folder_that_is_no_dataset(config, weights, tmp_path, work, refusal: Refusal) -> None:
    line = refusal(*eval_arguments(config, tmp_path, weights, work))
    assert "no version folder" in line


def test_a_table_that_is_cut(config, weights, broken, work, refusal: Refusal) -> None:
    table = broken / "v1.0-tiny" / "sample_annotation.json"
    table.write_bytes(table.read_bytes()[:-200])
    line = refusal(*eval_arguments(config, broken, weights, work))
    assert "sample_annotation.json: not valid JSON" in line
    assert "fetch it again" in line


def test_a_table_that_is_missing(config, weights, broken, work, refusal: Refusal) -> None:
    (broken / "v1.0-tiny" / "sample.json").unlink()
    assert "sample.json missing" in refusal(*eval_arguments(config, broken, weights, work))


def a_point_file(root: Path) -> Path:
    """Of the second key frame of the split `tiny_val`."""
    return root / "samples/LIDAR_TOP/scene-b-05.pcd.bin"


@pytest.mark.parametrize("size", [0, 33])
@pytest.mark.parametrize("arguments", [eval_arguments, ptq_arguments])
def test_a_point_file_that_is_cut(
    config, weights, broken, work, refusal: Refusal, size: int, arguments
) -> None:
    path = a_point_file(broken)
    path.write_bytes(path.read_bytes()[:size])
    line = refusal(*arguments(config, broken, weights, work), "--split", "tiny_val")
    assert f"{path.name}: got {size} bytes" in line


def test_training_on_a_point_file_that_is_cut(config, broken, work, refusal: Refusal) -> None:
    for path in broken.glob("samples/LIDAR_TOP/scene-b-*"):
        path.write_bytes(path.read_bytes()[:33])
    arguments = ("--work-dir", work, "--steps", 1, "--batch-size", 1, "--split", "tiny_val")
    line = refusal("train", config, "--data", broken, *arguments)
    assert "got 33 bytes" in line
    (work / "config.yaml").unlink()  # what was asked for stays as a record


def test_a_sample_wholly_outside_the_range(config, weights, broken, work, refusal: Refusal) -> None:
    for path in broken.glob("*/LIDAR_TOP/*"):
        np.full((7, 5), 500, np.float32).tofile(path)
    for arguments in (eval_arguments, ptq_arguments):
        line = refusal(*arguments(config, broken, weights, work))
        assert "sample" in line
        assert "none of its 14 points lies inside the range" in line


@pytest.mark.parametrize("verb", ["eval", "train"])
def test_no_split_to_choose(config, weights, broken, work, refusal: Refusal, verb: str) -> None:
    (broken / "v1.0-tiny" / "splits.json").write_text(json.dumps({"a": ["scene-a"]}))
    given = ("--weights", weights) if verb == "eval" else ()
    line = refusal(verb, config, "--data", broken, "--work-dir", work, *given)
    assert "choose one with --split: a" in line


def test_a_split_that_is_unknown(config, weights, data, work, refusal: Refusal) -> None:
    line = refusal(*eval_arguments(config, data, weights, work), "--split", "tiny_vel")
    assert "did you mean tiny_val?" in line


def test_fewer_frames_than_a_batch(config, weights, data, work, refusal: Refusal) -> None:
    line = refusal(*ptq_arguments(config, data, weights, work), "--batch-size", 4)
    assert "got 3 frames for batches of 4" in line


# The config.


def test_a_config_with_an_unknown_field(config, weights, data, tmp_path, work, refusal) -> None:
    bad = tmp_path / "bad.yaml"
    bad.write_text(config.read_text().replace("voxel_size:", "voxel_sise:"))
    line = refusal(*eval_arguments(bad, data, weights, work))
    assert "voxel_sise" in line
    assert "voxel_size" in line.replace("voxel_sise", "")


def test_a_config_with_code_in_it(weights, data, tmp_path, work, refusal: Refusal) -> None:
    bad, trace = tmp_path / "bad.py", tmp_path / "ran"
    bad.write_text(f"import os\nos.system('touch {trace}')\nmodel = dict(type='VoxelNet')\n")
    refusal(*eval_arguments(bad, data, weights, work))
    assert not trace.exists()


def test_a_config_with_a_yaml_tag(config, weights, data, tmp_path, work, refusal: Refusal) -> None:
    bad, trace = tmp_path / "bad.yaml", tmp_path / "ran"
    bad.write_text(f"name: !!python/object/apply:os.system ['touch {trace}']\n")
    refusal(*eval_arguments(bad, data, weights, work))
    assert not trace.exists()


def test_a_config_that_is_not_there(weights, data, work, refusal: Refusal) -> None:
    line = refusal(*eval_arguments(Path("centerpoint_tyni"), data, weights, work))
    assert "`centerpoint_tiny`" in line


# Weights and states.


@pytest.mark.parametrize("arguments", [eval_arguments, ptq_arguments])
def test_weights_of_another_model(config, weights, data, work, refusal, arguments) -> None:
    line = refusal(*arguments("centerpoint_tiny", data, weights, work))
    assert "of another model" in line


def test_weights_that_are_nan(config, weights, data, tmp_path, work, refusal: Refusal) -> None:
    tensors = load_file(weights)
    tensors["neck.blocks.0.1.weight"][0, 0, 0, 0] = float("nan")
    save_file(tensors, tmp_path / "nan.safetensors")
    for arguments in (eval_arguments, ptq_arguments):
        line = refusal(*arguments(config, data, tmp_path / "nan.safetensors", work))
        assert "neck.blocks.0.1.weight: 1 of" in line
        assert "NaN" in line


def test_weights_that_are_cut(config, weights, data, tmp_path, work, refusal: Refusal) -> None:
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(weights.read_bytes()[:-100])
    assert "not a whole safetensors file" in refusal(*eval_arguments(config, data, cut, work))


class _Harm:
    """An object whose unpickling would run a command."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[object, ...]:
        return os.system, (f"touch {self.trace}",)


@pytest.mark.parametrize("zipped", [False, True])
def test_a_malicious_checkpoint(config, data, tmp_path, work, refusal, zipped: bool) -> None:
    path, trace = tmp_path / "bad.pth", tmp_path / "ran"
    content = pickle.dumps({"state_dict": _Harm(trace)}, protocol=2)
    if zipped:
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as archive:
            archive.writestr("bad/data.pkl", content)
            archive.writestr("bad/version", "3\n")
            archive.writestr("bad/byteorder", "little")
        content = buffer.getvalue()
    path.write_bytes(content)
    line = refusal(*eval_arguments(config, data, path, work))
    assert "system" in line or "not a whole torch checkpoint" in line
    assert not trace.exists()


def quantized_verbs(config: Path, weights: Path, work: Path) -> list[tuple[object, ...]]:
    return [
        ("export", config, "--weights", weights, "--out", work / "scn.onnx"),
        ("parity", config, "--weights", weights),
    ]


def test_a_foreign_safetensors_as_a_state(config, data, tmp_path, work, refusal) -> None:
    foreign = tmp_path / "foreign.safetensors"
    save_file({"a": torch.zeros(3)}, foreign)
    for verb in quantized_verbs(config, foreign, work):
        line = refusal(*verb)
        assert "`voxelquant ptq`" in line


def test_float_weights_where_a_state_is_needed(
    config, weights, data, tmp_path, work, refusal: Refusal
) -> None:
    index = tmp_path / "small.safetensors.index.json"
    save_weights(make_detector(config), index, shard_bytes=400_000)
    text = tmp_path / "notes.json"
    text.write_text("{}")
    for given, what in (
        (weights, "got a safetensors file that is no quantized state, float weights perhaps; "),
        (index, "got an index of float weights in shards, need a quantized state; "),
        (text, "got JSON, need a quantized state; "),
    ):
        evaluation = (*eval_arguments(config, data, given, work), "--engine", "int8")
        for verb in (*quantized_verbs(config, given, work), evaluation):
            advice = "`voxelquant ptq` makes a state from float weights"
            assert refusal(*verb) == f"{given}: {what}{advice}"


def test_a_state_as_float_weights(config, state, data, work, refusal: Refusal) -> None:
    for arguments in (eval_arguments, ptq_arguments):
        line = refusal(*arguments(config, data, state, work))
        assert "got a quantized state, need float weights" in line


def changed_state(state: Path, target: Path, change: Callable[[dict], None]) -> Path:
    with safe_open(state, framework="pt") as file:
        header = file.metadata()
    tensors = load_file(state)
    change(tensors)
    save_file(tensors, target, metadata=header)
    return target


AMAX = "activation_amax/backbone.conv2.0"


@pytest.mark.parametrize("how", ["missing", "nan"])
def test_an_uncalibrated_model(config, state, tmp_path, work, refusal, how: str) -> None:
    def uncalibrate(tensors: dict) -> None:
        name = next(name for name in sorted(tensors) if name.startswith("activation_amax/"))
        if how == "missing":
            del tensors[name]
        else:
            tensors[name] = torch.full_like(tensors[name], float("nan"))

    bad = changed_state(state, tmp_path / "bad.safetensors", uncalibrate)
    for verb in quantized_verbs(config, bad, work):
        assert "activation_amax/" in refusal(*verb)


def test_a_state_of_another_model(state, work, refusal: Refusal) -> None:
    for verb in quantized_verbs(Path("centerpoint_tiny"), state, work):
        refusal(*verb)


def test_a_state_that_is_cut(config, state, tmp_path, work, refusal: Refusal) -> None:
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(state.read_bytes()[:-100])
    for verb in quantized_verbs(config, cut, work):
        assert "truncated" in refusal(*verb)


def test_a_recipe_that_is_unknown(config, weights, data, work, refusal: Refusal) -> None:
    line = refusal(*ptq_arguments(config, data, weights, work), "--recipe", "int7")
    assert "int7" in line


# Frames.


def frame_file(path: Path, points: np.ndarray) -> Path:
    np.savez(path, points=points)
    return path


def frames_nobody_can_run(folder: Path) -> dict[str, Path]:
    outside = np.full((9, 5), 400, np.float32)
    broken = outside.copy()
    broken[3, 1] = np.nan
    cut = folder / "cut.bin"
    cut.write_bytes(b"\0" * 21)
    torn = folder / "torn.npz"
    torn.write_bytes(frame_file(folder / "whole.npz", outside).read_bytes()[:60])
    named = folder / "named.npz"
    np.savez(named, voxels=outside)
    empty = folder / "empty.pcd.bin"
    empty.touch()
    objects = folder / "objects.npz"
    np.savez(objects, points=np.array([{}], dtype=object))
    text = folder / "frame.txt"
    text.touch()
    return {
        "got points of shape [0, 5]": frame_file(folder / "none.npz", outside[:0]),
        "none of its 9 points lies inside the range": frame_file(folder / "far.npz", outside),
        "NaN or infinite": frame_file(folder / "nan.npz", broken),
        "got points of shape [9, 3]": frame_file(folder / "three.npz", outside[:, :3]),
        "got 21 bytes": cut,
        "not a whole .npz": torn,
        "no array `points`": named,
        "got 0 bytes": empty,
        "plain arrays": objects,
        "unknown kind": text,
        "cannot be read (No such file": folder / "absent.npz",
    }


def test_frames_nobody_can_run(config, state, tmp_path, work, refusal: Refusal) -> None:
    for message, path in frames_nobody_can_run(tmp_path).items():
        for verb in quantized_verbs(config, state, work):
            assert message in refusal(*verb, "--frame", path)


def test_more_voxels_than_the_bound(config, state, frame, work, done, refusal, tmp_path) -> None:
    out = work / "scn.onnx"
    export = ("export", config, "--weights", state, "--output-bound", 50)
    line = refusal(*export, "--out", out, "--frame", frame)
    assert "output_bound is 50" in line
    few = frame_file(tmp_path / "few.npz", np.load(frame)["points"][:3])
    done(*export, "--out", tmp_path / "small.onnx", "--frame", few)
    parity = ("parity", config, "--weights", state, "--onnx", tmp_path / "small.onnx")
    assert "output_bound is 50" in refusal(*parity, "--frame", frame)


def test_a_bare_array_under_the_name_of_an_archive(config, state, tmp_path, refusal) -> None:
    np.save(tmp_path / "bare.npy", np.zeros((3, 5)))
    bare = (tmp_path / "bare.npy").rename(tmp_path / "bare.npz")
    assert "got an .npy" in refusal("parity", config, "--weights", state, "--frame", bare)


def test_resuming_the_training_of_another_model(config, data, tmp_path, done, refusal) -> None:
    train = ("--data", data, "--steps", 1, "--batch-size", 1, "--work-dir", tmp_path / "run")
    done("train", config, *train)
    line = refusal("train", "centerpoint_tiny", *train, "--resume")
    assert "got config " in line
    assert "name: small" in (tmp_path / "run" / "config.yaml").read_text()


def test_frame_and_data_together(config, state, data, frame, work, refusal: Refusal) -> None:
    for verb in quantized_verbs(config, state, work):
        assert "--frame and --data" in refusal(*verb, "--frame", frame, "--data", data)
