from dataclasses import replace

import pytest

from voxelquant.detection.head_spec import BevGrid, HeadSpec, LossSpec, TaskSpec
from voxelquant.errors import ConfigError


def test_labels_count_through_the_tasks(nuscenes_head: HeadSpec) -> None:
    assert nuscenes_head.label_offsets == (0, 1, 3, 5, 6, 8)
    assert nuscenes_head.class_names[5] == "barrier"
    assert nuscenes_head.class_names[9] == "traffic_cone"


@pytest.mark.parametrize(
    ("point_range", "voxel_m", "shape_hw"),
    [
        ((-54, -54, -5, 54, 54, 3), 0.075, (180, 180)),
        ((-51.2, -51.2, -5, 51.2, 51.2, 3), 0.1, (128, 128)),
        ((-75.2, -75.2, -2, 75.2, 75.2, 4), 0.1, (188, 188)),
        ((0, -12, -2, 24, 12, 4), 0.1, (30, 30)),
        ((0, -12, -2, 48.7, 12, 4), 0.1, (30, 60)),  # 487 columns of voxels: 7 are cut off
    ],
)
def test_the_map_has_whole_cells(
    point_range: tuple[float, ...], voxel_m: float, shape_hw: tuple[int, int]
) -> None:
    assert BevGrid(point_range, (voxel_m, voxel_m, 0.2), 8).shape_hw == shape_hw


def test_code_size(nuscenes_head: HeadSpec, waymo_head: HeadSpec) -> None:
    assert nuscenes_head.n_codes == 10
    assert [name for name, _ in nuscenes_head.regression_heads] == [
        "reg", "height", "dim", "vel", "rot",
    ]  # fmt: skip
    assert waymo_head.n_codes == 8
    for head in (nuscenes_head, waymo_head):
        assert sum(channels for _, channels in head.regression_heads) == head.n_codes


def test_contradictions_are_refused(nuscenes_head: HeadSpec, waymo_head: HeadSpec) -> None:
    with pytest.raises(ConfigError, match="got 8 values, need 10"):
        replace(nuscenes_head, loss=LossSpec(0.25, (1,) * 8))
    with pytest.raises(ConfigError, match="got 10 values, need 8"):
        replace(waymo_head, loss=LossSpec(0.25, (1,) * 10))
    with pytest.raises(ConfigError, match="one task only"):
        replace(nuscenes_head, tasks=(TaskSpec(("car",)), TaskSpec(("car",))))
    decode = replace(nuscenes_head.decode, circular_nms=True, min_radius=(4.0, 12.0))
    with pytest.raises(ConfigError, match="got 2 values of min_radius"):
        replace(nuscenes_head, decode=decode)
    with pytest.raises(ConfigError, match="remove the empty task"):
        TaskSpec(())
    with pytest.raises(ConfigError, match="voxel_size"):
        BevGrid((0, 0, 0, 1, 1, 1), (0.1, 0.1, 0.0), 8)
    with pytest.raises(ConfigError, match="point_range"):
        BevGrid((0, 2, 0, 1, 1, 1), (0.1, 0.1, 0.1), 8)
