"""`voxelquant qat`: one command from float weights or from PTQ, broken off and resumed."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from voxelquant import QuantState
from voxelquant.recipes import qat
from voxelquant.recipes.training_state import unfinished_steps


def read_json(path: Path) -> dict:
    return json.loads(path.read_text())


def qat_arguments(config, data, weights, work, *more: object) -> tuple[object, ...]:
    common = ("--data", data, "--weights", weights, "--work-dir", work, "--batch-size", 2)
    return ("qat", config, *common, "--seed", 4, *more)


def test_one_command_from_float_equals_ptq_and_then_qat(
    tmp_path, done, config, data, weights
) -> None:
    ptq = ("ptq", config, "--data", data, "--weights", weights, "--method", "max")
    done(*ptq, "--work-dir", tmp_path / "ptq", "--calibrate-batches", 2)
    from_float = ("--method", "max", "--calibrate-batches", 2, "--steps", 2)
    shown = done(*qat_arguments(config, data, weights, tmp_path / "one", *from_float))
    assert shown.stdout.split() == [str(tmp_path / "one" / "qat.safetensors")]
    state = tmp_path / "ptq" / "ptq.safetensors"
    done(*qat_arguments(config, data, state, tmp_path / "two", "--steps", 2))
    for name, folder in (("ptq.safetensors", "ptq"), ("qat.safetensors", "two")):
        assert_same_file(tmp_path / "one" / name, tmp_path / folder / name)
    before, after = QuantState.load(state), QuantState.load(tmp_path / "two" / "qat.safetensors")
    assert before.plan == after.plan
    for name in before.plan.quantized_tensors:  # the published recipe freezes ranges
        assert before.activation_amax(name) == after.activation_amax(name)
    metrics = read_json(tmp_path / "two" / "metrics.json")
    assert metrics["steps"] == metrics["total_steps"] == 2
    assert metrics["lr_max"] == 1e-4
    assert metrics["provenance"]["config"]["train"]["schedule"]["lr_max"] == 1e-4
    assert metrics["provenance"]["seed"] == 4
    resolved = yaml.safe_load((tmp_path / "two" / "config.yaml").read_text())
    assert resolved["train"]["schedule"]["lr_max"] == 1e-4


@pytest.fixture(scope="module")
def trained(tmp_path_factory, done, config, data, state) -> Path:
    """A state whose ranges were trained too."""
    work = tmp_path_factory.mktemp("qat")
    ranges = ("--activation-ranges", "ema", "--weight-ranges", "learned")
    done(*qat_arguments(config, data, state, work, "--epochs", 4, "--freeze-bn", *ranges))
    return work / "qat.safetensors"


def test_the_result_says_how_its_ranges_were_trained(trained: Path, state: Path) -> None:
    before, after = QuantState.load(state), QuantState.load(trained)
    assert after.recipe.qat.activation_ranges == "ema"
    assert after.recipe.qat.weight_ranges == "learned"
    assert after.recipe.model_copy(update={"qat": before.recipe.qat}) == before.recipe
    assert any(
        before.activation_amax(name) != after.activation_amax(name)
        for name in after.plan.quantized_tensors
    )


def test_every_verb_takes_the_result(tmp_path, done, run, config, data, trained, frame) -> None:
    for engine in ("fake", "int8"):
        arguments = ("--data", data, "--weights", trained, "--engine", engine)
        done("eval", config, *arguments, "--work-dir", tmp_path / engine)
    onnx = tmp_path / "scn.onnx"
    done("export", config, "--weights", trained, "--out", onnx, "--frame", frame)
    assert run("check", onnx).exit_code == 0
    done("parity", config, "--weights", trained, "--onnx", onnx, "--frame", frame)


@pytest.mark.parametrize(
    "how",
    [
        (),
        ("--activation-ranges", "ema", "--weight-ranges", "max", "--amp"),
        ("--activation-ranges", "learned", "--weight-ranges", "learned", "--distill", 2),
    ],
    ids=["frozen", "followed", "learned"],
)
def test_a_resumed_qat_equals_an_unbroken_one(
    tmp_path, done, config, data, state, weights, how: tuple[object, ...]
) -> None:
    if "--distill" in how:
        how = (*how, "--teacher", weights)

    def qat(folder: str, *more: object) -> None:
        done(*qat_arguments(config, data, state, tmp_path / folder, "--steps", 4, *how, *more))

    qat("unbroken")
    qat("broken", "--stop-after-s", 1e-6)
    assert not (tmp_path / "broken" / "qat.safetensors").exists()
    assert read_json(tmp_path / "broken" / "metrics.json")["steps"] == 1
    qat("broken", "--resume")
    assert_same_run(tmp_path / "broken", tmp_path / "unbroken")


def assert_same_run(found: Path, expected: Path) -> None:
    """Weights, ranges and moments, bit for bit."""
    assert_same_file(found / "qat.safetensors", expected / "qat.safetensors")
    names = assert_same_file(found / "checkpoint.safetensors", expected / "checkpoint.safetensors")
    assert any("exp_avg_sq" in name for name in names)
    assert any("stored_amax" in name for name in names)


def assert_same_file(found: Path, expected: Path) -> list[str]:
    """Tensors bit for bit and what the header says; the order of its fields is left to chance."""
    with safe_open(found, "pt") as ours, safe_open(expected, "pt") as theirs:
        assert ours.metadata() == theirs.metadata()
    tensors, others = load_file(found), load_file(expected)
    assert tensors.keys() == others.keys()
    for name, value in tensors.items():
        assert value.equal(others[name]), name
    return list(tensors)


def test_a_killed_qat_goes_on_from_its_last_checkpoint(tmp_path, done, config, data, state) -> None:
    steps = ("--steps", 24, "--activation-ranges", "ema", "--checkpoint-every", 3)
    arguments = qat_arguments(config, data, state, tmp_path / "killed", *steps)
    command = [sys.executable, "-m", "voxelquant", *map(str, arguments)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    checkpoint = tmp_path / "killed" / "checkpoint.safetensors"
    try:
        while (unfinished_steps(checkpoint) or (0, 0))[0] == 0:
            assert process.poll() is None, "ended before it was killed"
            time.sleep(0.01)
        time.sleep(0.2)
        os.kill(process.pid, signal.SIGKILL)
    finally:
        process.kill()
        assert process.wait() == -signal.SIGKILL
    with safe_open(checkpoint, framework="pt") as file:  # whole
        step = int(file.metadata()["step"])
        assert all(file.get_tensor(key) is not None for key in file.keys())  # noqa: SIM118
    assert 0 < step < 24
    assert step % 3 == 0
    assert not (tmp_path / "killed" / "qat.safetensors").exists()
    (tmp_path / "killed" / ".checkpoint.1.safetensors").touch()  # as a kill within a save leaves it
    done(*arguments, "--resume")
    assert not list((tmp_path / "killed").glob(".*"))
    done(*qat_arguments(config, data, state, tmp_path / "unbroken", *steps))
    assert_same_run(tmp_path / "killed", tmp_path / "unbroken")
    records = [
        [
            json.loads(line)["step"]
            for line in (tmp_path / run / "log.jsonl").read_text().splitlines()
        ]
        for run in ("killed", "unbroken")
    ]
    assert records[0] == records[1] == [20, 24]


def test_qat_on_the_synthetic_world(tmp_path, done, config, weights) -> None:
    world = ("--pool-size", 3, "--turnover", 0, "--steps", 1, "--calibrate-batches", 2)
    shown = done(*qat_arguments(config, "synthetic", weights, tmp_path, *world))
    assert "calibrating on 2 batches" in shown.stderr
    assert (tmp_path / "qat.safetensors").exists()


def test_training_on_from_weights(tmp_path, done, config, data, weights) -> None:
    """The control of QAT: the float model, trained as long and as slowly."""
    common = ("--data", data, "--weights", weights, "--batch-size", 2, "--lr-max", 1e-12)
    done("train", config, *common, "--steps", 1, "--work-dir", tmp_path)
    assert read_json(tmp_path / "metrics.json")["lr_max"] == 1e-12
    before, after = load_file(weights), load_file(tmp_path / "weights.safetensors")
    for name, value in before.items():
        if "running" not in name and "num_batches" not in name:
            stored = value.to(after[name].dtype)
            torch.testing.assert_close(stored, after[name], rtol=0, atol=1e-11, msg=name)


# What the user can mend.


@pytest.fixture
def work(tmp_path: Path):
    yield tmp_path / "work"
    assert [path for path in (tmp_path / "work").rglob("*") if path.is_file()] == []


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--recipe", "int8"), "got --recipe with"),
        (("--method", "max"), "got --method with"),
        (("--calibrate-batches", 3), "got --calibrate-batches with"),
        (("--distill", 1), "a quantized state, as the teacher; give --teacher the float weights"),
        (("--task-weight", 0), "nothing to learn; give --distill"),
        (("--teacher", "w.safetensors"), "got --teacher without --distill"),
        (("--steps", 2, "--epochs", 2), "got --steps and --epochs"),
        (("--resume",), "checkpoint.safetensors: nothing to resume"),
        (("--data", "/no/such"), "/no/such: no such folder"),
        (("--lr-max", 0), "Invalid value for '--lr-max'"),
    ],
)
def test_what_contradicts_itself(
    config, data, state, work, refusal, more: tuple[object, ...], message: str
) -> None:
    assert message in refusal(*qat_arguments(config, data, state, work, *more))


def test_weights_that_are_not_there(config, data, work, refusal) -> None:
    line = refusal(*qat_arguments(config, data, "none.safetensors", work))
    assert line.startswith("none.safetensors: no such file")


def test_a_kill_before_the_first_step_costs_no_calibration(
    tmp_path, config, data, weights, done, monkeypatch
) -> None:
    run = ("--steps", 2, "--calibrate-batches", 2)
    done(*qat_arguments(config, data, weights, tmp_path / "unbroken", *run))
    killed = qat_arguments(config, data, weights, tmp_path / "killed", *run)
    with monkeypatch.context() as patch:
        patch.setattr(qat, "train_session", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            done(*killed)
    shown = done(*killed, "--resume").stderr
    assert "calibrating" not in shown
    assert_same_run(tmp_path / "killed", tmp_path / "unbroken")


def test_a_run_that_was_broken_off_is_not_begun_anew(
    tmp_path, config, data, state, done, refusal
) -> None:
    run = qat_arguments(config, data, state, tmp_path, "--steps", 3)
    done(*run, "--stop-after-s", 1e-6)
    before = (tmp_path / "checkpoint.safetensors").read_bytes()
    line = refusal(*run)
    assert "got a run that stopped after 1 of 3 steps; go on with --resume" in line
    assert (tmp_path / "checkpoint.safetensors").read_bytes() == before
    done(*run, "--resume")
    done(*run)  # a finished one has left its result


def test_a_resume_with_other_settings(tmp_path, config, data, state, done, refusal) -> None:
    run = qat_arguments(config, data, state, tmp_path, "--checkpoint-every", 1)
    done(*run, "--steps", 2)
    for more, message in (
        (("--steps", 3), "got steps 3, the run to resume has 2"),
        (("--steps", 2, "--lr-max", 2e-4), "got lr_max 0.0002, the run to resume has 0.0001"),
        (("--steps", 2, "--weight-ranges", "max"), "got weight ranges max"),
        (("--steps", 2, "--seed", 5), "got seed 5, the run to resume has 4"),
    ):
        assert message in refusal(*run, *more, "--resume")


def test_a_resume_of_another_run(tmp_path, config, data, weights, state, done, refusal) -> None:
    """What a finished or a killed run left in the folder never passes for the result of another."""
    run = ("--steps", 2, "--calibrate-batches", 1)
    done(*qat_arguments(config, data, weights, tmp_path / "run", *run))
    content = yaml.safe_load(Path(config).read_text())
    content["train"]["schedule"]["grad_clip_norm"] = 1.0
    other_config = tmp_path / Path(config).name
    other_config.write_text(yaml.safe_dump(content))
    other_weights = tmp_path / "other.safetensors"
    save_file({k: v * 1.5 for k, v in load_file(weights).items()}, other_weights)
    for arguments, message in (
        ((config, data, other_weights), "got weights "),
        ((other_config, data, weights), "got config "),
        ((config, data, weights, "--recipe", "int8"), "got recipe "),
        ((config, data, weights, "--method", "max"), "got method max"),
        ((config, data, weights, "--split", "tiny_val"), "got frames "),
        ((config, data, weights, "--distill", 1), "got distill 1.0"),
    ):
        network, root, start, *more = arguments
        line = refusal(
            *qat_arguments(network, root, start, tmp_path / "run", *run, *more, "--resume")
        )
        assert message in line
        assert "the run to resume has" in line
