"""`voxelquant qat`."""

from pathlib import Path

import click

from voxelquant.cli.training_options import training_options


@click.command()
@training_options
@click.option(
    "--weights",
    required=True,
    type=click.Path(path_type=Path),
    help="Float weights, which are calibrated first, a state that `ptq` made, or NVIDIA's ptq.pth.",
)
@click.option(
    "--lr-max",
    default=1e-4,
    show_default=True,
    type=click.FloatRange(min=0.0, min_open=True),
    help="Highest learning rate of the schedule.",
)
@click.option("--recipe", help="Bundled name or YAML file; default for float weights: reference.")
@click.option(
    "--method",
    type=click.Choice(["mse", "max", "percentile", "entropy"]),
    help="How ranges of float weights are chosen; default: the recipe's.",
)
@click.option(
    "--calibrate-batches",
    type=click.IntRange(min=1),
    help="Frames that float weights are calibrated on; default: 400.",
)
@click.option(
    "--activation-ranges",
    type=click.Choice(["frozen", "ema", "learned"]),
    help="In training; default: the recipe's qat section.",
)
@click.option(
    "--weight-ranges",
    type=click.Choice(["frozen", "max", "learned"]),
    help="In training; default: the recipe's qat section.",
)
@click.option("--freeze-bn", is_flag=True, help="Keep the batch norm statistics of neck and head.")
@click.option(
    "--task-weight",
    default=1.0,
    show_default=True,
    type=click.FloatRange(min=0.0),
    help="Factor on the loss of the labels; 0 needs none.",
)
@click.option(
    "--distill",
    default=0.0,
    show_default=True,
    type=click.FloatRange(min=0.0),
    help="Factor on the distance to the float teacher.",
)
@click.option(
    "--teacher",
    type=click.Path(path_type=Path),
    help="Float weights of the teacher; default: --weights where they are float.",
)
def command(**options: object) -> None:
    """Train the detector CONFIG with fake quantization; writes qat.safetensors."""
    from voxelquant.recipes.progress import StageReporter
    from voxelquant.recipes.qat import QatRequest, run_qat

    state = run_qat(QatRequest(**options), StageReporter())  # type: ignore[arg-type]
    if state is not None:
        click.echo(state)
