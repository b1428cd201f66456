from pathlib import Path

import numpy as np
import pytest
import torch

from voxelquant.data.points import read_point_file, remove_close
from voxelquant.errors import DatasetError


def test_reads_four_of_five_columns(tmp_path: Path) -> None:
    points = np.arange(15, dtype=np.float32).reshape(3, 5)
    points.tofile(tmp_path / "a.pcd.bin")
    read = read_point_file(tmp_path / "a.pcd.bin")
    assert read.dtype == torch.float32
    assert read.tolist() == points[:, :4].tolist()
    read[0, 0] = -1  # the caller may write to it


@pytest.mark.parametrize("size", [0, 1, 19, 21, 3 * 20 - 4])
def test_truncated_file_is_named(tmp_path: Path, size: int) -> None:
    path = tmp_path / "cut.pcd.bin"
    path.write_bytes(bytes(size))
    with pytest.raises(DatasetError, match=rf"cut\.pcd\.bin: got {size} bytes"):
        read_point_file(path)


@pytest.mark.parametrize(("column", "value"), [(0, np.nan), (2, np.inf), (3, np.nan)])
def test_values_that_are_not_finite_are_refused(tmp_path: Path, column: int, value: float) -> None:
    points = np.ones((5, 5), dtype=np.float32)
    points[1, 4] = np.nan  # the ring is not used
    points.tofile(tmp_path / "a.pcd.bin")
    assert len(read_point_file(tmp_path / "a.pcd.bin")) == 5
    points[[0, 3], column] = value
    points.tofile(tmp_path / "a.pcd.bin")
    with pytest.raises(DatasetError, match=r"a\.pcd\.bin: 2 of 5 points are not finite"):
        read_point_file(tmp_path / "a.pcd.bin")


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"gone\.pcd\.bin: cannot be read \(No such file"):
        read_point_file(tmp_path / "gone.pcd.bin")


def test_close_means_both_axes_and_strictly() -> None:
    points = torch.tensor(
        [[0.9, -0.9, 5, 0], [0.9, 1.0, 0, 0], [-1.0, 0.0, 0, 0], [0, 0, 0, 0], [7, 7, 0, 0]]
    )
    assert remove_close(points).tolist() == points[[1, 2, 4]].tolist()
