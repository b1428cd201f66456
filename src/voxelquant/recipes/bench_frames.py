"""Voxelized frames to measure on: read from a file or a cloud, cut, grown, put in batches.

Cost follows the number of voxels and how many neighbours each has. Frames are therefore cut by
sector around the sensor, which keeps the neighbourhoods, and grown by a mirrored copy of
themselves, which adds surfaces rather than scattered cells.
"""

from __future__ import annotations

import csv
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from voxelquant.detection.detector import CenterPoint
from voxelquant.errors import BadInputError, DatasetError
from voxelquant.numerics import round_to_float16
from voxelquant.recipes.frame_files import read_npz_arrays
from voxelquant.sparse import SparseTensor, Triple

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


@dataclass(frozen=True)
class BenchFrame:
    """Voxels of one frame or a batch of frames.

    Every engine rounds its input to fp16, so features hold fp16 values from the start.

    Attributes:
        name: where they come from, in words.
        features: `[n, c]` float32 holding fp16 values.
        coords_bzyx: `[n, 4]` int32.
        spatial_shape: grid (z, y, x).
        batch_size: frames.
    """

    name: str
    features: Tensor
    coords_bzyx: Tensor
    spatial_shape: Triple
    batch_size: int = 1

    def __len__(self) -> int:
        return self.features.shape[0]

    def to(self, device: torch.device | str) -> BenchFrame:
        """The same voxels on a device."""
        features, coords = self.features.to(device), self.coords_bzyx.to(device)
        return replace(self, features=features, coords_bzyx=coords)

    def sparse(self) -> SparseTensor:
        """Input of a backbone, with new sites.

        Raises:
            GeometryError: coordinates outside of the grid, or repeated.
        """
        return SparseTensor.from_coords(
            self.features, self.coords_bzyx, self.spatial_shape, self.batch_size
        )


def read_voxel_frame(path: Path, channels: int, spatial_shape: Triple) -> BenchFrame:
    """Frame of an `.npz` with `features` `[n, channels]` and `coords_bzyx` `[n, 4]`.

    Raises:
        DatasetError: missing, damaged, or of another layout.
        GeometryError: coordinates outside of the grid, or repeated.
    """
    shapes = {"features": f"[n, {channels}]", "coords_bzyx": "[n, 4]"}
    features, coords = read_npz_arrays(path, shapes)
    fits = features.ndim == coords.ndim == 2 and len(features) == len(coords) > 0
    fits = fits and features.shape[1] == channels and coords.shape[1] == 4
    if not fits or features.dtype.kind != "f" or coords.dtype.kind not in "iu":
        raise DatasetError(
            f"{path}: got features {features.shape} of {features.dtype} and coords_bzyx "
            f"{coords.shape} of {coords.dtype}, need floats [n, {channels}] and integers [n, 4]"
        )
    if not bool(np.isfinite(features).all()):
        raise DatasetError(f"{path}: got NaN or infinite features, need finite ones")
    batch_size = int(coords[:, 0].max()) + 1
    if batch_size != 1:
        raise DatasetError(f"{path}: got a batch of {batch_size} frames, need one")
    frame = BenchFrame(
        path.name,
        round_to_float16(torch.from_numpy(features.astype(np.float32))),
        torch.from_numpy(coords.astype(np.int32)),
        spatial_shape,
    )
    frame.sparse()  # checks the coordinates
    return frame


def voxelize_frame(detector: CenterPoint, points: Tensor, name: str) -> BenchFrame:
    """Frame of a cloud `[p, c]`, read as the detector reads it.

    Raises:
        DatasetError: the cloud has other columns, or no point inside the range.
    """
    x = detector.read_clouds([points])
    return BenchFrame(name, round_to_float16(x.features), x.coords_bzyx, x.spatial_shape)


def resize_frame(frame: BenchFrame, count: int) -> BenchFrame:
    """The frame with `count` voxels: cut to a sector, or grown by mirrored copies of itself.

    Raises:
        BadInputError: its mirrored copies together have fewer voxels.
    """
    mirrors = _mirrors(frame.spatial_shape)
    features, coords = frame.features, frame.coords_bzyx
    for mirror in mirrors[1:]:
        if len(coords) >= count:
            break
        moved = mirror(frame.coords_bzyx)
        missing = count - len(coords)
        added = _is_new(coords, moved, frame.spatial_shape).nonzero().squeeze(1)
        added = added[_by_azimuth(moved[added], frame.spatial_shape)][:missing]
        features = torch.cat([features, frame.features[added]])
        coords = torch.cat([coords, moved[added]])
    if len(coords) < count:
        raise BadInputError(
            f"got a frame of {len(frame)} voxels to grow to {count}, but its mirrored copies have "
            f"{len(coords)} together; ask for fewer"
        )
    if len(coords) > count:
        # Rows keep their order: it decides how well neighbours lie together in memory.
        rows = _by_azimuth(coords, frame.spatial_shape)[:count].sort().values
        features, coords = features[rows], coords[rows]
    return replace(frame, features=features, coords_bzyx=coords)


def batch_of(frame: BenchFrame, batch_size: int) -> BenchFrame:
    """A batch of a frame and its mirrored copies: other sites, the same neighbourhoods."""
    mirrors = _mirrors(frame.spatial_shape)
    parts = []
    for index in range(batch_size):
        coords = mirrors[index % len(mirrors)](frame.coords_bzyx).clone()
        coords[:, 0] = index
        parts.append(coords)
    features = frame.features.repeat(batch_size, 1)
    return replace(frame, features=features, coords_bzyx=torch.cat(parts), batch_size=batch_size)


def read_voxel_counts(path: Path) -> dict[str, int]:
    """Named quantiles of column `num_voxels` of a CSV file, one row a frame.

    Raises:
        DatasetError: the file or the column is missing, or a value is no positive number.
    """
    try:
        with path.open(newline="", encoding="utf-8") as stream:
            rows = csv.DictReader(stream)
            if "num_voxels" not in (rows.fieldnames or ()):
                raise DatasetError(f"{path}: got no column num_voxels, need one")
            counts = [int(row["num_voxels"]) for row in rows]
    except OSError as error:
        raise DatasetError(f"{path}: cannot be read ({error.strerror})") from None
    except (TypeError, ValueError) as error:
        raise DatasetError(f"{path}: got a damaged column num_voxels ({error})") from None
    if not counts or min(counts) < 1:
        raise DatasetError(f"{path}: got {len(counts)} counts, need some, all positive")
    values = np.quantile(counts, QUANTILES).round().astype(int).tolist()
    names = (f"p{round(100 * q)}" for q in QUANTILES)
    return {
        "smallest": min(counts),
        **dict(zip(names, values, strict=True)),
        "largest": max(counts),
    }


def _mirrors(spatial_shape: Triple) -> list[Callable[[Tensor], Tensor]]:
    """Symmetries of the ground plane, the identity first: eight of a square, else four."""
    _, size_y, size_x = spatial_shape

    def mirror(flip_y: bool, flip_x: bool, swap: bool, coords: Tensor) -> Tensor:
        b, z, y, x = coords.unbind(1)
        y, x = (size_y - 1 - y if flip_y else y), (size_x - 1 - x if flip_x else x)
        return torch.stack([b, z, x, y] if swap else [b, z, y, x], 1)

    return [
        partial(mirror, flip_y, flip_x, swap)
        for swap in ((False, True) if size_y == size_x else (False,))
        for flip_y in (False, True)
        for flip_x in (False, True)
    ]


def _by_azimuth(coords: Tensor, spatial_shape: Triple) -> Tensor:
    """Rows in the order of the direction in which they lie."""
    _, size_y, size_x = spatial_shape
    y, x = coords[:, 2] - size_y / 2, coords[:, 3] - size_x / 2
    return torch.atan2(y, x).argsort(stable=True)


def _is_new(coords: Tensor, others: Tensor, spatial_shape: Triple) -> Tensor:
    """Which of the other cells are not among the first, both of one sample."""
    _, size_y, size_x = spatial_shape

    def keys(cells: Tensor) -> Tensor:
        _, z, y, x = cells.long().unbind(1)
        return (z * size_y + y) * size_x + x

    return ~torch.isin(keys(others), keys(coords))
