"""Detectors whose reader has no limits, and those that read painted and virtual points too."""

import pytest
import torch

from voxelquant.detection.config import DetectorConfig, Reader, load_config
from voxelquant.detection.config_validation import validate_config
from voxelquant.detection.decode import decode_predictions
from voxelquant.detection.detector import CenterPoint
from voxelquant.detection.targets import assign_targets
from voxelquant.detection.virtual_points import N_FEATURES, lift_points, merge_kinds
from voxelquant.errors import ConfigError, DatasetError


def tiny(reader: str, **changes: object) -> DetectorConfig:
    """The bundled small detector on a quarter of its range, with another reader."""
    values = load_config("centerpoint_tiny").model_dump()
    values["point_range"] = [-12.8, -12.8, -5.0, 12.8, 12.8, 3.0]
    values.update(reader=reader, max_points_per_voxel=None, max_voxels=None)
    if reader == "dynamic_virtual":
        values["backbone"]["in_channels"] = N_FEATURES
    return validate_config({**values, **changes}, "tiny.yaml")


def cloud(count: int, columns: int, seed: int = 0) -> torch.Tensor:
    points = torch.rand(count, columns, generator=torch.Generator().manual_seed(seed))
    points[:, :3] = points[:, :3] * torch.tensor([20, 20, 4]) - torch.tensor([10, 10, 3])
    return points


def test_a_dynamic_detector_runs_and_its_targets_need_no_voxel_generator() -> None:
    config = tiny("dynamic")
    model = CenterPoint(config).eval()
    x = model.read_clouds([cloud(3000, 5), cloud(50, 5, 1)])
    assert x.features.shape[1] == 5
    with torch.no_grad():
        found = decode_predictions(model(x), config.head_spec)
    assert len(found) == 2
    assert config.head_spec.bev_grid.shape_hw == (32, 32)
    box = torch.tensor([[1.0, 2.0, 0, 2, 4, 1.5, 0, 0, 0]])
    targets = assign_targets(box, torch.tensor([0]), config.head_spec)
    assert targets[0].hm.shape[-2:] == config.head_spec.bev_grid.shape_hw
    assert int(targets[0].mask.sum()) == 1


def test_the_dynamic_mean_takes_points_that_the_limits_drop() -> None:
    points = torch.zeros(12, 5)
    points[:, 3] = torch.arange(12.0)
    limited = CenterPoint(load_config("centerpoint_tiny")).read_clouds([points])
    assert limited.features[0, 3].item() == 4.5  # ten points
    assert CenterPoint(tiny("dynamic")).read_clouds([points]).features[0, 3].item() == 5.5


@pytest.mark.parametrize(
    ("reader", "changes", "message"),
    [
        ("dynamic", {"max_voxels": [10, 10]}, "reader dynamic has no limits; remove max_voxels"),
        ("dynamic", {"max_points_per_voxel": 5}, "remove max_points_per_voxel"),
        ("mean", {}, "reader mean needs max_points_per_voxel"),
        ("mean", {"max_points_per_voxel": 5}, "reader mean needs max_voxels"),
        ("dynamic_virtual", {"backbone": {"in_channels": 5}}, "got 5 backbone.in_channels"),
        ("lazy", {}, "reader: "),
    ],
)
def test_reader_and_limits_must_fit(reader: str, changes: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        tiny(reader, **changes)
    assert "\n" not in str(caught.value)


def kinds(*values: int) -> torch.Tensor:
    """Points at one place with columns that tell them apart, of the given kinds."""
    points = torch.zeros(len(values), 16)
    points[:, 3:14] = torch.arange(11.0) + 10 * torch.arange(1.0, len(values) + 1)[:, None]
    points[:, 14] = torch.tensor(values)
    points[:, 15] = torch.arange(len(values)) / 8
    return points


def features_of(points: torch.Tensor) -> torch.Tensor:
    x = CenterPoint(tiny("dynamic_virtual")).read_clouds([points])
    assert x.features.shape == (1, N_FEATURES)
    return x.features[0]


def test_each_kind_has_the_mean_of_its_own_points() -> None:
    points = kinds(1, -1, 0, 1, 0, -1, -1)
    lidar, other = points[[0, 3]], points[[1, 2, 4, 5, 6]]
    expected = torch.cat(
        (
            lidar[:, [0, 1, 2, 3, 15]].mean(0),
            other[:, :14].mean(0),
            other[:, 15].mean(0, keepdim=True),
            torch.tensor([2 / 5]),  # painted, of the points that are not LiDAR
        )
    )
    torch.testing.assert_close(features_of(points), expected)


def test_a_kind_without_points_is_zero() -> None:
    points = kinds(1, 1)
    alone = features_of(points)
    assert alone[:5].tolist() == [0, 0, 0, 15, 1 / 16]
    assert not alone[5:].any()
    virtual = features_of(kinds(-1, -1))
    assert not virtual[:5].any()
    assert virtual[-1].item() == 0
    assert features_of(kinds(0))[-1].item() == 1


def test_lifting_and_merging_one_point_changes_nothing() -> None:
    points = kinds(1, 0, -1)
    merged = merge_kinds(lift_points(points))
    assert merged.shape == (3, N_FEATURES)
    assert torch.equal(merged[0, :5], points[0, [0, 1, 2, 3, 15]])
    assert torch.equal(merged[1, 5:19], points[1, :14])
    assert torch.equal(merged[2, 5:19], points[2, :14])


def test_a_virtual_detector_runs_on_given_points() -> None:
    config = tiny("dynamic_virtual")
    assert config.reader is Reader.DYNAMIC_VIRTUAL
    points = cloud(2000, 16)
    points[:, 14] = torch.arange(2000) % 3 - 1
    model = CenterPoint(config).eval()
    with torch.no_grad():
        maps = model(model.read_clouds([points]))
    assert all(task["hm"].isfinite().all() for task in maps)


def test_points_that_a_virtual_reader_cannot_take_are_named() -> None:
    model = CenterPoint(tiny("dynamic_virtual"))
    with pytest.raises(DatasetError, match=r"frame 0: .*need \[points, 16\]"):
        model.read_clouds([cloud(10, 5)])
    points = kinds(1, 0)
    points[1, 14] = 0.5
    with pytest.raises(DatasetError, match=r"kind 0\.5 .*need 1 \(LiDAR\)"):
        model.read_clouds([points])
