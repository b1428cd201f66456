"""The table of the reference in kind: what PTQ and QAT cost a detector on the synthetic world.

    python benchmarks/accuracy.py FOLDER --weights W [--config C] [STEP ...] [--at-once N] [--small]

Without steps all of them run, in order; what lies in FOLDER is not done again, so a run that was
broken off continues. `score` writes FOLDER/accuracy.json. `--small` is the same in miniature, to
see that it works: its numbers mean nothing. `--at-once` is for machines on which several verbs
share a GPU.

Rows: float; PTQ by four methods on 16, 64 and 400 generated batches (*simulated*); the integers of
the MSE state (*executed*); QAT from that state, simulated and executed; and the control, the float
model fine-tuned with QAT's steps, rate and frames. Seeds of the world never overlap.
"""

import argparse
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from verb_runs import Verb, VerbRuns

from voxelquant.detection.config import load_config
from voxelquant.evaluation.bootstrap import PairedDifference, PairedReference, paired_difference
from voxelquant.evaluation.matching import Matches
from voxelquant.evaluation.nuscenes import SUBMISSION_FILE, match_submission
from voxelquant.evaluation.range_rings import score_rings
from voxelquant.recipes.artifacts import provenance, to_jsonable, write_json_atomic
from voxelquant.recipes.datasets import open_dataset

CALIBRATION_SEED, VALIDATION_SEED, TRAINING_SEED = 2, 3, 5  # the weights' own training has 1
METHODS = ("mse", "max", "percentile", "entropy")
RINGS_M = (0, 10, 20, 30, 40, 50)
LR_MAX = 1e-4  # of the reference's QAT


@dataclass(frozen=True)
class Plan:
    """How much of everything."""

    scenes: int = 150
    key_frames: int = 4  # of a scene, half a second apart
    batches: tuple[int, ...] = (400, 64, 16)
    steps: int = 1000
    batch_size: int = 4
    pool_size: int = 512


SMALL = Plan(scenes=4, key_frames=2, batches=(2, 1), steps=2, batch_size=2, pool_size=4)


@dataclass(frozen=True)
class Row:
    """One model that is scored."""

    name: str
    engine: str
    weights: Path


class Accuracy:
    """The steps, each of them verbs of the command line.

    Args:
        folder: results.
        plan: how much of everything.
        config: the detector.
        weights: its float weights.
        at_once: verbs that run side by side.
    """

    def __init__(self, folder: Path, plan: Plan, config: str, weights: Path, at_once: int) -> None:
        self.folder = folder
        self.plan = plan
        self.config = config
        self.weights = weights
        self.at_once = at_once
        self.runs = VerbRuns(folder)
        self.validation = folder / "validation"

    @property
    def rows(self) -> list[Row]:
        """All models; the first of the batch numbers is the reference's, and has the plain name."""
        ptq = [
            Row(self._ptq_name(method, batches), "fake", self._state(method, batches))
            for batches in self.plan.batches
            for method in METHODS
        ]
        qat = self.folder / "qat" / "qat.safetensors"
        return [
            Row("float", "float", self.weights),
            *ptq,
            Row("int8", "int8", self._state(METHODS[0], self.plan.batches[0])),
            Row("qat", "fake", qat),
            Row("qat_int8", "int8", qat),
            Row("float_tuned", "float", self.folder / "float_tuned" / "weights.safetensors"),
        ]

    def world(self) -> None:
        """Validation frames on disk; all others are generated as they are wanted."""
        self.runs.run(
            "validation",
            "synth", "--out", self.validation, "--seed", VALIDATION_SEED,
            "--split", f"synthetic_val={self.plan.scenes}", "--key-frames", self.plan.key_frames,
        )  # fmt: skip

    def ptq(self) -> None:
        """Every method on every number of batches, each of which are observed once."""
        first, *others = METHODS
        for methods in ((first,), others):
            verbs = [self._ptq(m, batches) for batches in self.plan.batches for m in methods]
            self.runs.run_together(verbs, self.at_once)

    def qat(self) -> None:
        """Training from the MSE state, and the control."""
        state = self._state(METHODS[0], self.plan.batches[0])
        for name, verb, weights in (
            ("qat", "qat", state),
            ("float_tuned", "train", self.weights),
        ):
            work_dir = self.folder / name
            resume = ("--resume",) if (work_dir / "checkpoint.safetensors").exists() else ()
            result = "qat.safetensors" if verb == "qat" else "weights.safetensors"
            self.runs.run(
                f"{name}/{result}",
                verb, self.config, "--data", "synthetic", "--weights", weights,
                "--lr-max", LR_MAX, "--steps", self.plan.steps, "--seed", TRAINING_SEED, "--amp",
                "--batch-size", self.plan.batch_size, "--pool-size", self.plan.pool_size,
                "--work-dir", work_dir, *resume,
            )  # fmt: skip

    def evaluate(self) -> None:
        """The official metric of every model that is there."""
        verbs = [self._evaluation(row) for row in self.rows if row.weights.exists()]
        self.runs.run_together(verbs, self.at_once)

    def score(self) -> None:
        """Differences with their intervals, and the float model near and far."""
        dataset = open_dataset(load_config(self.config), self.validation)
        matches = {
            row.name: match_submission(dataset.nusc, dataset.split, self._submission(row.name))
            for row in self.rows
            if self._submission(row.name).exists()
        }
        reference = PairedReference(matches["float"])
        models = {}
        for row in self.rows:
            if row.name in matches:
                models[row.name] = self._scored(row, reference, matches[row.name])
        submission = self._submission("float")
        result = {
            **models,
            "differences": self._differences(matches),
            "rings": score_rings(dataset.nusc, dataset.split, submission, RINGS_M),
            "frames": len(dataset),
            "split": dataset.split,
            "seeds": {
                "calibration": CALIBRATION_SEED,
                "validation": VALIDATION_SEED,
                "training": TRAINING_SEED,
            },
            "plan": asdict(self.plan),
            "commands": self.runs.commands,
            **provenance(config=self.config),
        }
        write_json_atomic(self.folder / "accuracy.json", to_jsonable(result))
        for name, model in models.items():
            print(f"{name:16} mAP {100 * model['mAP']:.2f}  NDS {100 * model['NDS']:.2f}")

    def _scored(self, row: Row, reference: PairedReference, matches: Matches) -> dict[str, Any]:
        metrics = json.loads((self._evaluated(row.name) / "metrics.json").read_text())["metrics"]
        scored = {"engine": row.engine, **metrics}
        if row.name != "float":
            scored["difference"] = reference.difference_to(matches)
        return scored

    @staticmethod
    def _differences(matches: dict[str, Matches]) -> dict[str, PairedDifference]:
        """Between others than float: `b - a`."""
        pairs = (("ptq_mse", "qat"), ("float_tuned", "qat"), ("ptq_mse", "int8"))
        return {
            f"{b} - {a}": paired_difference(matches[a], matches[b])
            for a, b in pairs
            if a in matches and b in matches
        }

    def _ptq(self, method: str, batches: int) -> Verb:
        state = self._state(method, batches)
        return (
            str(state.relative_to(self.folder)),
            ("ptq", self.config, "--data", "synthetic", "--seed", CALIBRATION_SEED,
             "--weights", self.weights, "--method", method, "--calibrate-batches", batches,
             "--observations", self.folder / f"observed_{batches}", "--work-dir", state.parent),
        )  # fmt: skip

    def _evaluation(self, row: Row) -> Verb:
        work_dir = self._evaluated(row.name)
        return (
            str((work_dir / "metrics.json").relative_to(self.folder)),
            ("eval", self.config, "--data", self.validation, "--weights", row.weights,
             "--engine", row.engine, "--batch-size", self.plan.batch_size,
             "--work-dir", work_dir),
        )  # fmt: skip

    def _ptq_name(self, method: str, batches: int) -> str:
        suffix = "" if batches == self.plan.batches[0] else f"_{batches}"
        return f"ptq_{method}{suffix}"

    def _state(self, method: str, batches: int) -> Path:
        return self.folder / self._ptq_name(method, batches) / "ptq.safetensors"

    def _evaluated(self, name: str) -> Path:
        return self.folder / "eval" / name

    def _submission(self, name: str) -> Path:
        return self._evaluated(name) / SUBMISSION_FILE


STEPS = ("world", "ptq", "qat", "evaluate", "score")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("steps", nargs="*", choices=[*STEPS, []])
    parser.add_argument("--config", default="centerpoint_voxel0075")
    parser.add_argument("--weights", type=Path, required=True, help="float weights")
    parser.add_argument("--at-once", type=int, default=1, help="verbs side by side")
    parser.add_argument("--small", action="store_true")
    arguments = parser.parse_intermixed_args()
    folder = arguments.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    experiment = Accuracy(
        folder,
        SMALL if arguments.small else Plan(),
        arguments.config,
        arguments.weights.resolve(),
        arguments.at_once,
    )
    for step in arguments.steps or STEPS:
        getattr(experiment, step)()


if __name__ == "__main__":
    main()
