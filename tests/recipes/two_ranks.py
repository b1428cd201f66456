"""What each of two processes runs for `test_data_parallel.py`: verbs, and what it held at last.

Usage: torchrun ... two_ranks.py FOLDER; FOLDER/commands.json has a port and arguments for each run.
"""

import json
import os
import sys
from pathlib import Path

import torch
from torch import Tensor

from voxelquant import cli
from voxelquant.data.frame import Frame
from voxelquant.recipes import qat
from voxelquant.recipes.qat_trainee import QatTrainee
from voxelquant.recipes.training_batch import TrainingBatch
from voxelquant.recipes.training_loop import Predict


class Watched(QatTrainee):
    """Keeps the frames and the gradients of the first step, and itself."""

    last: "Watched"

    def __init__(self, *arguments: object) -> None:
        super().__init__(*arguments)  # type: ignore[arg-type]
        self.first_frames: list[Frame] = []
        self.first_gradients: dict[str, Tensor] = {}
        Watched.last = self

    def loss(self, predict: Predict, batch: TrainingBatch) -> Tensor:
        self.first_frames = self.first_frames or batch.frames
        return super().loss(predict, batch)

    def before_update(self, step: int) -> None:
        if not self.first_gradients:
            named = self.model.named_parameters()
            self.first_gradients = {n: p.grad.clone() for n, p in named if p.grad is not None}
        super().before_update(step)


def main() -> None:
    qat.QatTrainee = Watched  # type: ignore[misc]
    folder, rank = Path(sys.argv[1]), os.environ["RANK"]
    for name, (port, arguments) in json.loads((folder / "commands.json").read_text()).items():
        # A meeting place for each run; torchrun's own holds what the run before left there.
        os.environ |= {"TORCHELASTIC_USE_AGENT_STORE": "False", "MASTER_PORT": str(port)}
        exit_code = cli.main(arguments, standalone_mode=False)
        if exit_code:
            sys.exit(exit_code)
        trainee = Watched.last
        held = (trainee.first_frames, trainee.first_gradients, trainee.model.state_dict())
        torch.save(held, folder / f"{name}-{rank}.pt")


if __name__ == "__main__":
    main()
