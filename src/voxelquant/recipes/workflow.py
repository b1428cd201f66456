"""What the reference workflow takes from a config and leaves unsaid on its command lines."""

from __future__ import annotations

from dataclasses import dataclass

from voxelquant.detection.config import load_config

# The reference fine-tunes with this rate: its README asks for the config to be edited.
QAT_LR_MAX = 1e-4


@dataclass(frozen=True)
class WorkflowSettings:
    """Settings of one call.

    Attributes:
        batch_size: frames a batch, in calibration as in training.
        lr_max: peak learning rate of quantization-aware training.
    """

    batch_size: int
    lr_max: float


def workflow_settings(config: str) -> WorkflowSettings:
    """Settings that a config gives.

    Its learning rate counts where it is below the reference's for fine-tuning. A config that was
    left as it trains from scratch would undo the training it starts from, at ten times that rate.

    Raises:
        ConfigError: the config cannot be used.
    """
    train = load_config(config).train
    return WorkflowSettings(train.batch_size, min(train.schedule.lr_max, QAT_LR_MAX))
