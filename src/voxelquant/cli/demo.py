"""`voxelquant demo`."""

from pathlib import Path

import click


@click.command()
@click.option(
    "--out",
    default="runs/demo",
    show_default=True,
    type=click.Path(path_type=Path),
    help="Work dir; a dataset that an earlier demo wrote there is used again.",
)
def command(out: Path) -> None:
    """Everything, small, on a CPU: world, PTQ, official metric, integers, ONNX file, report."""
    from voxelquant.recipes.demo import DemoPlan, run_demo
    from voxelquant.recipes.demo_text import print_demo
    from voxelquant.recipes.progress import StageReporter

    print_demo(run_demo(out, DemoPlan(), StageReporter()), out)
