"""`voxelquant ptq`."""

from pathlib import Path

import click

from voxelquant.cli.training_options import CLASS_MIX_OPTION


@click.command()
@click.argument("config")
@click.option(
    "--data",
    help="Root of a nuScenes-format dataset, or `synthetic`; default: the config's data root.",
)
@click.option(
    "--seed",
    type=click.IntRange(min=0),
    help="Of the synthetic world; take another than training and validation have; default: 0.",
)
@CLASS_MIX_OPTION
@click.option("--weights", required=True, type=click.Path(path_type=Path), help="Float weights.")
@click.option("--work-dir", required=True, type=click.Path(path_type=Path))
@click.option("--calibrate-batches", default=400, show_default=True, type=click.IntRange(min=1))
@click.option("--batch-size", default=1, show_default=True, type=click.IntRange(min=1))
@click.option(
    "--method",
    type=click.Choice(["mse", "max", "percentile", "entropy"]),
    help="How ranges are chosen; default: the recipe's.",
)
@click.option(
    "--observations",
    type=click.Path(path_type=Path),
    help="Folder that keeps what was seen: there another --method reads no frames again.",
)
@click.option("--recipe", default="reference", show_default=True, help="Bundled name or YAML file.")
@click.option("--split", help="Default: the dataset's split for training.")
@click.option("--version", help="Version folder; default: the only one.")
@click.option(
    "--num-workers",
    default=0,
    show_default=True,
    type=click.IntRange(min=0),
    help="Processes that read frames ahead.",
)
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
def command(**options: object) -> None:
    """Quantize the trained detector CONFIG after training; writes ptq.safetensors."""
    from voxelquant.recipes.progress import StageReporter
    from voxelquant.recipes.ptq import PtqRequest, run_ptq

    click.echo(run_ptq(PtqRequest(**options), StageReporter()))  # type: ignore[arg-type]
