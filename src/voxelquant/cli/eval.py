"""`voxelquant eval`."""

from pathlib import Path

import click


@click.command()
@click.argument("config")
@click.option("--data", help="Root of a nuScenes-format dataset; default: the config's data root.")
@click.option(
    "--weights",
    required=True,
    type=click.Path(path_type=Path),
    help="Float weights; for the others ptq.safetensors, or NVIDIA's ptq.pth or qat.pth.",
)
@click.option(
    "--engine",
    default="float",
    show_default=True,
    type=click.Choice(["float", "fake", "int8", "fp8"]),
    help="fake: simulated; int8: executed in integers; fp8: executed in 8-bit floats.",
)
@click.option("--work-dir", default="runs/eval", show_default=True, type=click.Path(path_type=Path))
@click.option("--split", help="Default: the dataset's split for validation.")
@click.option("--version", help="Version folder; default: the only one.")
@click.option(
    "--batch-size",
    default=1,
    show_default=True,
    type=click.IntRange(min=1),
    help="Frames at once.",
)
@click.option(
    "--num-workers",
    default=0,
    show_default=True,
    type=click.IntRange(min=0),
    help="Processes that read frames ahead.",
)
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
@click.option(
    "--against",
    type=click.Path(path_type=Path),
    help="Work dir of an earlier eval: the differences to it, with 95 % intervals.",
)
def command(**options: object) -> None:
    """Score the detector CONFIG with the official nuScenes metric."""
    from voxelquant.recipes.evaluate import EvaluateRequest, run_evaluation
    from voxelquant.recipes.progress import StageReporter
    from voxelquant.recipes.result_text import print_evaluation

    request = EvaluateRequest(**options)  # type: ignore[arg-type]
    print_evaluation(run_evaluation(request, StageReporter()), request.engine)
