from collections.abc import Callable
from dataclasses import replace

import pytest

from voxelquant.detection.head_spec import (
    AssignerSpec,
    BevGrid,
    DecodeSpec,
    HeadSpec,
    LossSpec,
    NmsSpec,
    TaskSpec,
)

NUSCENES_TASKS = (
    ("car",),
    ("truck", "construction_vehicle"),
    ("bus", "trailer"),
    ("barrier",),
    ("motorcycle", "bicycle"),
    ("pedestrian", "traffic_cone"),
)


@pytest.fixture(scope="session")
def nuscenes_head() -> HeadSpec:
    """The published 0.075 m configuration."""
    return HeadSpec(
        tasks=tuple(TaskSpec(names) for names in NUSCENES_TASKS),
        bev_grid=BevGrid((-54, -54, -5, 54, 54, 3), (0.075, 0.075, 0.2), 8),
        assigner=AssignerSpec(gaussian_overlap=0.1, max_objs=500, min_radius=2),
        decode=DecodeSpec((-61.2, -61.2, -10, 61.2, 61.2, 10), 0.1, NmsSpec(1000, 83, 0.2)),
        loss=LossSpec(0.25, (1, 1, 1, 1, 1, 1, 0.2, 0.2, 1, 1)),
    )


@pytest.fixture(scope="session")
def waymo_head() -> HeadSpec:
    """The published Waymo configuration: one task of three classes, no velocity."""
    return HeadSpec(
        tasks=(TaskSpec(("VEHICLE", "PEDESTRIAN", "CYCLIST")),),
        bev_grid=BevGrid((-75.2, -75.2, -2, 75.2, 75.2, 4), (0.1, 0.1, 0.15), 8),
        assigner=AssignerSpec(gaussian_overlap=0.1, max_objs=500, min_radius=2),
        decode=DecodeSpec((-80, -80, -10, 80, 80, 10), 0.1, NmsSpec(4096, 500, 0.7)),
        loss=LossSpec(2, (1,) * 8),
        with_velocity=False,
    )


@pytest.fixture(scope="session")
def small_head(nuscenes_head: HeadSpec) -> HeadSpec:
    """The nuScenes tasks on a map of 20 rows and 24 columns of 0.6 m."""
    grid = BevGrid((-6, -3, -5, 8.4, 9, 3), (0.075, 0.075, 0.2), 8)
    return replace(nuscenes_head, bev_grid=grid)


@pytest.fixture(scope="session")
def with_assigner(small_head: HeadSpec) -> Callable[..., HeadSpec]:
    """The small head with some assigner fields changed."""
    return lambda **changes: replace(small_head, assigner=replace(small_head.assigner, **changes))
