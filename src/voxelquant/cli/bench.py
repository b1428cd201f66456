"""`voxelquant bench`."""

from pathlib import Path

import click


@click.command()
@click.argument("config", default="centerpoint_voxel0075")
@click.option(
    "--against",
    type=click.Choice(["spconv"]),
    help="Measure this peer on the same network and frames as well.",
)
@click.option(
    "--work-dir",
    default=Path("runs/bench"),
    show_default=True,
    type=click.Path(path_type=Path),
    help="Where result.json goes.",
)
@click.option(
    "--frame",
    type=click.Path(path_type=Path),
    help="Voxels: .npz with features [n, c] and coords_bzyx [n, 4]; default: a synthetic frame.",
)
@click.option(
    "--cloud",
    type=click.Path(path_type=Path),
    help="Points to voxelize: .npz with `points`, .pcd.bin or raw .bin; default: synthetic.",
)
@click.option(
    "--counts",
    type=click.Path(path_type=Path),
    help="CSV with a column num_voxels, whose quantiles are measured; default: round numbers.",
)
@click.option("--voxels", type=click.IntRange(min=1), help="Cut the frame to so many, or grow it.")
@click.option(
    "--precision",
    "precisions",
    multiple=True,
    default=["fp16", "int8", "fp8"],
    show_default=True,
    type=click.Choice(["fp16", "int8", "fp8"]),
    help="Repeatable.",
)
@click.option(
    "--part",
    "parts",
    multiple=True,
    type=click.Choice(["latency", "throughput", "stages", "scaling", "cloud"]),
    help="Repeatable; the latency is always measured. Default: all, on a CPU latency and stages.",
)
@click.option(
    "--max-voxels",
    default=160_000,
    show_default=True,
    type=click.IntRange(min=1),
    help="Upper bound that a plan is made for, of one frame.",
)
@click.option(
    "--repeats", type=click.IntRange(min=2), help="Timed calls; default: 200, on a CPU 5."
)
@click.option(
    "--device", default="cuda", show_default=True, help="cuda, cuda:N, or cpu: reference backend."
)
@click.option("--seed", default=0, show_default=True, help="Of the weights.")
@click.option("--commit", help="Of this code; default: what git says of the checkout.")
def command(parts: tuple[str, ...], **options: object) -> None:
    """Time the sparse backbone of CONFIG in fp16, int8 and fp8, after checking its results."""
    from voxelquant.recipes.bench import run_bench
    from voxelquant.recipes.bench_request import BenchRequest
    from voxelquant.recipes.bench_text import print_bench
    from voxelquant.recipes.progress import StageReporter

    request = BenchRequest(parts=parts or None, **options)  # type: ignore[arg-type]
    print_bench(run_bench(request, StageReporter()), request.work_dir)
