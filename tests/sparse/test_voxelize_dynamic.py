"""Voxelization without limits against a dict of lists."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from voxelquant.errors import GeometryError
from voxelquant.sparse import SparseTensor, VoxelGrid, voxelize_batch_dynamic

SMALL = VoxelGrid((-1.0, -2.0, -0.5, 1.0, 2.0, 0.5), (0.25, 0.5, 0.25))  # 8 x 8 x 4 cells
NUSCENES = VoxelGrid((-54.0, -54.0, -5.0, 54.0, 54.0, 3.0), (0.075, 0.075, 0.2))


def by_hand(points: Tensor, grid: VoxelGrid) -> dict[tuple[int, int, int], list[np.ndarray]]:
    """Points of each cell (z, y, x); cells of x or y that the grid does not have are left out."""
    low, high, size = (
        np.array(v, np.float32)
        for v in (grid.point_range[:3], grid.point_range[3:], grid.voxel_size)
    )
    cells_xy = np.round((high - low) / size)[:2]
    found: dict[tuple[int, int, int], list[np.ndarray]] = {}
    for point in points.numpy():
        if not all(lo <= p <= hi for lo, p, hi in zip(low, point, high, strict=False)):
            continue
        x, y, z = (int(c) for c in (point[:3] - low) / size)
        if x < cells_xy[0] and y < cells_xy[1]:
            found.setdefault((z, y, x), []).append(point)
    return found


def assert_equals_by_hand(x: SparseTensor, sample: int, points: Tensor, grid: VoxelGrid) -> None:
    expected = by_hand(points, grid)
    mine = x.coords_bzyx[:, 0] == sample
    assert [tuple(c) for c in x.coords_bzyx[mine][:, 1:].tolist()] == sorted(expected)
    for features, cell in zip(x.features[mine], sorted(expected), strict=True):
        mean = np.mean(np.array(expected[cell], np.float64), axis=0)
        torch.testing.assert_close(features.double(), torch.from_numpy(mean), rtol=1e-5, atol=1e-5)


@settings(max_examples=40)
@given(seed=st.integers(0, 2**31), counts=st.lists(st.integers(0, 300), min_size=1, max_size=3))
def test_equals_a_dict_of_lists(seed: int, counts: list[int]) -> None:
    generator = torch.Generator().manual_seed(seed)
    scale = torch.tensor([0.8, 1.5, 0.4, 50, 0.3])
    clouds = [torch.randn(count, 5, generator=generator) * scale for count in counts]
    x = voxelize_batch_dynamic(clouds, SMALL)
    assert x.batch_size == len(counts)
    assert x.spatial_shape == (5, 8, 8)
    assert x.coords_bzyx.dtype == torch.int32
    for sample, cloud in enumerate(clouds):
        assert_equals_by_hand(x, sample, cloud, SMALL)
    assert (x.coords_bzyx[:, 0].diff() >= 0).all()


def test_every_point_of_a_voxel_counts_and_every_voxel() -> None:
    crowd = torch.zeros(1000, 4)
    crowd[:, 3] = torch.arange(1000)
    x = voxelize_batch_dynamic([crowd], SMALL)
    assert x.features[0, 3].item() == 499.5
    spread = torch.rand(200_000, 3, generator=torch.Generator().manual_seed(0)) * 100 - 50
    spread[:, 2] = 0
    assert len(voxelize_batch_dynamic([spread], NUSCENES).sites) > 160_000


def test_upper_edge_along_z_has_a_cell_of_its_own() -> None:
    points = torch.tensor(
        [[-1.0, -2.0, -0.5], [0.0, 0.0, 0.5], [0.0, 0.0, 0.51], [0.0, 0.0, -0.51]]
    )
    x = voxelize_batch_dynamic([points], SMALL)
    assert x.coords_bzyx.tolist() == [[0, 0, 0, 0], [0, 4, 4, 4]]


def test_upper_edges_along_x_and_y_are_dropped() -> None:
    edge = torch.tensor([[1.0, 0.0, 0.0], [0.0, 2.0, 0.0], [1.0, 2.0, 0.5]])
    assert len(voxelize_batch_dynamic([edge], SMALL).sites) == 0
    # Float32 puts the last value below 54 m into the cell behind the edge as well.
    near = torch.zeros(2, 3)
    near[:, 0] = torch.tensor([54.0, 54.0]).nextafter(torch.tensor([math.inf, -math.inf]))
    assert len(voxelize_batch_dynamic([near], NUSCENES).sites) == 0
    inside = torch.tensor([[53.99, 53.99, 2.9]])
    assert voxelize_batch_dynamic([inside], NUSCENES).coords_bzyx.tolist() == [[0, 39, 1439, 1439]]


def test_coordinates_fit_the_grid_of_the_network() -> None:
    """Also those of points on all edges: nothing beyond what `SparseTensor.from_coords` takes."""
    steps = [torch.linspace(low, high, 9) for low, high in ((-54, 54), (-54, 54), (-5, 3))]
    points = torch.cartesian_prod(*steps)
    x = voxelize_batch_dynamic([points], NUSCENES)
    assert len(x.sites) == 8 * 8 * 9
    SparseTensor.from_coords(x.features, x.coords_bzyx, x.spatial_shape, x.batch_size)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 3e38])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_points_without_a_place_are_dropped(value: float, axis: int) -> None:
    points = torch.zeros(2, 4)
    points[0, axis] = value
    x = voxelize_batch_dynamic([points], SMALL)
    assert len(x.sites) == 1
    assert x.features.isfinite().all()


def test_the_same_bits_again_and_voxels_in_any_order_of_points() -> None:
    points = torch.randn(5000, 5, generator=torch.Generator().manual_seed(3))
    once, again = (voxelize_batch_dynamic([points], SMALL) for _ in range(2))
    assert torch.equal(once.features, again.features)
    turned = voxelize_batch_dynamic([points.flip(0)], SMALL)
    assert torch.equal(once.coords_bzyx, turned.coords_bzyx)
    torch.testing.assert_close(once.features, turned.features, rtol=1e-4, atol=1e-5)


def test_empty_clouds_give_no_voxel() -> None:
    x = voxelize_batch_dynamic([torch.zeros(0, 5), torch.full((3, 5), 99.0)], SMALL)
    assert x.features.shape == (0, 5)
    assert x.batch_size == 2


@pytest.mark.parametrize("points", [torch.zeros(4, 2), torch.zeros(4), torch.zeros(4, 5).double()])
def test_other_shapes_and_dtypes_are_refused(points: Tensor) -> None:
    with pytest.raises(GeometryError, match="need float32"):
        voxelize_batch_dynamic([points], SMALL)
