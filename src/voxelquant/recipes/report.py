"""A run keeps what its page is drawn from, so that the page can be drawn again without the run."""

import json
import os
import zipfile
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from voxelquant.atomic_file import atomic_path
from voxelquant.errors import BadInputError
from voxelquant.recipes.artifacts import write_text_atomic
from voxelquant.report.html import render_report
from voxelquant.report.model import (
    DatasetSummary,
    EngineScore,
    Execution,
    FramePicture,
    LayerParity,
    RunReport,
    TensorHistogram,
)

DATA_NAME = "report_data.npz"
PAGE_NAME = "report.html"
FORMAT = 1

_ARRAY_KEY = "$array"


def write_report(folder: str | os.PathLike[str]) -> Path:
    """Draw the page of the finished run in this folder; returns the HTML file.

    Raises:
        BadInputError: the folder holds no finished run of this version of voxelquant.
        MissingDependencyError: there are pictures to draw and matplotlib is not installed.
    """
    report = load_report_data(folder)
    return write_text_atomic(Path(folder) / PAGE_NAME, render_report(report))


def save_report_data(report: RunReport, folder: str | os.PathLike[str]) -> Path:
    """Keep what the page is drawn from beside the other results of the run."""
    arrays: dict[str, NDArray[Any]] = {}
    text = json.dumps({"format": FORMAT, "report": _encode(report, arrays)})
    arrays["json"] = np.frombuffer(text.encode(), dtype=np.uint8)
    with atomic_path(Path(folder) / DATA_NAME) as temporary:
        np.savez_compressed(temporary, **arrays)
    return Path(folder) / DATA_NAME


def load_report_data(folder: str | os.PathLike[str]) -> RunReport:
    """The inverse of `save_report_data`; nothing in the file is executed.

    Raises:
        BadInputError: no such file, or not one that this version wrote.
    """
    path = Path(folder) / DATA_NAME
    if not path.is_file():
        raise BadInputError(f"{folder}: got no {DATA_NAME}, need the folder of a finished run")
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in stored.files}
        content = json.loads(
            arrays["json"].tobytes(),
            object_hook=lambda item: arrays[item[_ARRAY_KEY]] if _ARRAY_KEY in item else item,
        )
        if content["format"] != FORMAT:
            raise BadInputError(
                f"{path}: got format {content['format']}, need {FORMAT}; repeat the run"
            )
        return _report_from(content["report"])
    except (zipfile.BadZipFile, OSError, KeyError, TypeError, ValueError) as error:
        raise BadInputError(f"{path}: damaged, or of another version; repeat the run") from error


def _encode(value: Any, arrays: dict[str, NDArray[Any]]) -> Any:
    if isinstance(value, np.ndarray):
        name = f"array_{len(arrays)}"
        arrays[name] = value
        return {_ARRAY_KEY: name}
    if is_dataclass(value) and not isinstance(value, type):
        return {f.name: _encode(getattr(value, f.name), arrays) for f in fields(value)}
    if isinstance(value, tuple | list):
        return [_encode(item, arrays) for item in value]
    if isinstance(value, dict):
        return {str(key): _encode(item, arrays) for key, item in value.items()}
    return value


def _report_from(content: dict[str, Any]) -> RunReport:
    return RunReport(
        **{
            **content,
            "dataset": DatasetSummary(**content["dataset"]),
            "scores": tuple(
                EngineScore(**{**score, "execution": Execution(score["execution"])})
                for score in content["scores"]
            ),
            "pictures": tuple(FramePicture(**item) for item in content["pictures"]),
            "histograms": tuple(TensorHistogram(**item) for item in content["histograms"]),
            "layers": tuple(LayerParity(**item) for item in content["layers"]),
        }
    )
