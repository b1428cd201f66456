"""`voxelquant train`."""

from pathlib import Path

import click


@click.command()
@click.argument("config")
@click.option(
    "--data",
    help="Root of a nuScenes-format dataset, or `synthetic`; default: the config's data root.",
)
@click.option("--work-dir", required=True, type=click.Path(path_type=Path))
@click.option("--split", help="Default: the dataset's split for training.")
@click.option("--version", help="Version folder; default: the only one.")
@click.option("--steps", type=click.IntRange(min=1), help="Default: the epochs of the config.")
@click.option("--batch-size", type=click.IntRange(min=1), help="Default: that of the config.")
@click.option("--seed", default=0, show_default=True, type=click.IntRange(min=0))
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
@click.option("--amp", is_flag=True, help="bfloat16 autocast.")
@click.option("--resume", is_flag=True, help="Continue from the work dir's checkpoint.")
@click.option("--stop-after-s", type=float, help="Leave with a checkpoint after so many seconds.")
@click.option(
    "--pool-size",
    default=1024,
    show_default=True,
    type=click.IntRange(min=1),
    help="Synthetic frames kept at hand.",
)
@click.option(
    "--num-workers",
    default=0,
    show_default=True,
    type=click.IntRange(min=0),
    help="Processes that read a dataset ahead.",
)
@click.option(
    "--turnover",
    default=2,
    show_default=True,
    type=click.IntRange(min=0),
    help="Of these, replaced every step.",
)
def command(**options: object) -> None:
    """Train the detector CONFIG (a bundled name, our YAML, or an original .py config)."""
    from voxelquant.recipes.progress import StageReporter
    from voxelquant.recipes.train_run import TrainRequest, run_training

    weights = run_training(TrainRequest(**options), StageReporter())  # type: ignore[arg-type]
    click.echo(weights)
