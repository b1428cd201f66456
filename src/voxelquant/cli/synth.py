"""`voxelquant synth`."""

from pathlib import Path

import click

from voxelquant.cli.training_options import CLASS_MIX_OPTION


@click.command()
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Data root to make.")
@click.option("--scenes", type=int, help="In all; a quarter becomes synthetic_val.")
@click.option(
    "--seed", default=0, show_default=True, type=click.IntRange(min=0), help="Seeds share no scene."
)
@click.option("--key-frames", default=2, show_default=True, help="Of each scene, 0.5 s apart.")
@click.option(
    "--split", "splits", multiple=True, metavar="NAME=SCENES", help="Repeatable; not with --scenes."
)
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
@CLASS_MIX_OPTION
def command(**options: object) -> None:
    """Write a synthetic LiDAR world in nuScenes v1.0 format."""
    from voxelquant.recipes.progress import StageReporter
    from voxelquant.recipes.result_text import print_world
    from voxelquant.recipes.synth import SynthRequest, run_synth

    request = SynthRequest(**options)  # type: ignore[arg-type]
    print_world(run_synth(request, StageReporter()))
