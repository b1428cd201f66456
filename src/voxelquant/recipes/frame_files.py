"""One frame for export and parity: from a file, from a dataset, or made by the synthetic world."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from voxelquant.data.points import read_point_file
from voxelquant.data.synthetic import generate_frames
from voxelquant.detection.config import DetectorConfig
from voxelquant.errors import DatasetError
from voxelquant.recipes.datasets import open_dataset, require_lidar_reader

# Of the world; neither training, nor calibration, nor validation of the shipped weights uses it.
EXAMPLE_SEED = 4


@dataclass(frozen=True)
class FrameChoice:
    """Which frame: a file, the first of a dataset's split, or, with neither, a synthetic one."""

    frame: Path | None = None
    data: Path | None = None
    split: str | None = None
    version: str | None = None

    def __str__(self) -> str:
        if self.frame is not None:
            return str(self.frame)
        return f"first frame of {self.data}" if self.data else "a frame of the synthetic world"


def choose_cloud(config: DetectorConfig, choice: FrameChoice) -> Tensor:
    """Points `[p, c]` of the chosen frame, c as the detector was trained.

    Raises:
        DatasetError: the file or dataset is missing, damaged or of another layout.
    """
    if choice.frame is not None:
        if choice.data is not None:
            raise DatasetError("got both --frame and --data, need one of them")
        return read_frame_file(choice.frame, config.n_point_columns)
    if choice.data is not None:
        return open_dataset(config, choice.data, choice.split, choice.version)[0].points
    require_lidar_reader(config)
    return generate_frames(EXAMPLE_SEED, [0], key_frames=1)[0].points


def read_frame_file(path: Path, columns: int) -> Tensor:
    """Points `[p, columns]` float32: x_m, y_m, z_m, intensity, dt_s.

    Args:
        path: `.npz` with an array `points`; `.pcd.bin` of nuScenes (one sweep, its fifth column is
            the ring, so every dt is 0); or `.bin`, raw float32 records of `columns` values.
        columns: what the detector reads of a point.

    Raises:
        DatasetError: missing, damaged, empty, or of another layout.
    """
    if path.name.endswith(".pcd.bin"):
        points = read_point_file(path)
        points = torch.cat([points, points.new_zeros((len(points), 1))], 1)
    elif path.suffix in (".npz", ".bin"):
        read = _read_npz if path.suffix == ".npz" else _read_raw
        points = torch.from_numpy(read(path, columns))
    else:
        raise DatasetError(f"{path}: got a frame of unknown kind, need .npz, .pcd.bin or .bin")
    if points.ndim != 2 or points.shape[1] != columns or len(points) == 0:
        raise DatasetError(
            f"{path}: got points of shape {list(points.shape)}, need [p, {columns}] with p > 0"
        )
    if not bool(points.isfinite().all()):
        raise DatasetError(f"{path}: got points that are NaN or infinite; drop them")
    return points


def _read_npz(path: Path, columns: int) -> NDArray[np.float32]:
    (points,) = read_npz_arrays(path, {"points": f"[p, {columns}]"})
    if points.dtype.kind not in "fiu":
        raise DatasetError(f"{path}: got points of {points.dtype}, need float32")
    return np.ascontiguousarray(points, dtype=np.float32)


def read_npz_arrays(path: Path, shapes: Mapping[str, str]) -> list[NDArray[Any]]:
    """Arrays of an `.npz`, by name.

    Args:
        path: the file.
        shapes: of each array wanted, its shape in words.

    Raises:
        DatasetError: missing or damaged, or without one of the arrays.
    """
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as stored:
            absent = next((name for name in shapes if name not in stored.files), None)
            if absent is not None:
                raise DatasetError(f"{path}: got no array `{absent}`, need one of {shapes[absent]}")
            return [stored[name] for name in shapes]
    except OSError as error:
        raise DatasetError(f"{path}: cannot be read ({error.strerror or error})") from None
    except (AttributeError, TypeError):  # a bare array under this name is no archive
        names = " and ".join(f"`{name}`" for name in shapes)
        raise DatasetError(f"{path}: got an .npy, need an .npz with an array {names}") from None
    except (ValueError, EOFError, zipfile.BadZipFile) as error:
        raise DatasetError(f"{path}: not a whole .npz of plain arrays ({error})") from None


def _read_raw(path: Path, columns: int) -> NDArray[np.float32]:
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise DatasetError(f"{path}: cannot be read ({error.strerror})") from None
    if not raw or len(raw) % (4 * columns):
        raise DatasetError(
            f"{path}: got {len(raw)} bytes, need a positive multiple of {4 * columns} "
            f"({columns} float32 a point)"
        )
    return np.frombuffer(raw, dtype="<f4").reshape(-1, columns).astype(np.float32)
