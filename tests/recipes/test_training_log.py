import json
from pathlib import Path

from voxelquant.recipes.training_log import TrainingLog


def steps_of(path: Path) -> list[int]:
    return [json.loads(line)["step"] for line in path.read_text().splitlines()]


def test_records_are_appended_one_a_line(tmp_path: Path) -> None:
    log = TrainingLog(tmp_path / "log.jsonl", 0)
    for step in (20, 40):
        log.append({"step": step, "loss": 0.5})
    assert steps_of(log.path) == [20, 40]


def test_a_new_run_drops_what_another_wrote(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text('{"step": 9}\n')
    TrainingLog(path, 0).append({"step": 1})
    assert steps_of(path) == [1]


def test_a_resumed_run_drops_what_its_checkpoint_does_not_know(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text('{"step": 20}\n{"step": 40}\n{"step": 60}\n{"step": 8')  # killed while writing
    TrainingLog(path, 40).append({"step": 60})
    assert steps_of(path) == [20, 40, 60]


def test_a_resumed_run_without_a_log_begins_one(tmp_path: Path) -> None:
    TrainingLog(tmp_path / "log.jsonl", 5).append({"step": 6})
    assert steps_of(tmp_path / "log.jsonl") == [6]
