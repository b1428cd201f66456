"""Options that every training has: `train` and `qat`."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

CLASS_MIX_OPTION = click.option(
    "--class-mix",
    type=click.Choice(["nuscenes", "balanced"]),
    help="Of the synthetic world: classes as frequent as in nuScenes (default: nuscenes), or "
    "rare ones more often.",
)

_OPTIONS = (
    click.argument("config"),
    click.option(
        "--data",
        help="Root of a nuScenes-format dataset, or `synthetic`; default: the config's data root.",
    ),
    click.option("--work-dir", required=True, type=click.Path(path_type=Path)),
    click.option("--split", help="Default: the dataset's split for training."),
    click.option("--version", help="Version folder; default: the only one."),
    click.option("--steps", type=click.IntRange(min=1), help="Length; or give --epochs."),
    click.option("--epochs", type=click.IntRange(min=1), help="Default: those of the config."),
    click.option(
        "--batch-size",
        type=click.IntRange(min=1),
        help="Frames a step, of each process; default: that of the config.",
    ),
    click.option("--seed", default=0, show_default=True, type=click.IntRange(min=0)),
    click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N."),
    click.option("--amp", is_flag=True, help="bfloat16 autocast."),
    click.option(
        "--graphs/--no-graphs",
        default=True,
        show_default=True,
        help="On one GPU, launch neck and head (in train their loss too) as CUDA graphs.",
    ),
    click.option("--resume", is_flag=True, help="Continue from the work dir's checkpoint."),
    click.option(
        "--checkpoint-every",
        default=500,
        show_default=True,
        type=click.IntRange(min=1),
        help="Steps between checkpoints.",
    ),
    click.option(
        "--stop-after-s",
        type=click.FloatRange(min=0.0),
        help="Leave with a checkpoint after so many seconds.",
    ),
    click.option(
        "--pool-size",
        type=click.IntRange(min=1),
        help="Synthetic frames kept at hand; default: 1024.",
    ),
    click.option(
        "--turnover",
        type=click.IntRange(min=0),
        help="Of these, replaced every step; default: 2.",
    ),
    CLASS_MIX_OPTION,
    click.option(
        "--num-workers",
        default=0,
        show_default=True,
        type=click.IntRange(min=0),
        help="Processes that read a dataset ahead.",
    ),
)


def training_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Give a verb the options of every training."""
    for option in reversed(_OPTIONS):
        function = option(function)
    return function
