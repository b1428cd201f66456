"""Every command of the reference workflow, typed as it stands in docs/nuscenes.md."""

import json
import pickle
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch import nn

from voxelquant.cli import reference_scripts
from voxelquant.detection.config import load_config
from voxelquant.errors import CheckpointError, DatasetError
from voxelquant.export import check_file
from voxelquant.export.defects import errors_of
from voxelquant.export.libspconv_reader import read
from voxelquant.recipes.progress import StageReporter
from voxelquant.recipes.quant_states import load_quant_state
from voxelquant.recipes.scn_export import ScnExportRequest, read_voxel_pickle, run_scn_export
from voxelquant.recipes.training_state import save_training_state

REPOSITORY = Path(__file__).resolve().parents[2]
PAGE = (REPOSITORY / "docs" / "nuscenes.md").read_text()
COMMANDS = re.search(r"```bash\n(.*?)```", PAGE, re.DOTALL).group(1).splitlines()  # type: ignore[union-attr]
SHORT_VERBS = re.search(r"```\n(W=.*?)```", PAGE, re.DOTALL).group(1).splitlines()  # type: ignore[union-attr]
TEST_FLOAT, SENSITIVITY, PTQ, TEST_PTQ, EXPORT_PTQ, QAT, TEST_QAT, EXPORT_QAT = COMMANDS

CONFIG = str(REPOSITORY / "configs/nusc/voxelnet/nusc_centerpoint_voxelnet_0075voxel_fix_bn_z.py")


@pytest.fixture(scope="module")
def ptq(checkout: Path, type_command) -> dict:
    type_command(PTQ)
    return torch.load(checkout / "workspace/PTQ_QAT/ptq.pth", weights_only=True)


@pytest.fixture(scope="module")
def qat(checkout: Path, ptq: dict, type_command) -> dict:
    type_command(QAT)
    return torch.load(checkout / "workspace/PTQ_QAT/qat.pth", weights_only=True)


def test_ptq_leaves_a_checkpoint_in_the_reference_layout(ptq: dict) -> None:
    ranges = [name for name in ptq["state_dict"] if name.endswith("_amax")]
    assert len(ranges) == 50
    assert "backbone.conv2.2.quant_add._input_quantizer._amax" in ranges


@pytest.mark.parametrize("name", ["ptq", "qat"])
def test_the_checkpoint_holds_the_ranges_that_were_trained(checkout, ptq, qat, name) -> None:
    """The layout has a range for each reader: with one for each tensor, sums would be widened."""
    folder = checkout / "workspace/PTQ_QAT"
    config = load_config(checkout / Path(CONFIG).relative_to(REPOSITORY))
    ours = load_quant_state(folder / f"{name}.safetensors", config).state
    theirs = load_quant_state(folder / f"{name}.pth", config).state
    names = ours.plan.range_names
    assert names == theirs.plan.range_names
    assert len(names) == (21 - 3) + (8 - 1)  # without the layers that stay in fp16
    for tensor in names:
        assert ours.activation_amax(tensor) == theirs.activation_amax(tensor), tensor


def test_qat_moves_weights_that_the_reference_never_trained(ptq: dict, qat: dict) -> None:
    name = "backbone.conv3.2.conv1.weight"
    assert not torch.equal(ptq["state_dict"][name], qat["state_dict"][name])
    assert ptq["state_dict"].keys() == qat["state_dict"].keys()


@pytest.mark.parametrize(("line", "name"), [(TEST_PTQ, "ptq"), (TEST_QAT, "qat")])
def test_quantized_checkpoints_are_scored(checkout, ptq, qat, type_command, line, name) -> None:
    printed = type_command(line)
    assert "mAP" in printed
    assert "NDS" in printed
    metrics = json.loads((checkout / f"work_dirs/test_{name}/metrics.json").read_text())
    assert metrics["engine"] == "fake"
    assert metrics["metrics"]["samples"] == 3


def test_float_checkpoint_is_scored(checkout, type_command) -> None:
    assert "NDS" in type_command(TEST_FLOAT)
    metrics = json.loads((checkout / "work_dirs/test_epoch_20/metrics.json").read_text())
    assert metrics["engine"] == "float"
    assert metrics["metrics"]["samples"] == 3


@pytest.mark.parametrize(("line", "name"), [(EXPORT_PTQ, "ptq.onnx"), (EXPORT_QAT, "qat.onnx")])
def test_quantized_checkpoints_are_exported(checkout, ptq, qat, type_command, line, name) -> None:
    type_command(line)
    path = checkout / name
    assert not errors_of(check_file(path))
    assert len(read(path).nodes) == 21 + 8 + 8 + 1 + 1


def test_the_short_verbs_do_the_same(checkout, type_command) -> None:
    """As they stand on the page, but for the config, whose detector is as small as the dataset."""
    given = dict(line.split("=", 1) for line in SHORT_VERBS if not line.startswith("voxelquant"))
    assert given.keys() == {"W", "C"}
    load_config(given["C"])  # bundled
    given["C"] = str(Path(CONFIG).relative_to(REPOSITORY))
    verbs = [line for line in SHORT_VERBS if line.startswith("voxelquant")]
    for line in verbs:
        for name, value in given.items():
            line = line.replace(f"${name}", value)
        type_command(f"python -m {line}")
    assert len(verbs) == 6
    for folder, engine in (("float", "float"), ("ptq_score", "fake"), ("qat_score", "int8")):
        metrics = json.loads((checkout / "runs" / folder / "metrics.json").read_text())
        assert metrics["engine"] == engine
        assert (metrics["difference"] is None) == (folder == "float")
    assert not errors_of(check_file(checkout / "qat_short.onnx"))


def test_sensitivity_ranks_every_layer(checkout, type_command) -> None:
    printed = type_command(SENSITIVITY)
    assert "conv4.4.conv2" in printed
    profile = json.loads((checkout / "work_dirs/sensitivity_epoch_20/sensitivity.json").read_text())
    # All but the convolution on the raw input, which no recipe of ours puts into int8.
    names = {layer["name"] for layer in profile["layers"]}
    assert len(names) == 21 + 8 - 1
    assert "backbone.conv_input.0" not in names


def test_another_profile_of_the_same_weights_has_a_folder_to_go_to(monkeypatch) -> None:
    calls = []
    monkeypatch.setattr(reference_scripts, "run_verb", lambda *words: calls.append(words))
    words = ("sensitivity", "--nuScense-config", CONFIG, "--weight", "epoch_20.pth")
    for more in ((), ("--eval-origin", "--work-dir", "other")):
        result = CliRunner().invoke(reference_scripts.centerpoint_eval, [*words, *more])
        assert result.exit_code == 0, result.output
    folders = [words[words.index("--work-dir") + 1] for words in calls]
    assert folders == [Path("work_dirs/sensitivity_epoch_20"), Path("other")]


def test_float_checkpoint_is_exported_with_its_tensors(checkout, type_command) -> None:
    rng = np.random.default_rng(0)
    coords = np.unique(rng.integers(0, [1, 40, 144, 144], (4000, 4)), axis=0).astype(np.int32)
    voxels = rng.normal(size=(len(coords), 5)).astype(np.float32)
    content = (voxels, coords, [144, 144, 40], 1)
    (checkout / "voxels.pkl").write_bytes(pickle.dumps(content))
    name = "nusc_centerpoint_voxelnet_0075voxel_fix_bn_z"
    type_command(
        f"python onnx_export/export-scn.py --ckpt workspace/{name}/epoch_20.pth --in-channel 5 "
        "--input voxels.pkl --save-onnx float.onnx --save-tensor dump/scn"
    )
    assert not errors_of(check_file(checkout / "float.onnx"))
    header = np.fromfile(checkout / "dump/scn.output", dtype="<i4", count=7)
    assert header.tolist() == [0x33FF1101, 4, 2, 1, 256, 18, 18]
    info = np.fromfile(checkout / "dump/scn.info", dtype="<i4")
    assert info.tolist() == [0x33FF1101, 1, 1, 4, 1, 144, 144, 40]


def test_other_flags_of_the_pipeline_are_taken(checkout, type_command) -> None:
    name = "nusc_centerpoint_voxelnet_0075voxel_fix_bn_z"
    type_command(
        "torchrun --nproc_per_node=1 ./tools/centerpoint_qat_pipline.py "
        f"configs/nusc/voxelnet/{name}.py --resume_from workspace/{name}/epoch_20.pth --ptq_mode "
        "--calibrate_batch 2 --validate --gpus 1 --seed 3 --launcher pytorch --local_rank 0 "
        "--autoscale-lr"
    )
    folder = checkout / "work_dirs" / name
    assert (folder / "ptq.pth").exists()
    assert json.loads((folder / "eval/metrics.json").read_text())["engine"] == "fake"


def test_a_state_of_ours_is_no_checkpoint(checkout, ptq) -> None:
    state = checkout / "workspace/PTQ_QAT/ptq.safetensors"
    request = ScnExportRequest(state, checkout / "no.onnx", True, 5, None, None)
    with pytest.raises(CheckpointError, match="got a state of voxelquant, need a checkpoint"):
        run_scn_export(request, StageReporter())
    assert not (checkout / "no.onnx").exists()


def test_a_pipeline_that_was_broken_off_goes_on(monkeypatch, tmp_path) -> None:
    calls = []
    monkeypatch.setattr(reference_scripts, "run_verb", lambda *words: calls.append(words))
    words = [CONFIG, "--resume_from", "epoch_20.pth", "--work_dir", str(tmp_path)]
    layer = nn.Linear(1, 1)
    for done in (None, 2, 3):
        if done is not None:
            path = tmp_path / "checkpoint.safetensors"
            save_training_state(
                path, layer, torch.optim.AdamW(layer.parameters()), done, {"steps": 3}
            )
        result = CliRunner().invoke(reference_scripts.centerpoint_qat_pipline, words)
        assert result.exit_code == 0, result.output
        assert "not the config's 0.001" in result.output
    resumed = ["--resume" in words for words in calls if words[0] == "qat"]
    assert resumed == [False, True, False]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ((np.ones((2, 5)), np.eye(2, 4), [8, 8, 8], None), "got an array of object, need numbers"),
        ((np.ones((2, 5)), np.eye(2, 4), [8, 8, 8], [1, 1]), "got 2 batch sizes, need one"),
        (([[1.0], [1.0, 2.0]], np.eye(2, 4), [8, 8, 8], 1), "got what is no array"),
        ((np.full((2, 5), 1e6), np.eye(2, 4, dtype=int), [8, 8, 8], 1), "not finite in fp16"),
    ],
)
def test_a_pickle_of_something_else_is_refused(tmp_path, content: tuple, message: str) -> None:
    path = tmp_path / "voxels.pkl"
    path.write_bytes(pickle.dumps(content))
    with pytest.raises(DatasetError, match=message):
        read_voxel_pickle(path, 5)
