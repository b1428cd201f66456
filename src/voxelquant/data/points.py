"""LiDAR files: raw float32 records, one revolution of the sensor a file."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from voxelquant.errors import DatasetError

POINT_BYTES = 20  # x, y, z, intensity, ring, all float32
CLOSE_M = 1.0  # the vehicle itself reflects within this distance


def read_point_file(path: Path) -> Tensor:
    """Points of one revolution in the sensor's frame; the ring column is dropped.

    Args:
        path: nuScenes `.pcd.bin`.

    Returns:
        [p, 4] float32 x_m, y_m, z_m, intensity 0..255.

    Raises:
        DatasetError: The file is missing, empty, cut off or holds values that are not finite.
    """
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise DatasetError(
            f"{path}: cannot be read ({error.strerror}); the tables name this point file, "
            "so complete the dataset's samples and sweeps folders"
        ) from error
    if not raw or len(raw) % POINT_BYTES:
        raise DatasetError(
            f"{path}: got {len(raw)} bytes, need a positive multiple of {POINT_BYTES} (five "
            "float32 a point); the file is truncated, fetch it again"
        )
    records = np.frombuffer(raw, dtype="<f4").reshape(-1, 5)
    points = torch.from_numpy(records[:, :4].astype(np.float32))
    broken = int((~points.isfinite()).any(dim=1).sum())
    if broken:
        raise DatasetError(
            f"{path}: {broken} of {len(points)} points are not finite; the file is damaged or no "
            "nuScenes point file, fetch it again"
        )
    return points


def remove_close(points: Tensor, close_m: float = CLOSE_M) -> Tensor:
    """Drop points near both axes of the sensor: |x| and |y| below `close_m`.

    Example:
        >>> len(remove_close(torch.tensor([[0.5, 0.5, 0.0], [0.5, 3.0, 0.0]])))
        1
    """
    close = (points[:, 0].abs() < close_m) & (points[:, 1].abs() < close_m)
    return points[~close]
