"""`voxelquant parity`."""

from pathlib import Path

import click

LAW_BROKEN_EXIT_CODE = 1


@click.command()
@click.argument("config")
@click.option(
    "--weights",
    required=True,
    type=click.Path(path_type=Path),
    help="ptq.safetensors, or NVIDIA's ptq.pth or qat.pth.",
)
@click.option(
    "--float-weights",
    type=click.Path(path_type=Path),
    help="What the state was made from; adds SQNR and relative L2 against float.",
)
@click.option("--onnx", type=click.Path(path_type=Path), help="Exported file to compare as well.")
@click.option(
    "--frame",
    type=click.Path(path_type=Path),
    help="Frame to run: .npz with `points`, nuScenes .pcd.bin, or raw float32 .bin.",
)
@click.option(
    "--data",
    type=click.Path(path_type=Path),
    help="Dataset whose first frame is run; default: a synthetic frame.",
)
@click.option("--split", help="Of --data.")
@click.option("--version", help="Version folder of --data.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
def command(
    config: str,
    weights: Path,
    float_weights: Path | None,
    onnx: Path | None,
    device: str,
    **choice: object,
) -> None:
    """Compare float, fake-quant, integer engine and file layer by layer; exit 1 if they part."""
    from voxelquant.recipes.frame_files import FrameChoice
    from voxelquant.recipes.parity import ParityRequest, run_parity
    from voxelquant.recipes.progress import StageReporter
    from voxelquant.recipes.result_text import print_parity

    frame = FrameChoice(**choice)  # type: ignore[arg-type]
    request = ParityRequest(config, weights, float_weights, onnx, frame, device)
    parity = run_parity(request, StageReporter())
    print_parity(parity)
    if not parity.holds:
        click.get_current_context().exit(LAW_BROKEN_EXIT_CODE)
