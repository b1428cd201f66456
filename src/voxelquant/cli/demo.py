"""`voxelquant demo`."""

from pathlib import Path

import click

from voxelquant.cli.parity import LAW_BROKEN_EXIT_CODE


@click.command()
@click.option(
    "--out",
    default="runs/demo",
    show_default=True,
    type=click.Path(path_type=Path),
    help="Work dir; a dataset that an earlier demo wrote there is used again.",
)
def command(out: Path) -> None:
    """Everything, small, on a CPU: world, PTQ, official metric, integers, ONNX file, report.

    Exits 1 if fake-quant, integer engine and file part from one another.
    """
    from voxelquant.recipes.demo import DemoPlan, run_demo
    from voxelquant.recipes.demo_text import print_demo
    from voxelquant.recipes.progress import StageReporter

    result = run_demo(out, DemoPlan(), StageReporter())
    print_demo(result, out)
    if not result["parity"]["holds"]:
        click.get_current_context().exit(LAW_BROKEN_EXIT_CODE)
