"""NVIDIA's quantized checkpoints at the command line: read by every verb, and written."""

import io
import json
import pickle
import zipfile
from pathlib import Path

import pytest
import torch

from nvidia_files import amax_names, nvidia_weights
from voxelquant import QuantState
from voxelquant.detection.checkpoint_shapes import describe_checkpoint
from voxelquant.detection.config import load_config
from voxelquant.detection.detector import CenterPoint
from voxelquant.export import check_file


@pytest.fixture(scope="module")
def ptq_pth(tmp_path_factory, config) -> Path:
    """Backbone from the table of names, dense part of a fresh detector, as a trainer saves it."""
    torch.manual_seed(6)
    dense = CenterPoint(load_config(config)).state_dict()
    dense = {name: value for name, value in dense.items() if not name.startswith("backbone.")}
    weights = nvidia_weights((16, 16, 16, 16), dense=dense)
    path = tmp_path_factory.mktemp("nvidia") / "qat.pth"
    torch.save({"meta": {"epoch": 2}, "state_dict": weights, "optimizer": {"state": {}}}, path)
    return path


@pytest.mark.parametrize("engine", ["fake", "int8"])
def test_eval_scores_it_and_says_what_it_read(
    tmp_path, done, config, data, ptq_pth, engine
) -> None:
    arguments = ("--data", data, "--weights", ptq_pth, "--work-dir", tmp_path, "--engine", engine)
    result = done("eval", config, *arguments)
    assert "mAP" in result.stdout
    assert "several ranges of 7 tensors, kept as they are (in place):" in result.stderr
    assert "the output of conv2.0 is read by conv2.2.conv1 with" in result.stderr
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert len(metrics["notes"]) == 9


def test_export_and_parity_hold_on_it(tmp_path, done, config, frame, ptq_pth) -> None:
    scn = tmp_path / "scn.onnx"
    shown = done("export", config, "--weights", ptq_pth, "--out", scn, "--frame", frame).stdout
    assert shown.count("[range-conflict]") == 7
    assert {defect.severity for defect in check_file(scn)} == {"warning"}
    parity = ("parity", config, "--weights", ptq_pth, "--onnx", scn, "--frame", frame)
    result = done(*parity)
    assert result.stderr.count("several ranges of 7 tensors") == 1


def test_what_was_read_is_written_back_equal(tmp_path, done, config, ptq_pth) -> None:
    out = tmp_path / "ptq.pth"
    assert done("export", config, "--weights", ptq_pth, "--out", out).stdout.split() == [str(out)]
    wanted = torch.load(ptq_pth, weights_only=True)["state_dict"]
    content = torch.load(out, weights_only=True)
    assert list(content["state_dict"]) == list(wanted)
    assert all(torch.equal(content["state_dict"][n], value) for n, value in wanted.items())
    found = describe_checkpoint(out)
    assert found.config == load_config(config)
    assert found.quantized


def test_a_state_of_ours_becomes_a_checkpoint_that_evaluates(
    tmp_path, done, config, data, state
) -> None:
    out = tmp_path / "ptq.pth"
    said = done("export", config, "--weights", state, "--out", out).stderr
    assert "a sum has one range for both operands there" in said
    assert len(amax_names(torch.load(out, weights_only=True)["state_dict"])) == 50
    again = ("--data", data, "--weights", out, "--engine", "fake", "--work-dir", tmp_path / "run")
    assert "mAP" in done("eval", config, *again).stdout


def test_ptq_calibrates_in_the_reference_s_way(tmp_path, done, config, data, weights) -> None:
    arguments = ("--data", data, "--weights", weights, "--work-dir", tmp_path, "--recipe", "nvidia")
    done("ptq", config, *arguments, "--calibrate-batches", 2, "--split", "both")
    ranges = json.loads((tmp_path / "metrics.json").read_text())["amax"]
    assert len(ranges) == 18 + 7
    assert "backbone.conv2.3.add/input" in ranges
    state = tmp_path / "ptq.safetensors"
    lost = done("export", config, "--weights", state, "--out", tmp_path / "ptq.pth").stderr
    assert "one range for both operands" not in lost


def test_qat_goes_on_from_it_and_back_into_its_layout(
    tmp_path, done, refusal, config, data, ptq_pth
) -> None:
    qat = ("qat", config, "--data", data, "--weights", ptq_pth, "--work-dir", tmp_path)
    result = done(*qat, "--steps", 1, "--batch-size", 2)
    assert "several ranges of 7 tensors" in result.stderr
    state = QuantState.load(tmp_path / "qat.safetensors")
    ranges = json.loads((tmp_path / "metrics.json").read_text())["amax"]
    assert list(ranges) == list(state.plan.range_names)
    out = tmp_path / "trained.pth"
    lost = done("export", config, "--weights", tmp_path / "qat.safetensors", "--out", out).stderr
    assert "no range" not in lost
    before, after = (torch.load(p, weights_only=True)["state_dict"] for p in (ptq_pth, out))
    trained = {name for name in before if not torch.equal(before[name], after[name])}
    unused = ("backbone.conv_input.0", "backbone.conv1.0.conv1", "backbone.conv1.0.conv2")
    assert trained & set(amax_names(before)) <= {f"{p}._weight_quantizer._amax" for p in unused}
    assert "backbone.conv3.0.weight" in trained
    assert "backbone.conv_input.0.weight" in trained
    line = refusal(*qat, "--recipe", "reference")
    assert "a quantized state, which brings its own" in line


def test_as_float_weights_it_is_one_clear_line(tmp_path, refusal, config, data, ptq_pth) -> None:
    for verb in ("eval", "ptq"):
        arguments = ("--data", data, "--weights", ptq_pth, "--work-dir", tmp_path / verb)
        line = refusal(verb, config, *arguments)
        assert "an NVIDIA ptq.pth/qat.pth" in line
        assert "--engine fake or int8" in line


def test_float_weights_in_a_pth_are_sent_to_ptq(tmp_path, refusal, config) -> None:
    path = tmp_path / "epoch_20.pth"
    torch.save(CenterPoint(load_config(config)).state_dict(), path)
    line = refusal("export", config, "--weights", path, "--out", tmp_path / "scn.onnx")
    assert "got float weights" in line
    assert "`voxelquant ptq`" in line


def test_what_is_missing_is_named_and_nothing_is_written(
    tmp_path, refusal, config, ptq_pth
) -> None:
    content = torch.load(ptq_pth, weights_only=True)
    del content["state_dict"]["backbone.conv4.0._input_quantizer._amax"]
    bad, out = tmp_path / "bad.pth", tmp_path / "out"
    torch.save(content, bad)
    for name in ("scn.onnx", "ptq.pth"):
        line = refusal("export", config, "--weights", bad, "--out", out / name)
        assert "1 missing (backbone.conv4.0._input_quantizer._amax)" in line
    assert not out.exists()


def test_a_frame_for_a_checkpoint_is_refused(tmp_path, refusal, config, frame, ptq_pth) -> None:
    out = tmp_path / "ptq.pth"
    line = refusal("export", config, "--weights", ptq_pth, "--out", out, "--frame", frame)
    assert "a checkpoint is written without one" in line


class _Harm:
    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.trace,)


def test_code_in_it_is_never_run(tmp_path, refusal, config) -> None:
    trace, bad = tmp_path / "ran", tmp_path / "ptq.pth"
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("ptq/data.pkl", pickle.dumps({"state_dict": _Harm(trace)}, protocol=2))
        archive.writestr("ptq/version", "3\n")
        archive.writestr("ptq/byteorder", "little")
    bad.write_bytes(buffer.getvalue())
    line = refusal("export", config, "--weights", bad, "--out", tmp_path / "scn.onnx")
    assert str(bad) in line
    assert not trace.exists()
