"""`voxelquant report`."""

from pathlib import Path

import click


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
def command(folder: Path) -> None:
    """Draw the HTML page of the finished run in FOLDER."""
    from voxelquant.recipes.report import write_report

    click.echo(write_report(folder))
