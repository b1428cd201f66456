"""What the reference workflow takes from a config and leaves unsaid on its command lines."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from voxelquant.detection.config import load_config
from voxelquant.recipes.training_loop import CHECKPOINT_FILE
from voxelquant.recipes.training_state import unfinished_steps

# The reference fine-tunes with this rate: its README asks for the config to be edited.
QAT_LR_MAX = 1e-4


@dataclass(frozen=True)
class WorkflowSettings:
    """Settings of one call.

    Attributes:
        batch_size: frames a batch, in calibration as in training.
        lr_max: peak learning rate of quantization-aware training.
        note: what became of the config's own rate; empty if it is taken as it is.
    """

    batch_size: int
    lr_max: float
    note: str


def workflow_settings(config: str) -> WorkflowSettings:
    """Settings that a config gives.

    Its learning rate counts where it is below the reference's for fine-tuning. A config that was
    left as it trains from scratch would undo the training it starts from, at ten times that rate.

    Raises:
        ConfigError: the config cannot be used.
    """
    train = load_config(config).train
    own = train.schedule.lr_max
    note = (
        ""
        if own <= QAT_LR_MAX
        else (
            f"training with a peak rate of {QAT_LR_MAX:g}, not the config's {own:g}, which is for "
            "training from scratch; `voxelquant qat --lr-max` takes any"
        )
    )
    return WorkflowSettings(train.batch_size, min(own, QAT_LR_MAX), note)


def was_broken_off(work_dir: Path) -> bool:
    """Whether a training in this folder can be gone on with."""
    return unfinished_steps(work_dir / CHECKPOINT_FILE) is not None
