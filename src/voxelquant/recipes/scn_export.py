"""Export the sparse backbone of a checkpoint that comes without a config."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from voxelquant.data.array_pickle import PickledArray, load_array_pickle
from voxelquant.data.synthetic import generate_frames
from voxelquant.detection.backbone import SpMiddleResNetFHD
from voxelquant.detection.checkpoint import load_weights
from voxelquant.detection.checkpoint_files import read_torch_file
from voxelquant.detection.checkpoint_shapes import CheckpointDescription, describe_checkpoint
from voxelquant.detection.nvidia_import import (
    DENSE_PARTS,
    BackboneModel,
    import_nvidia_checkpoint,
)
from voxelquant.detection.reader import read_clouds
from voxelquant.errors import CheckpointError, DatasetError
from voxelquant.export.defects import Defect
from voxelquant.export.from_graph import export_libspconv
from voxelquant.export.tensor_dump import write_tensor_dump
from voxelquant.plural import counted
from voxelquant.quant import lower, quantize
from voxelquant.quant.state_file import is_state_file
from voxelquant.recipes.frame_files import EXAMPLE_SEED
from voxelquant.recipes.progress import StageReporter
from voxelquant.sparse import SparseTensor

_SYNTHETIC_CHANNELS = 5  # x_m, y_m, z_m, intensity, dt_s


@dataclass(frozen=True)
class ScnExportRequest:
    """What the command line asks for.

    Attributes:
        checkpoint: float `.pth`, or `ptq.pth` or `qat.pth`.
        out: file to write.
        quantized: whether the checkpoint is a quantized one.
        in_channels: features of a voxel.
        example: pickle of (voxels `[n, c]`, coordinates `[n, 4]`, grid (x, y, z), batch size);
            default: a frame of the synthetic world.
        tensor_prefix: where voxels, coordinates, output and grid of the example are dumped.
    """

    checkpoint: Path
    out: Path
    quantized: bool = False
    in_channels: int = _SYNTHETIC_CHANNELS
    example: Path | None = None
    tensor_prefix: str | None = None


def run_scn_export(request: ScnExportRequest, reporter: StageReporter) -> list[Defect]:
    """Write the backbone as a libspconv file and, if asked, the tensors of its example.

    Returns:
        What the validator warns of.

    Raises:
        BadInputError: checkpoint or example cannot be used; the message says why.
    """
    if is_state_file(request.checkpoint):
        raise CheckpointError(
            f"{request.checkpoint}: got a state of voxelquant, need a checkpoint; give it to "
            "`voxelquant export CONFIG --weights`, which writes this file too"
        )
    description = describe_checkpoint(request.checkpoint)
    _check_kind(request, description)
    model = BackboneModel(SpMiddleResNetFHD(description.backbone))
    x = _example(request, description)
    qmodel, notes = _load(request, description, model, x)
    reporter.say_all((*description.notes, *notes))
    with reporter.stage("export", f"exporting on an example of {counted(len(x.sites), 'voxel')}"):
        exported = export_libspconv(qmodel, request.out, example=x)
        if request.tensor_prefix is not None:
            _dump_example(request.tensor_prefix, x, lower(qmodel))
    return exported.warnings


def _check_kind(request: ScnExportRequest, description: CheckpointDescription) -> None:
    if request.quantized != description.quantized:
        has, advice = (
            ("a quantized checkpoint", "add --use-quantization")
            if description.quantized
            else ("float weights", "leave --use-quantization away, or give a ptq.pth or qat.pth")
        )
        raise CheckpointError(f"{request.checkpoint}: got {has}; {advice}")
    if request.in_channels != description.backbone.in_channels:
        raise CheckpointError(
            f"{request.checkpoint}: got a backbone of {description.backbone.in_channels} input "
            f"features, need {request.in_channels}; give --in-channel "
            f"{description.backbone.in_channels}"
        )


def _load(
    request: ScnExportRequest,
    description: CheckpointDescription,
    model: BackboneModel,
    x: SparseTensor,
) -> tuple[nn.Module, tuple[str, ...]]:
    """The backbone ready for export, with what is to be said of its file."""
    if not request.quantized:
        load_weights(model, request.checkpoint, leave_aside=DENSE_PARTS)
        return quantize(model.eval(), "fp16", example=x), ()
    content = read_torch_file(request.checkpoint)
    found = import_nvidia_checkpoint(
        content, request.checkpoint, model, description.grid.sparse_shape
    )
    return found.state.apply(model).eval(), found.notes


def _example(request: ScnExportRequest, description: CheckpointDescription) -> SparseTensor:
    if request.example is not None:
        return read_voxel_pickle(request.example, request.in_channels)
    if request.in_channels != _SYNTHETIC_CHANNELS:
        raise DatasetError(
            f"got a backbone of {request.in_channels} input features, but the built-in frame has "
            f"{_SYNTHETIC_CHANNELS}; give --input a pickle of voxels"
        )
    cloud = generate_frames(EXAMPLE_SEED, [0], key_frames=1)[0].points
    return read_clouds([cloud], description.grid)


def read_voxel_pickle(path: Path, channels: int) -> SparseTensor:
    """Voxels of one frame from a pickle of numpy arrays, which is read without executing it.

    Args:
        path: (voxels `[n, c]`, coordinates `[n, 4]` (batch, z, y, x), grid (x, y, z), batch size);
            the sparse grid has one cell more along z, as the detector's.
        channels: c.

    Raises:
        DatasetError: missing, unsafe, or of another layout.
    """
    content = load_array_pickle(path)
    if not isinstance(content, list | tuple) or len(content) != 4:
        raise DatasetError(
            f"{path}: need a pickle of four things: voxels, coordinates, grid (x, y, z), batch size"
        )
    voxels, coords, grid = (_tensor(item, path) for item in content[:3])
    if voxels.ndim != 2 or voxels.shape[1] != channels or grid.shape != (3,):
        raise DatasetError(
            f"{path}: got voxels {list(voxels.shape)} and a grid {list(grid.shape)}, need "
            f"[n, {channels}] and 3 sizes (x, y, z)"
        )
    batch = _tensor(content[3], path)
    if batch.numel() != 1:
        raise DatasetError(f"{path}: got {batch.numel()} batch sizes, need one number")
    size_x, size_y, size_z = (int(size) for size in grid)
    features = voxels.to(torch.float16).to(torch.float32)
    if not torch.isfinite(features).all():
        raise DatasetError(f"{path}: got voxels that are not finite in fp16, need finite ones")
    return SparseTensor.from_coords(
        features,
        coords,
        (size_z + 1, size_y, size_x),
        int(batch),
    )


def _tensor(item: Any, path: Path) -> Tensor:
    try:
        array = item.array if isinstance(item, PickledArray) else np.asarray(item)
    except ValueError as error:  # rows of different lengths
        raise DatasetError(f"{path}: got what is no array ({error}), need numbers") from None
    if array.dtype.kind not in "iuf":
        raise DatasetError(f"{path}: got an array of {array.dtype}, need numbers")
    return torch.from_numpy(np.array(array, order="C"))  # unpickled arrays cannot be written


@torch.no_grad()
def _dump_example(prefix: str, x: SparseTensor, engine: nn.Module) -> None:
    """`.voxels`, `.coors`, `.output` of our integer engine, and `.info` (batch, x, y, z)."""
    size_z, size_y, size_x = x.spatial_shape
    info = torch.tensor([x.batch_size, size_x, size_y, size_z - 1], dtype=torch.int32)
    write_tensor_dump(f"{prefix}.voxels", x.features.to(torch.float16))
    write_tensor_dump(f"{prefix}.coors", x.coords_bzyx)
    write_tensor_dump(f"{prefix}.output", engine(x).to(torch.float16))
    write_tensor_dump(f"{prefix}.info", info)
