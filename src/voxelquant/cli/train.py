"""`voxelquant train`."""

from pathlib import Path

import click

from voxelquant.cli.training_options import training_options


@click.command()
@training_options
@click.option(
    "--weights",
    type=click.Path(path_type=Path),
    help="Float weights to start from; default: fresh ones.",
)
@click.option(
    "--lr-max",
    type=click.FloatRange(min=0.0, min_open=True),
    help="Highest learning rate of the schedule; default: that of the config.",
)
@click.option(
    "--shard-mb",
    type=click.FloatRange(min=0.0, min_open=True),
    help="Write the weights in shards of at most so many MB of 10^6 bytes, with an index.",
)
def command(**options: object) -> None:
    """Train the detector CONFIG (a bundled name, our YAML, or an original .py config)."""
    from voxelquant.recipes.progress import StageReporter
    from voxelquant.recipes.train_run import TrainRequest, run_training

    weights = run_training(TrainRequest(**options), StageReporter())  # type: ignore[arg-type]
    if weights is not None:
        click.echo(weights)
