"""Every verb does its work, on a detector and a dataset that are small."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from onnx import load, save
from safetensors.torch import load_file

from voxelquant import QuantState


def read_json(path: Path) -> dict:
    return json.loads(path.read_text())


def test_synth_writes_what_it_says(tmp_path, done) -> None:
    synth = ("synth", "--out", tmp_path / "data", "--scenes", 2, "--seed", 9, "--key-frames", 1)
    shown = done(*synth).stdout
    assert "synthetic_train" in shown
    assert "synthetic_val" in shown
    splits = read_json(tmp_path / "data" / "v1.0-synthetic" / "splits.json")
    assert splits == {
        "synthetic_train": ["synthetic-9-00000"],
        "synthetic_val": ["synthetic-9-00001"],
    }
    tables = tmp_path / "data" / "v1.0-synthetic"
    assert len(read_json(tables / "sample.json")) == 2
    assert read_json(tables / "synthetic_world.json")["config"]["class_mix"] == "nuscenes"
    assert "class mix nuscenes" in read_json(tables / "scene.json")[0]["description"]
    assert done(*synth).stdout == shown  # written already: kept


def test_synth_names_what_differs(tmp_path, done, refusal) -> None:
    synth = ("synth", "--out", tmp_path / "data", "--split", "a=1", "--key-frames", 1)
    assert "writing 1 scene of seed 0 ..." in done(*synth).stderr
    line = refusal(*synth, "--class-mix", "balanced", "--seed", 3)
    assert "a synthetic data set of class mix nuscenes, not balanced; seed 0, not 3: " in line
    assert "splits a=1, not a=1 and b=1: delete it or name" in refusal(*synth, "--split", "b=1")


def test_synth_names_what_a_killed_one_left(tmp_path, done) -> None:
    left = tmp_path / ".data.partial-4711"
    left.mkdir()
    synth = ("synth", "--out", tmp_path / "data", "--split", "a=1", "--key-frames", 1)
    note = f"note: {left}: unfinished; delete it unless a run is still writing there\n"
    assert done(*synth).stderr.startswith(note)
    assert left.is_dir()
    assert note not in done(*synth).stderr  # which keeps what stands there and writes nothing


def test_ptq_calibrates_on_exactly_so_many_batches(tmp_path, done, config, broken, weights) -> None:
    (broken / "samples/LIDAR_TOP/scene-a-10.pcd.bin").unlink()  # the third frame is not read
    ptq = ("ptq", config, "--data", broken, "--weights", weights, "--method", "max")
    result = done(*ptq, "--work-dir", tmp_path, "--calibrate-batches", 2)
    assert result.stdout.split() == [str(tmp_path / "ptq.safetensors")]
    assert "calibrating on 2 batches ..." in result.stderr
    metrics = read_json(tmp_path / "metrics.json")
    assert metrics["calibrate_batches"] == 2
    assert metrics["split"] == "tiny_train"
    assert metrics["provenance"]["config"]["name"] == "small"
    state = QuantState.load(tmp_path / "ptq.safetensors")
    assert {name: float(state.activation_amax(name)) for name in metrics["amax"]} == pytest.approx(
        metrics["amax"]
    )


def test_ptq_says_that_frames_are_fewer_than_asked_for(
    tmp_path, done, config, data, weights
) -> None:
    ptq = ("ptq", config, "--data", data, "--weights", weights, "--batch-size", 2)
    result = done(*ptq, "--work-dir", tmp_path, "--calibrate-batches", 3)
    assert "calibrating on 1 batch, not 3: tiny_train has 3 frames" in result.stderr
    assert read_json(tmp_path / "metrics.json")["calibrate_batches"] == 1


@pytest.mark.parametrize("engine", ["float", "fake", "int8"])
def test_eval_prints_and_keeps_the_metric(
    tmp_path, done, config, data, weights, state, engine
) -> None:
    given = weights if engine == "float" else state
    arguments = ("--data", data, "--weights", given, "--work-dir", tmp_path, "--engine", engine)
    shown = done("eval", config, *arguments).stdout
    metrics = read_json(tmp_path / "metrics.json")
    assert metrics["split"] == "tiny_val"
    assert metrics["engine"] == engine
    assert metrics["metrics"]["samples"] == 3
    for label in ("mAP", "NDS", *metrics["metrics"]["per_class_ap"]):
        assert label in shown
    assert {path.name for path in tmp_path.iterdir()} == {
        "metrics.json",
        "metrics_summary.json",
        "submission.json",
    }


def test_eval_against_an_earlier_run_says_how_sure_the_difference_is(
    tmp_path, done, refusal, config, data, weights, state
) -> None:
    first, second = tmp_path / "float", tmp_path / "fake"
    float_run = ("eval", config, "--data", data, "--weights", weights, "--work-dir", first)
    fake_run = ("eval", config, "--data", data, "--weights", state, "--work-dir", second)
    assert "bootstrap" not in done(*float_run).stdout
    shown = done(*fake_run, "--engine", "fake", "--against", first).stdout
    assert "95 %, paired bootstrap over 3 frames" in " ".join(shown.split())
    difference = read_json(second / "metrics.json")["difference"]
    values = [read_json(run / "metrics.json")["metrics"] for run in (first, second)]
    for name in ("mAP", "NDS"):
        assert difference[name]["value"] == pytest.approx(values[1][name] - values[0][name])
        assert difference[name]["low"] <= difference[name]["high"]
    assert "got the same folder" in refusal(*fake_run, "--engine", "fake", "--against", second)
    line = refusal(*fake_run, "--engine", "fake", "--against", tmp_path / "nowhere")
    assert "nowhere/submission.json: cannot be read" in line


def test_export_writes_a_file_without_defects(onnx, run) -> None:
    result = run("check", onnx)
    assert result.exit_code == 0
    assert result.stdout == f"{onnx}: no warnings, no errors\n"


@pytest.mark.parametrize("source", ["frame", "data", "pcd", "raw"])
def test_export_takes_its_example_from_anywhere(
    tmp_path, done, config, data, state, frame, source
) -> None:
    raw = tmp_path / "frame.bin"
    np.load(frame)["points"].tofile(raw)
    choice = {
        "frame": ("--frame", frame),
        "data": ("--data", data, "--split", "both"),
        "pcd": ("--frame", data / "samples/LIDAR_TOP/scene-a-00.pcd.bin"),
        "raw": ("--frame", raw),
    }[source]
    out = tmp_path / "scn.onnx"
    shown = done("export", config, "--weights", state, "--out", out, *choice).stdout
    assert shown.splitlines()[-1] == str(out)
    assert out.stat().st_size > 10_000


def test_the_raw_and_the_npz_frame_give_one_file(
    tmp_path, done, config, state, frame, onnx
) -> None:
    raw = tmp_path / "frame.bin"
    np.load(frame)["points"].tofile(raw)
    done("export", config, "--weights", state, "--out", tmp_path / "a.onnx", "--frame", raw)
    assert (tmp_path / "a.onnx").read_bytes() == onnx.read_bytes()


def test_the_world_lends_a_frame_where_none_is_named(tmp_path, done, config, state) -> None:
    out = tmp_path / "scn.onnx"
    result = done("export", config, "--weights", state, "--out", out)
    assert "a frame of the synthetic world" in result.stderr


def test_check_lists_every_defect(tmp_path, onnx, run) -> None:
    model = load(onnx)
    conv = next(n for n in model.graph.node if n.op_type == "SparseConvolution")
    next(a for a in conv.attribute if a.name == "output_bound").i = 1
    bias = model.graph.initializer[1]
    bias.raw_data = bias.raw_data[:-2]
    save(model, tmp_path / "bad.onnx")
    result = run("check", tmp_path / "bad.onnx")
    assert result.exit_code == 2
    assert bias.name in result.stdout
    assert result.stderr.startswith(f"voxelquant: {tmp_path / 'bad.onnx'}: ")
    assert result.stderr.count("\n") == 1


def test_parity_holds_from_float_to_file(done, config, state, weights, onnx, frame) -> None:
    arguments = ("--weights", state, "--float-weights", weights, "--onnx", onnx, "--frame", frame)
    shown = done("parity", config, *arguments).stdout
    assert "equals the engine bit for bit" in shown
    assert "The law holds." in shown
    assert "extra_conv.0" in shown


def test_parity_of_a_state_alone(done, config, state, frame) -> None:
    shown = done("parity", config, "--weights", state, "--frame", frame).stdout
    assert "The law holds." in shown
    assert "–" in shown  # no float, no SQNR
    assert "The file" not in shown


def test_parity_names_the_layer_where_the_file_parts(
    tmp_path, run, config, state, onnx, frame
) -> None:
    model = load(onnx)
    node = next(n for n in model.graph.node if n.doc_string == "backbone.conv2.0")
    weight = next(i for i in model.graph.initializer if i.name == node.input[1])
    values = np.frombuffer(weight.raw_data, np.float16).copy()
    values[0] = -values[0]
    weight.raw_data = values.tobytes()
    save(model, tmp_path / "altered.onnx")
    arguments = ("--weights", state, "--frame", frame, "--onnx", tmp_path / "altered.onnx")
    result = run("parity", config, *arguments)
    assert result.exit_code == 1
    assert "parts from the engine first at backbone.conv2.0." in result.stdout
    assert "The law is broken." in result.stdout


def test_a_frame_of_one_voxel_can_be_run(tmp_path, done, config, state, weights, onnx) -> None:
    one = tmp_path / "one.npz"
    np.savez(one, points=np.array([[8.0, 3.0, 0.5, 90.0, 0.0]], np.float32))
    done("export", config, "--weights", state, "--out", tmp_path / "one.onnx", "--frame", one)
    for file in (onnx, tmp_path / "one.onnx"):
        arguments = ("--weights", state, "--float-weights", weights, "--onnx", file)
        shown = done("parity", config, *arguments, "--frame", one).stdout
        assert "equals the engine bit for bit" in shown


def test_samples_of_one_voxel_can_be_scored(tmp_path, done, config, weights, state, data) -> None:
    lonely = shutil.copytree(data, tmp_path / "lonely")
    for path in lonely.glob("*/LIDAR_TOP/*"):
        np.array([[8.0, 3.0, 0.5, 90.0, 0.0]], np.float32).tofile(path)
    text = config.read_text().replace("nsweeps: 2", "nsweeps: 1")
    assert text != config.read_text()
    (tmp_path / "one.yaml").write_text(text)
    for engine, given in (("float", weights), ("int8", state)):
        arguments = ("--data", lonely, "--weights", given, "--engine", engine)
        done("eval", tmp_path / "one.yaml", *arguments, "--work-dir", tmp_path / engine)


def test_a_resumed_training_equals_an_unbroken_one(tmp_path, done, config, data) -> None:
    def train(folder: str, *more: object) -> Path:
        common = ("--data", data, "--steps", 3, "--batch-size", 2, "--seed", 4)
        done("train", config, *common, "--work-dir", tmp_path / folder, *more)
        return tmp_path / folder / "weights.safetensors"

    unbroken = train("unbroken")
    assert not train("broken", "--stop-after-s", 1e-6).exists()
    assert read_json(tmp_path / "broken" / "metrics.json")["steps"] == 1
    resumed = train("broken", "--resume")
    assert resumed.read_bytes() == unbroken.read_bytes()
    assert len(load_file(resumed)) > 50
    records = (tmp_path / "broken" / "log.jsonl").read_text().splitlines()
    assert [json.loads(record)["step"] for record in records] == [1, 3]
    metrics = read_json(tmp_path / "broken" / "metrics.json")
    assert metrics["steps"] == metrics["total_steps"] == 3
    assert metrics["provenance"]["seed"] == 4


def test_trained_weights_in_shards(tmp_path, done, refusal, config, data) -> None:
    train = ("train", config, "--data", data, "--steps", 1, "--batch-size", 1)
    whole, shards = tmp_path / "whole", tmp_path / "shards"
    done(*train, "--work-dir", whole)
    line = refusal(*train, "--work-dir", shards, "--shard-mb", 1e-4)
    assert "got shard_bytes 100, need a whole number of at least" in line
    assert not shards.exists()
    done(*train, "--work-dir", shards, "--shard-mb", 0.2)
    assert not (shards / "weights.safetensors").exists()
    parts = [load_file(path) for path in sorted(shards.glob("weights-*.safetensors"))]
    assert len(parts) > 1
    found = {name: value for part in parts for name, value in part.items()}
    expected = load_file(whole / "weights.safetensors")
    assert found.keys() == expected.keys()
    assert all(np.array_equal(found[name], expected[name]) for name in expected)
    evaluated = ("eval", config, "--data", data, "--work-dir", tmp_path / "eval")
    done(*evaluated, "--weights", shards / "weights.safetensors.index.json")


def test_a_batch_is_whole_or_refused(tmp_path, refusal, config, data) -> None:
    line = refusal(
        "train", config, "--data", data, "--steps", 1, "--batch-size", 500, "--work-dir", tmp_path
    )
    assert " for batches of 500 (each process has its own); lower --batch-size" in line


def test_workers_may_read_the_frames(tmp_path, done, config, data) -> None:
    arguments = ("--data", data, "--steps", 1, "--batch-size", 1, "--num-workers", 1)
    done("train", config, *arguments, "--work-dir", tmp_path)
    assert (tmp_path / "weights.safetensors").exists()


def test_training_on_the_synthetic_world(tmp_path, done, config) -> None:
    world = ("--data", "synthetic", "--pool-size", 2, "--turnover", 0)
    done("train", config, *world, "--steps", 1, "--batch-size", 1, "--work-dir", tmp_path)
    assert (tmp_path / "weights.safetensors").exists()
