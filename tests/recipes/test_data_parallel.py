"""Two processes over gloo train one model: as one process would with the mean of their losses."""

import json
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from click.testing import CliRunner
from torch import Tensor, nn

from small_detector import write_config, write_data, write_weights
from voxelquant import cli
from voxelquant.data.frame import Frame
from voxelquant.data.sampling import Shard
from voxelquant.detection.config import load_config
from voxelquant.quant.range_trainer import RangeTrainer
from voxelquant.quant.recipe import RangeTraining
from voxelquant.recipes.data_parallel import synchronise_batchnorms
from voxelquant.recipes.detect import Engine, open_detector
from voxelquant.recipes.distributed import World
from voxelquant.recipes.qat_trainee import QatTrainee

SCRIPT = Path(__file__).with_name("two_ranks.py")
RANGES = ("--activation-ranges", "ema", "--weight-ranges", "learned")


class Held(NamedTuple):
    """What a process held at the end of a run."""

    frames: list[Frame]
    gradients: dict[str, Tensor]
    state: dict[str, Tensor]


class Runs(NamedTuple):
    folder: Path
    config: Path
    arguments: tuple[str, ...]
    output: subprocess.CompletedProcess[str]

    def held(self, name: str) -> list[Held]:
        paths = [self.folder / f"{name}-{rank}.pt" for rank in range(2)]
        return [Held(*torch.load(path, weights_only=False)) for path in paths]


def in_two_processes(*command: object) -> subprocess.CompletedProcess[str]:
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    arguments = [sys.executable, *launcher, *map(str, command)]
    return subprocess.run(arguments, capture_output=True, text=True, timeout=120, check=True)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """QAT by two processes: unbroken, and broken off and resumed."""
    folder = tmp_path_factory.mktemp("ranks")
    config = write_config(folder / "small.yaml")
    weights = write_weights(folder / "small.safetensors", config)
    data = write_data(folder / "data")
    common = ("qat", config, "--data", data, "--split", "both", "--weights", weights)
    length = ("--batch-size", 1, "--steps", 3, "--calibrate-batches", 2, "--device", "cpu")
    arguments = tuple(str(a) for a in (*common, *length, *RANGES, "--work-dir"))
    commands = {
        "unbroken": [*arguments, str(folder / "unbroken")],
        "broken": [*arguments, str(folder / "broken"), "--stop-after-s", "1e-6"],
        "resumed": [*arguments, str(folder / "broken"), "--resume"],
    }
    with_ports = {name: (free_port(), command) for name, command in commands.items()}
    (folder / "commands.json").write_text(json.dumps(with_ports))
    return Runs(folder, config, arguments, in_two_processes(SCRIPT, folder))


def test_both_processes_end_with_the_same_model(runs: Runs) -> None:
    first, second = runs.held("unbroken")
    assert first.state.keys() == second.state.keys()
    assert {"stored_amax", "growth", "running_var"} <= {n.rpartition(".")[2] for n in first.state}
    for name, value in first.state.items():
        assert torch.equal(value, second.state[name]), name


def test_they_calibrate_as_one_does(runs: Runs, tmp_path: Path, single_thread: None) -> None:
    words = ("--data", runs.folder / "data", "--split", "both", "--calibrate-batches", 2)
    weights = runs.folder / "small.safetensors"
    words = ("ptq", runs.config, "--weights", weights, *words, "--work-dir", tmp_path)
    result = CliRunner().invoke(cli.main, [*map(str, words), "--device", "cpu"])
    assert result.exit_code == 0, result.output
    states = [folder / "ptq.safetensors" for folder in (tmp_path, runs.folder / "unbroken")]
    assert states[0].read_bytes() == states[1].read_bytes()


def test_they_see_different_frames(runs: Runs) -> None:
    first, second = runs.held("unbroken")
    assert len(first.frames) == len(second.frames) == 1
    assert first.frames[0].token != second.frames[0].token


def test_gradients_are_those_of_the_mean_of_both_losses(runs: Runs) -> None:
    first, second = runs.held("unbroken")
    alone = [gradients_alone(runs, held.frames) for held in (first, second)]
    for name, found in first.gradients.items():
        assert torch.equal(found, second.gradients[name]), name
        mean = (alone[0][name] + alone[1][name]) / 2
        # Equal but for the order in which a GEMM of another number of threads sums.
        assert float((found - mean).norm()) <= 1e-4 * float(mean.norm()) + 1e-6, name


def gradients_alone(runs: Runs, frames: list[Frame]) -> dict[str, Tensor]:
    config = load_config(runs.config)
    state = runs.folder / "unbroken" / "ptq.safetensors"
    model = open_detector(config, state, Engine.FAKE).network
    policy = RangeTraining(activation_ranges="ema", weight_ranges="learned")
    trainee = QatTrainee(model, config, RangeTrainer(model, policy, 3))
    trainee.set_mode()
    trainee.loss(model, trainee.prepare(frames)).backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def test_a_resume_by_as_many_processes_equals_an_unbroken_run(runs: Runs) -> None:
    unbroken, resumed = runs.held("unbroken")[0].state, runs.held("resumed")[0].state
    stopped = runs.held("broken")[0].state
    for name, value in unbroken.items():
        assert torch.equal(value, resumed[name]), name
    assert any(not torch.equal(value, stopped[name]) for name, value in unbroken.items())


def test_a_resume_by_fewer_processes_is_refused(runs: Runs) -> None:
    result = CliRunner().invoke(
        cli.main, [*runs.arguments, str(runs.folder / "broken"), "--resume"]
    )
    assert result.exit_code == 2
    assert "got processes 1, the run to resume has 2; give the same" in result.stderr


def test_one_process_writes_and_speaks(runs: Runs) -> None:
    expected = {
        "checkpoint.safetensors",
        "config.yaml",
        "log.jsonl",
        "metrics.json",
        "ptq.safetensors",
        "qat.safetensors",
    }
    for name in ("unbroken", "broken"):
        assert {path.name for path in (runs.folder / name).iterdir()} == expected
        log = (runs.folder / name / "log.jsonl").read_text().splitlines()
        steps = [json.loads(line)["step"] for line in log]
        assert steps == ([3] if name == "unbroken" else [1, 3])
        metrics = json.loads((runs.folder / name / "metrics.json").read_text())
        assert metrics["processes"] == 2
    assert runs.output.stdout.split() == [
        str(runs.folder / "unbroken" / "qat.safetensors"),
        str(runs.folder / "broken" / "checkpoint.safetensors"),
        str(runs.folder / "broken" / "qat.safetensors"),
    ]
    calibrating = "calibrating in 2 processes on 2 batches"
    assert runs.output.stderr.count(calibrating) == 2  # not once more to resume
    assert runs.output.stderr.count("torch synchronises them on GPUs only") == 3


def test_the_command_line_of_a_training_by_two(tmp_path: Path, runs: Runs) -> None:
    data, config = runs.folder / "data", runs.config
    verb = ("-m", "voxelquant", "train", config, "--data", data, "--split", "both")
    more = ("--batch-size", 1, "--steps", 2, "--work-dir", tmp_path / "w", "--device", "cpu")
    output = in_two_processes(*verb, *more)
    assert output.stdout.split() == [str(tmp_path / "w" / "weights.safetensors")]
    assert output.stderr.count("training small for 2 steps") == 1
    written = {path.name for path in (tmp_path / "w").iterdir()}
    assert written == {
        "checkpoint.safetensors",
        "config.yaml",
        "log.jsonl",
        "metrics.json",
        "weights.safetensors",
    }


@pytest.mark.parametrize(
    ("processes", "device", "kind"),
    [(1, "cpu", nn.BatchNorm2d), (2, "cpu", nn.BatchNorm2d), (2, "cuda:0", nn.SyncBatchNorm)],
)
def test_batch_norms_are_synchronised_where_torch_can(
    processes: int, device: str, kind: Any
) -> None:
    model = nn.Sequential(nn.Conv2d(2, 3, 1), nn.BatchNorm2d(3))
    weight = model[1].weight
    synchronised = synchronise_batchnorms(model, World(Shard(0, processes), device))
    assert type(model[1]) is kind
    assert model[1].weight is weight
    assert synchronised == (processes == 1 or kind is nn.SyncBatchNorm)
