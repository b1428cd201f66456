"""Write a quantized detector for other engines: a libspconv file, or NVIDIA's checkpoint."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from voxelquant.detection.config import DetectorConfig, load_config
from voxelquant.detection.nvidia_export import write_nvidia_checkpoint
from voxelquant.errors import ExportError
from voxelquant.export.defects import Defect, errors_of
from voxelquant.export.from_graph import DEFAULT_OUTPUT_BOUND, export_libspconv
from voxelquant.export.validate import check_file
from voxelquant.recipes.detect import Engine, open_detector
from voxelquant.recipes.frame_files import FrameChoice, choose_cloud
from voxelquant.recipes.progress import StageReporter
from voxelquant.recipes.quant_states import load_quant_state


@dataclass(frozen=True)
class ExportRequest:
    """What the command line asks for."""

    config: str
    weights: Path
    out: Path
    choice: FrameChoice = field(default_factory=FrameChoice)
    output_bound: int = DEFAULT_OUTPUT_BOUND


def run_export(request: ExportRequest, reporter: StageReporter) -> list[Defect]:
    """Write the file: NVIDIA's checkpoint under a name in `.pth`, else a libspconv file.

    Returns:
        What `check` says of a libspconv file, warnings alone.

    Raises:
        BadInputError: config, state or frame cannot be used.
        ExportError: the frame exceeds the bound, the file cannot be written, or is defective.
    """
    config = load_config(request.config)
    if request.out.suffix == ".pth":
        _export_checkpoint(request, config, reporter)
        return []
    detector = open_detector(config, request.weights, Engine.FAKE)
    reporter.say_all(detector.notes)
    example = detector.read([choose_cloud(config, request.choice)])
    with reporter.stage("export", f"exporting on {request.choice}"):
        exported = export_libspconv(
            detector.network, request.out, example=example, output_bound=request.output_bound
        )
        defects = check_file(exported.path)  # what lies on disk, not what was meant to
    require_no_errors(request.out, defects)
    return defects


def _export_checkpoint(
    request: ExportRequest, config: DetectorConfig, reporter: StageReporter
) -> None:
    if request.choice != FrameChoice():
        raise ExportError(
            f"{request.out}: got a frame, but a checkpoint is written without one; leave it away, "
            "or give --out a name in .onnx"
        )
    loaded = load_quant_state(request.weights, config)
    reporter.say_all(loaded.notes)
    with reporter.stage("export", "writing NVIDIA's checkpoint"):
        lost = write_nvidia_checkpoint(loaded.state, request.out, config)
    reporter.say_all(lost)


def check_exported(path: Path) -> list[Defect]:
    """Every defect of a file, errors first.

    Raises:
        ExportError: the file is missing or is not an ONNX protobuf.
    """
    return check_file(path)


def require_no_errors(path: Path, defects: list[Defect]) -> None:
    """Refuse a file whose errors have been listed.

    Raises:
        ExportError: there are errors.
    """
    found = errors_of(defects)
    if found:
        raise ExportError(f"{path}: {len(found)} errors, the first: {found[0]}")
