"""`voxelquant export`."""

from pathlib import Path

import click


@click.command()
@click.argument("config")
@click.option(
    "--weights",
    required=True,
    type=click.Path(path_type=Path),
    help="ptq.safetensors, or NVIDIA's ptq.pth or qat.pth.",
)
@click.option(
    "--out",
    required=True,
    type=click.Path(path_type=Path),
    help="scn.onnx: a libspconv file; ptq.pth: a checkpoint for NVIDIA's tools.",
)
@click.option(
    "--frame",
    type=click.Path(path_type=Path),
    help="Example frame: .npz with `points`, nuScenes .pcd.bin, or raw float32 .bin.",
)
@click.option(
    "--data",
    type=click.Path(path_type=Path),
    help="Dataset whose first frame is the example; default: a synthetic frame.",
)
@click.option("--split", help="Of --data.")
@click.option("--version", help="Version folder of --data.")
@click.option(
    "--output-bound",
    default=200_000,
    show_default=True,
    type=click.IntRange(min=1),
    help="Most voxels that an engine keeps in a layer.",
)
def command(config: str, weights: Path, out: Path, output_bound: int, **choice: object) -> None:
    """Write a quantized detector's sparse backbone as a libspconv ONNX file, and check it.

    With --out ptq.pth, write the whole detector as a checkpoint that NVIDIA's tools read.
    """
    from voxelquant.recipes.export import ExportRequest, run_export
    from voxelquant.recipes.frame_files import FrameChoice
    from voxelquant.recipes.progress import StageReporter

    frame = FrameChoice(**choice)  # type: ignore[arg-type]
    request = ExportRequest(config, weights, out, frame, output_bound)
    for defect in run_export(request, StageReporter()):
        click.echo(defect)
    click.echo(out)
