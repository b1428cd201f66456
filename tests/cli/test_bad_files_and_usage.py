"""Damaged exported files, places that cannot be written, bad usage: one line, exit code 2."""

import subprocess
import sys
from collections.abc import Callable

import pytest

Refusal = Callable[..., str]


# Exported files.


@pytest.mark.parametrize("content", [b"", b"not a protobuf", None], ids=["empty", "text", "cut"])
def test_a_damaged_file(config, state, onnx, frame, tmp_path, refusal, content) -> None:
    bad = tmp_path / "bad.onnx"
    bad.write_bytes(onnx.read_bytes()[:5000] if content is None else content)
    line = refusal("check", bad)
    assert "not a whole ONNX model" in line
    parity = ("parity", config, "--weights", state, "--frame", frame)
    assert refusal(*parity, "--onnx", bad) == line


def test_a_file_that_is_not_there(refusal: Refusal) -> None:
    assert "cannot read /no/scn.onnx" in refusal("check", "/no/scn.onnx")


def test_an_onnx_file_of_another_dialect(run, tmp_path) -> None:
    from onnx import TensorProto, helper, save

    info = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Sin", ["x"], ["y"])], "g", info[:1], info[1:])
    save(helper.make_model(graph), tmp_path / "sin.onnx")
    result = run("check", tmp_path / "sin.onnx")
    assert result.exit_code == 2
    assert "Sin" in result.stdout
    assert result.stderr.count("\n") == 1
    assert result.stderr.startswith(f"voxelquant: {tmp_path / 'sin.onnx'}: ")


# Where results go.


def test_work_dirs_that_cannot_be_written(config, weights, data, tmp_path, refusal) -> None:
    file = tmp_path / "file"
    file.touch()
    for work in (file, file / "below"):
        for verb in ("eval", "ptq"):
            given = ("--data", data, "--weights", weights, "--work-dir", work)
            assert "cannot be written" in refusal(verb, config, *given)
        train = ("train", config, "--data", data, "--work-dir", work)
        assert "cannot be written" in refusal(*train, "--steps", 1, "--batch-size", 1)
        assert str(file) in refusal("synth", "--out", work, "--scenes", 2)
        refusal("demo", "--out", work)


def test_an_export_that_cannot_be_written(config, state, frame, tmp_path, refusal) -> None:
    file = tmp_path / "file"
    file.touch()
    export = ("export", config, "--weights", state, "--frame", frame)
    assert "cannot be written" in refusal(*export, "--out", file / "scn.onnx")
    assert "cannot be written" in refusal(*export, "--out", tmp_path)
    assert file.read_bytes() == b""


def test_a_folder_without_a_run(tmp_path, refusal: Refusal) -> None:
    assert "need the folder of a finished run" in refusal("report", tmp_path)


# The command line itself.


@pytest.mark.parametrize(
    "arguments",
    [
        ("eval", "centerpoint_tiny"),
        ("eval", "centerpoint_tiny", "--data", "d", "--weights", "w", "--engine", "int4"),
        ("synth", "--out", "x", "--scenes", "many"),
        ("synth", "--out", "x"),
        ("synth", "--out", "x", "--scenes", "1"),
        ("synth", "--out", "x", "--scenes", "2", "--split", "a=1"),
        ("synth", "--out", "x", "--split", "val=1"),
        ("synth", "--out", "x", "--split", "a=1", "--split", "a=2"),
        ("synth", "--out", "x", "--split", "a"),
        ("synth", "--out", "x", "--scenes", "2", "--key-frames", "0"),
        ("synth", "--out", "x", "--scenes", "2", "--seed", "-1"),
        ("train", "centerpoint_tiny", "--data", "synthetic", "--work-dir", "x", "--stepz", "1"),
        ("train", "centerpoint_tiny", "--data", "synthetic", "--work-dir", "x", "--seed", "-1"),
        ("train", "centerpoint_tiny", "--data", "synthetic", "--work-dir", "x", "--pool-size", "0"),
        ("train", "centerpoint_tiny", "--data", "d", "--work-dir", "x", "--num-workers", "-1"),
        ("synth", "--out", "x", "--scenes", "2", "--device", "abacus"),
        ("synth", "--out", "x", "--scenes", "2", "--device", "cuda:99"),
        ("check",),
    ],
    ids=" ".join,
)
def test_bad_usage_is_one_line_too(arguments, refusal, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    refusal(*arguments)
    assert list(tmp_path.iterdir()) == []


def voxelquant(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "voxelquant", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("check", "/no/scn.onnx"), "cannot read /no/scn.onnx"),
        (("eval", "centerpoint_tiny", "--data", "/no", "--weights", "w"), "/no: no such folder"),
        (("synth", "--out", "/dev/null/x", "--scenes", "2"), "/dev/null/x"),
    ],
)
def test_a_process_of_its_own(arguments, message: str) -> None:
    result = voxelquant(*arguments)
    assert result.returncode == 2
    assert result.stdout == ""
    assert result.stderr.startswith("voxelquant: ")
    assert result.stderr.count("\n") == 1
    assert message in result.stderr
