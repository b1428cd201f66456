"""Voxelization against the sequential loop of the reference."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from voxelquant.errors import GeometryError
from voxelquant.sparse import VoxelGridSpec, voxelize, voxelize_batch

SMALL = VoxelGridSpec((-1.0, -2.0, -0.5, 1.0, 2.0, 0.5), (0.25, 0.5, 0.2), 3, 20)
NUSCENES = VoxelGridSpec((-54.0, -54.0, -5.0, 54.0, 54.0, 3.0), (0.075, 0.075, 0.2), 10, 160000)


def _sequential(points: Tensor, spec: VoxelGridSpec) -> tuple[list[tuple], list[list[int]]]:
    """Cells (z, y, x) in order of first occurrence and the indices of the points each one keeps."""
    low, size = (np.array(v, np.float32) for v in (spec.point_range[:3], spec.voxel_size))
    high = np.array(spec.point_range[3:], np.float32)
    grid = np.round((high - low) / size)
    row_of: dict[tuple, int] = {}
    kept: list[list[int]] = []
    for index, point in enumerate(points.numpy()[:, :3]):
        cell = np.floor((point - low) / size)
        if not (np.all(cell >= 0) and np.all(cell < grid)):
            continue
        key = tuple(int(c) for c in cell[::-1])
        if key not in row_of:
            if len(row_of) == spec.max_voxels:
                continue
            row_of[key] = len(row_of)
            kept.append([])
        if len(kept[row_of[key]]) < spec.max_points_per_voxel:
            kept[row_of[key]].append(index)
    return list(row_of), kept


def _assert_equals_sequential(points: Tensor, spec: VoxelGridSpec) -> None:
    cells, kept = _sequential(points, spec)
    voxels = voxelize(points, spec)
    assert [tuple(c) for c in voxels.coords_zyx.tolist()] == cells
    assert voxels.num_points.tolist() == [len(indices) for indices in kept]
    assert voxels.coords_zyx.dtype == voxels.num_points.dtype == torch.int32
    expected = torch.zeros(len(kept), spec.max_points_per_voxel, points.shape[1])
    for row, indices in enumerate(kept):
        expected[row, : len(indices)] = points[indices]
    assert torch.equal(voxels.points, expected)


@given(seed=st.integers(0, 2**31), count=st.integers(0, 300), max_voxels=st.integers(1, 400))
@settings(max_examples=60)
def test_equals_the_sequential_loop(seed: int, count: int, max_voxels: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    points = torch.randn(count, 5, generator=generator) * torch.tensor([0.8, 1.5, 0.4, 50, 0.3])
    spec = VoxelGridSpec(SMALL.point_range, SMALL.voxel_size, 3, max_voxels)
    _assert_equals_sequential(points, spec)


def test_border_coordinates_fall_where_float32_division_puts_them() -> None:
    """Every cell border of the 0.075 m grid and its float32 neighbours."""
    borders = (np.arange(1441) * 0.075 - 54).astype(np.float32)
    x = np.concatenate([np.nextafter(borders, -np.inf), borders, np.nextafter(borders, np.inf)])
    points = torch.zeros(len(x), 5)
    points[:, 0] = torch.from_numpy(x.astype(np.float32))
    _assert_equals_sequential(points, NUSCENES)
    _assert_equals_sequential(points[:, [1, 0, 2, 3, 4]].contiguous(), NUSCENES)
    # Here float64 and a reciprocal would choose other cells: the test can tell them apart.
    shifted = points[:, 0].numpy() - np.float32(-54)
    true_division = np.floor(shifted / np.float32(0.075))
    assert (np.floor(shifted.astype(np.float64) / 0.075) != true_division).sum() > 100
    assert (np.floor(shifted * (np.float32(1) / np.float32(0.075))) != true_division).any()


def test_upper_edge_is_outside_and_lower_edge_inside() -> None:
    corner = torch.tensor([[-1.0, -2.0, -0.5], [1.0, 0.0, 0.0], [0.0, 2.0, 0.0], [0.0, 0.0, 0.5]])
    assert voxelize(corner, SMALL).coords_zyx.tolist() == [[0, 0, 0]]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 3e38, -3e38])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_points_without_a_place_are_dropped(value: float, axis: int) -> None:
    points = torch.zeros(2, 4)
    points[0, axis] = value
    voxels = voxelize(points, SMALL)
    assert voxels.num_points.tolist() == [1]
    assert torch.isfinite(voxels.points).all()


def test_full_cloud_keeps_filling_voxels_that_exist() -> None:
    a, b = [0.0, 0.0, 0.0], [0.6, 0.0, 0.0]
    spec = VoxelGridSpec(SMALL.point_range, SMALL.voxel_size, 3, 1)
    voxels = voxelize(torch.tensor([a, b, a, b, a, a]), spec)
    assert voxels.num_points.tolist() == [3]
    assert len(voxels.coords_zyx) == 1


def test_empty_cloud_and_cloud_outside_give_no_voxel() -> None:
    for points in (torch.zeros(0, 5), torch.full((3, 5), 99.0)):
        voxels = voxelize(points, SMALL)
        assert voxels.points.shape == (0, 3, 5)
        assert voxels.mean_features().shape == (0, 5)


def test_batch_equals_its_clouds_one_by_one() -> None:
    clouds = [torch.randn(count, 5) for count in (200, 0, 77, 1)]
    spec = VoxelGridSpec(SMALL.point_range, SMALL.voxel_size, 3, 40)  # fewer than the first needs
    x = voxelize_batch(clouds, spec)
    assert x.batch_size == 4
    assert x.spatial_shape == (6, 8, 8)
    rows = 0
    for sample, cloud in enumerate(clouds):
        alone = voxelize(cloud, spec)
        mine = x.coords_bzyx[:, 0] == sample
        assert torch.equal(x.coords_bzyx[mine][:, 1:], alone.coords_zyx)
        assert torch.equal(x.features[mine], alone.mean_features())
        rows += len(alone.coords_zyx)
    assert rows == len(x.sites)
    assert (x.coords_bzyx[:, 0].diff() >= 0).all()


def test_mean_divides_by_the_points_that_were_kept() -> None:
    points = torch.tensor([[0.0, 0.0, 0.0, v] for v in (1.0, 2.0, 6.0, 99.0)])
    assert voxelize(points, SMALL).mean_features()[0, 3].item() == 3.0
    assert voxelize(points[:2], SMALL).mean_features()[0, 3].item() == 1.5  # not a third of 3


@pytest.mark.parametrize("points", [torch.zeros(4, 2), torch.zeros(4), torch.zeros(4, 5).double()])
def test_other_shapes_and_dtypes_are_refused(points: Tensor) -> None:
    with pytest.raises(GeometryError, match="need float32"):
        voxelize(points, SMALL)


def test_real_cloud_has_the_published_number_of_voxels(real_data) -> None:
    points = torch.from_numpy(np.load(real_data / "nuscenes_10sweeps_271156.npz")["points"])
    voxels = voxelize(points.float(), NUSCENES)
    assert len(voxels.coords_zyx) == 105086
    assert int(voxels.num_points.max()) == 10
