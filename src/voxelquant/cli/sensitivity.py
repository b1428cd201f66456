"""`voxelquant sensitivity`."""

from pathlib import Path

import click


@click.command()
@click.argument("config")
@click.option("--data", help="Root of a nuScenes-format dataset; default: the config's data root.")
@click.option(
    "--weights",
    required=True,
    type=click.Path(path_type=Path),
    help="Float weights, which are calibrated here, or a state whose ranges are taken.",
)
@click.option(
    "--float-weights",
    type=click.Path(path_type=Path),
    help="What the state was made from; without them only activations are seen to be rounded.",
)
@click.option("--work-dir", required=True, type=click.Path(path_type=Path))
@click.option(
    "--metric",
    default="map",
    show_default=True,
    type=click.Choice(["map", "proxy"]),
    help="map: the official metric, the proxy beside it; proxy: needs no labels.",
)
@click.option(
    "--mode",
    default="one",
    show_default=True,
    type=click.Choice(["one", "all-but-one"]),
    help="Layers that are quantized at a time.",
)
@click.option("--frames", type=click.IntRange(min=1), help="Of the split, evenly spaced.")
@click.option("--calibrate-batches", default=400, show_default=True, type=click.IntRange(min=1))
@click.option("--batch-size", default=1, show_default=True, type=click.IntRange(min=1))
@click.option(
    "--method",
    type=click.Choice(["mse", "max", "percentile", "entropy"]),
    help="How ranges of float weights are chosen; default: the recipe's.",
)
@click.option("--recipe", help="Bundled name or YAML file; default for float weights: int8.")
@click.option(
    "--keep-worst",
    type=click.IntRange(min=0),
    help="Layers that the suggested recipe keeps in fp16; default: by --tolerance, 3 by proxy.",
)
@click.option(
    "--tolerance",
    default=0.1,
    show_default=True,
    type=click.FloatRange(min=0.0),
    help="Points of mAP that a layer may cost; one that surely costs more is kept in fp16.",
)
@click.option(
    "--resamples",
    default=500,
    show_default=True,
    type=click.IntRange(min=2),
    help="Of the bootstrap behind the intervals.",
)
@click.option(
    "--save-every",
    default=10,
    show_default=True,
    type=click.IntRange(min=1),
    help="Frames after which the work so far is kept.",
)
@click.option("--split", help="Default: the dataset's split for validation.")
@click.option("--calibration-split", help="Default: the dataset's split for training.")
@click.option("--version", help="Version folder; default: the only one.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
def command(keep_worst: int | None, tolerance: float, **options: object) -> None:
    """Rank the layers of CONFIG by what quantizing each of them costs; suggests a recipe."""
    from voxelquant.recipes.progress import StageReporter
    from voxelquant.recipes.sensitivity import run_sensitivity
    from voxelquant.recipes.sensitivity_request import SensitivityRequest
    from voxelquant.recipes.sensitivity_result import SuggestionRule
    from voxelquant.recipes.sensitivity_text import print_sensitivity

    rule = SuggestionRule(keep_worst, tolerance)
    request = SensitivityRequest(rule=rule, **options)  # type: ignore[arg-type]
    result = run_sensitivity(request, StageReporter())
    if result is not None:
        print_sensitivity(result, request.work_dir)
