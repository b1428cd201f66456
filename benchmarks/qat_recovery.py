"""What quantization-aware training recovers of what quantization cost, on `centerpoint_tiny`.

    python benchmarks/qat_recovery.py FOLDER [--small] [STEP ...] [--models NAME ...]

Without steps all of them run, in order; a step whose result lies in FOLDER is not done again, so a
run that was broken off continues. `score` writes FOLDER/qat_recovery.json from what was evaluated.
`--small` is the same in miniature, to see that it works: its numbers mean nothing.
"""

import argparse
import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from verb_runs import VerbRuns

from voxelquant.detection.config import load_config
from voxelquant.evaluation.bootstrap import paired_difference
from voxelquant.evaluation.nuscenes import SUBMISSION_FILE, match_submission
from voxelquant.recipes.artifacts import provenance, write_json_atomic
from voxelquant.recipes.datasets import open_dataset
from voxelquant.recipes.demo import tiny_weights

CONFIG = "centerpoint_tiny"
BALANCED = ("--class-mix", "balanced")  # as the shipped weights were trained
# Of the shipped weights' training: 1; calibration: 2; validation: 3; a frame to export on: 4.
CALIBRATION_SEED, VALIDATION_SEED, TRAINING_SEED = 2, 3, 5
RECIPES = Path(__file__).parent / "recipes"

# (name of the evaluation, engine, weights under FOLDER; None: the shipped ones)
SCORES = (
    ("float", "float", None),
    ("bad_ptq", "fake", "bad_ptq/ptq.safetensors"),
    ("bad_qat", "fake", "bad_qat/qat.safetensors"),
    ("ptq", "fake", "ptq/ptq.safetensors"),
    ("qat", "fake", "qat/qat.safetensors"),
    ("float_tuned", "float", "float_tuned/weights.safetensors"),
    ("four_bit_max", "fake", "four_bit_max/ptq.safetensors"),
    ("qat_int8", "int8", "qat/qat.safetensors"),
)
# (reference, other): the difference is other - reference.
DIFFERENCES = (
    ("float", "four_bit_max"),
    ("float", "bad_ptq"),
    ("float", "bad_qat"),
    ("bad_ptq", "bad_qat"),
    ("float", "ptq"),
    ("float", "qat"),
    ("ptq", "qat"),
    ("float", "float_tuned"),
    ("float_tuned", "qat"),
)


@dataclass(frozen=True)
class Plan:
    """How much of everything."""

    scenes: int = 150
    calibration_scenes: int = 20
    steps: int = 500
    pool_size: int = 1024


SMALL = Plan(scenes=4, calibration_scenes=2, steps=4, pool_size=8)


class Experiment:
    """The steps, each of them verbs of the command line."""

    def __init__(self, folder: Path, plan: Plan, models: list[str]) -> None:
        self.folder = folder
        self.plan = plan
        self.models = models
        self.runs = VerbRuns(folder)

    def world(self) -> None:
        """Calibration and validation frames."""
        for name, seed, split in (
            ("calibration", CALIBRATION_SEED, f"synthetic_train={self.plan.calibration_scenes}"),
            ("validation", VALIDATION_SEED, f"synthetic_val={self.plan.scenes}"),
        ):
            root = self.folder / name
            split_and_mix = ("--split", split, *BALANCED)
            self.runs.run(name, "synth", "--out", root, "--seed", seed, *split_and_mix)

    def ptq(self) -> None:
        """The reference's policy, 4 bits with maximum ranges, and the bad one."""
        batches = 2 * self.plan.calibration_scenes
        self._ptq("ptq", "reference", batches)
        self._ptq("four_bit_max", RECIPES / "four_bit_max.yaml", 1)
        self._ptq("bad_ptq", RECIPES / "bad_ptq.yaml", 1)

    def _ptq(self, name: str, recipe: object, batches: int) -> None:
        self.runs.run(
            f"{name}/ptq.safetensors",
            "ptq", CONFIG, "--data", self.folder / "calibration", "--weights", tiny_weights(),
            "--recipe", recipe, "--calibrate-batches", batches, "--work-dir", self.folder / name,
        )  # fmt: skip

    def bad_qat(self) -> None:
        """Training from the bad state."""
        self._train("bad_qat", "qat", self.folder / "bad_ptq" / "ptq.safetensors")

    def qat(self) -> None:
        """Training from the good state."""
        self._train("qat", "qat", self.folder / "ptq" / "ptq.safetensors")

    def float_tuned(self) -> None:
        """The control: the float model with the same steps, rate and frames."""
        self._train("float_tuned", "train", tiny_weights())

    def _train(self, name: str, verb: str, weights: Path) -> None:
        work_dir = self.folder / name
        resume = ("--resume",) if (work_dir / "checkpoint.safetensors").exists() else ()
        result = "qat.safetensors" if verb == "qat" else "weights.safetensors"
        self.runs.run(
            f"{name}/{result}",
            verb, CONFIG, "--data", "synthetic", *BALANCED,
            "--weights", weights, "--lr-max", "1e-4",
            "--steps", self.plan.steps, "--seed", TRAINING_SEED, "--amp",
            "--pool-size", self.plan.pool_size, "--work-dir", work_dir, *resume,
        )  # fmt: skip

    def evaluate(self) -> None:
        """The official metric of the models."""
        for name, engine, weights in SCORES:
            if name not in self.models:
                continue
            path = tiny_weights() if weights is None else self.folder / weights
            self.runs.run(
                f"eval/{name}/metrics.json",
                "eval", CONFIG, "--data", self.folder / "validation", "--weights", path,
                "--engine", engine, "--work-dir", self.folder / "eval" / name,
            )  # fmt: skip

    def score(self) -> None:
        """Differences with their intervals."""
        rows, matches = {}, {}
        dataset = open_dataset(load_config(CONFIG), self.folder / "validation")
        for name, engine, _ in SCORES:
            folder = self.folder / "eval" / name
            if not (folder / "metrics.json").exists():
                continue
            metrics = json.loads((folder / "metrics.json").read_text())["metrics"]
            rows[name] = {"engine": engine, "mAP": metrics["mAP"], "NDS": metrics["NDS"]}
            matches[name] = match_submission(dataset.nusc, dataset.split, folder / SUBMISSION_FILE)
        recovered = None
        if {"float", "bad_ptq", "bad_qat"} <= rows.keys():
            start, end = rows["bad_ptq"]["mAP"], rows["bad_qat"]["mAP"]
            recovered = (end - start) / (rows["float"]["mAP"] - start)
        result = {
            "scores": rows,
            "differences": {
                f"{b} - {a}": paired_difference(matches[a], matches[b])
                for a, b in DIFFERENCES
                if a in matches and b in matches
            },
            "recovered_share": recovered,
            "frames": len(dataset),
            "seeds": {
                "calibration": CALIBRATION_SEED,
                "validation": VALIDATION_SEED,
                "training": TRAINING_SEED,
            },
            "plan": asdict(self.plan),
            "commands": self.runs.commands,
            **provenance(config=CONFIG),
        }
        write_json_atomic(self.folder / "qat_recovery.json", result)
        print(json.dumps({key: result[key] for key in ("scores", "recovered_share")}, indent=1))


STEPS = ("world", "ptq", "bad_qat", "qat", "float_tuned", "evaluate", "score")

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("steps", nargs="*", choices=[*STEPS, []])
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--scenes", type=int, help="of validation, two frames each")
    names = [name for name, _, _ in SCORES]
    parser.add_argument("--models", nargs="+", choices=names, default=names, help="to evaluate")
    arguments = parser.parse_intermixed_args()
    plan = SMALL if arguments.small else Plan()
    plan = replace(plan, scenes=arguments.scenes or plan.scenes)
    experiment = Experiment(arguments.folder.resolve(), plan, arguments.models)
    for step in arguments.steps or STEPS:
        getattr(experiment, step)()
