"""Write a quantized detector as a libspconv file and judge what was written."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from voxelquant.detection.config import load_config
from voxelquant.errors import ExportError
from voxelquant.export.defects import Defect, errors_of
from voxelquant.export.from_graph import DEFAULT_OUTPUT_BOUND, export_libspconv
from voxelquant.export.validate import check_file
from voxelquant.recipes.detect import Engine, open_detector
from voxelquant.recipes.frame_files import FrameChoice, choose_cloud
from voxelquant.recipes.progress import StageReporter


@dataclass(frozen=True)
class ExportRequest:
    """What the command line asks for."""

    config: str
    weights: Path
    out: Path
    choice: FrameChoice = field(default_factory=FrameChoice)
    output_bound: int = DEFAULT_OUTPUT_BOUND


def run_export(request: ExportRequest, reporter: StageReporter) -> list[Defect]:
    """Write the file; returns what `check` says of it, warnings alone.

    Raises:
        BadInputError: config, state or frame cannot be used.
        ExportError: the frame exceeds the bound, the file cannot be written, or is defective.
    """
    config = load_config(request.config)
    detector = open_detector(config, request.weights, Engine.FAKE)
    example = detector.read([choose_cloud(config, request.choice)])
    with reporter.stage("export", f"exporting on {request.choice}"):
        exported = export_libspconv(
            detector.network, request.out, example=example, output_bound=request.output_bound
        )
        defects = check_file(exported.path)  # what lies on disk, not what was meant to
    require_no_errors(request.out, defects)
    return defects


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
