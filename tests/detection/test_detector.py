import pytest
import torch
from torch import nn

from voxelquant.detection.config import DetectorConfig, load_config
from voxelquant.detection.detector import CenterPoint
from voxelquant.errors import DatasetError
from voxelquant.sparse import VoxelGridSpec

TASK_SIZES = (1, 2, 2, 1, 2, 2)
BATCHNORM = {
    "weight": 1,
    "bias": 1,
    "running_mean": 1,
    "running_var": 1,
    "num_batches_tracked": 0,
}


def _batchnorm(shapes: dict[str, tuple[int, ...]], path: str, channels: int) -> None:
    for name, ndim in BATCHNORM.items():
        shapes[f"{path}.{name}"] = (channels,) * ndim


def _block(shapes: dict[str, tuple[int, ...]], path: str, channels: int) -> None:
    for number in (1, 2):
        shapes[f"{path}.conv{number}.weight"] = (channels, 3, 3, 3, channels)
        shapes[f"{path}.conv{number}.bias"] = (channels,)
        _batchnorm(shapes, f"{path}.bn{number}", channels)


def _backbone_shapes() -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}
    shapes["conv_input.0.weight"] = (16, 3, 3, 3, 5)
    _batchnorm(shapes, "conv_input.1", 16)
    for index in (0, 1):
        _block(shapes, f"conv1.{index}", 16)
    for stage, (c_in, c_out) in {2: (16, 32), 3: (32, 64), 4: (64, 128)}.items():
        shapes[f"conv{stage}.0.weight"] = (c_out, 3, 3, 3, c_in)
        _batchnorm(shapes, f"conv{stage}.1", c_out)
        for index in (3, 4):
            _block(shapes, f"conv{stage}.{index}", c_out)
    shapes["extra_conv.0.weight"] = (128, 3, 1, 1, 128)
    _batchnorm(shapes, "extra_conv.1", 128)
    return shapes


def _neck_shapes() -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}
    for stage, (c_in, c_out) in {0: (256, 128), 1: (128, 256)}.items():
        for index in (1, 4, 7, 10, 13, 16):
            shapes[f"blocks.{stage}.{index}.weight"] = (c_out, c_in if index == 1 else c_out, 3, 3)
            _batchnorm(shapes, f"blocks.{stage}.{index + 1}", c_out)
    shapes["deblocks.0.0.weight"] = (256, 128, 1, 1)
    shapes["deblocks.1.0.weight"] = (256, 256, 2, 2)
    for stage in (0, 1):
        _batchnorm(shapes, f"deblocks.{stage}.1", 256)
    return shapes


def _head_shapes() -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}
    shapes["shared_conv.0.weight"] = (64, 512, 3, 3)
    shapes["shared_conv.0.bias"] = (64,)
    _batchnorm(shapes, "shared_conv.1", 64)
    for task, classes in enumerate(TASK_SIZES):
        branches = {"reg": 2, "height": 1, "dim": 3, "rot": 2, "vel": 2, "hm": classes}
        for name, channels in branches.items():
            path = f"tasks.{task}.{name}"
            shapes[f"{path}.0.weight"] = (64, 64, 3, 3)
            shapes[f"{path}.0.bias"] = (64,)
            _batchnorm(shapes, f"{path}.1", 64)
            shapes[f"{path}.3.weight"] = (channels, 64, 3, 3)
            shapes[f"{path}.3.bias"] = (channels,)
    return shapes


@pytest.fixture(scope="module")
def reference_model() -> CenterPoint:
    return CenterPoint.from_config("centerpoint_voxel0075").eval()


def _n_parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def test_state_dict_keys_shapes_and_order(reference_model: CenterPoint) -> None:
    parts = {"backbone": _backbone_shapes(), "neck": _neck_shapes(), "bbox_head": _head_shapes()}
    expected = {
        f"{part}.{key}": shape for part, keys in parts.items() for key, shape in keys.items()
    }
    got = {key: tuple(value.shape) for key, value in reference_model.state_dict().items()}
    assert got == expected


def test_branch_order(reference_model: CenterPoint) -> None:
    for task in reference_model.bbox_head.tasks:
        assert [name for name, _ in task.named_children()] == [
            "reg",
            "height",
            "dim",
            "rot",
            "vel",
            "hm",
        ]


@pytest.mark.parametrize(
    ("part", "count"),
    [
        ("", 8_941_590),
        ("backbone", 2_695_312),
        ("backbone.conv_input", 2_192),
        ("backbone.conv1", 27_840),
        ("backbone.conv2", 124_864),
        ("backbone.conv3", 498_560),
        ("backbone.conv4", 1_992_448),
        ("backbone.extra_conv", 49_408),
        ("neck", 4_576_768),
        ("neck.blocks.0", 1_033_728),
        ("neck.blocks.1", 3_247_104),
        ("neck.deblocks.0", 33_280),
        ("neck.deblocks.1", 262_656),
        ("bbox_head", 1_669_510),
        ("bbox_head.shared_conv", 295_104),
        ("bbox_head.tasks.0", 228_683),
        ("bbox_head.tasks.1", 229_260),
    ],
)
def test_parameter_counts(reference_model: CenterPoint, part: str, count: int) -> None:
    assert _n_parameters(reference_model.get_submodule(part)) == count


def test_batchnorm_constants(reference_model: CenterPoint) -> None:
    kinds = (nn.BatchNorm1d, nn.BatchNorm2d)
    norms = {n: m for n, m in reference_model.named_modules() if isinstance(m, kinds)}
    # sparse: 5 single + 16 in blocks; neck: 12 + 2; head: 1 + 6 tasks * 6 branches
    assert len(norms) == 21 + 14 + 37
    for path, norm in norms.items():
        expected = (1e-5, 0.1) if path.startswith("bbox_head") else (1e-3, 0.01)
        assert (norm.eps, norm.momentum) == expected, path
        assert isinstance(norm, nn.BatchNorm1d) == path.startswith("backbone"), path


def test_head_initialisation(reference_model: CenterPoint) -> None:
    for task in reference_model.bbox_head.tasks:
        assert bool((task.hm[-1].bias == -2.19).all())
        assert bool((task.hm[0].bias != 0).any())  # torch's default, not zeroed
        for name in ("reg", "height", "dim", "rot", "vel"):
            branch = getattr(task, name)
            assert not bool(branch[0].bias.any())
            assert not bool(branch[-1].bias.any())
            # Kaiming normal over the fan-out: std = sqrt(2 / (64 * 9)).
            assert branch[0].weight.std().item() == pytest.approx((2 / 576) ** 0.5, rel=0.02)
            fan_out = 9 * branch[-1].out_channels
            assert branch[-1].weight.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=0.15)


def test_sparse_initialisation_bounds(reference_model: CenterPoint) -> None:
    weight = reference_model.backbone.conv4[0].weight
    bound = (64 * 27) ** -0.5
    assert 0.98 * bound < weight.abs().max().item() <= bound


def test_no_relu_works_in_place(reference_model: CenterPoint) -> None:
    assert not any(m.inplace for m in reference_model.modules() if isinstance(m, nn.ReLU))


@pytest.mark.parametrize(
    ("name", "heads", "n_features"),
    [
        ("centerpoint_waymo_3x", {"reg", "height", "dim", "rot", "hm"}, 5),
        (
            "centerpoint_waymo_two_sweeps_3x_with_velo",
            {"reg", "height", "dim", "rot", "vel", "hm"},
            6,
        ),
    ],
)
def test_waymo_widths(name: str, heads: set[str], n_features: int) -> None:
    model = CenterPoint.from_config(name)
    assert model.backbone.conv_input[0].weight.shape == (16, 3, 3, 3, n_features)
    assert len(model.bbox_head.tasks) == 1
    branches = dict(model.bbox_head.tasks[0].named_children())
    assert set(branches) == heads
    assert branches["hm"][-1].out_channels == 3


def test_voxel_grid_limits_of_training_and_inference() -> None:
    model = CenterPoint.from_config("centerpoint_tiny")
    train, test = model.voxel_grid(True), model.voxel_grid()
    assert isinstance(train, VoxelGridSpec)
    assert isinstance(test, VoxelGridSpec)
    assert (train.max_voxels, test.max_voxels) == model.config.max_voxels
    reference = load_config("centerpoint_voxel0075")
    grid = CenterPoint.voxel_grid(_Holder(reference))  # type: ignore[arg-type]
    assert isinstance(grid, VoxelGridSpec)
    assert grid.sparse_shape == (41, 1440, 1440)
    assert grid.max_voxels == 160_000


class _Holder:
    def __init__(self, config: DetectorConfig) -> None:
        self.config = config


def _cloud(n_points: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    cloud = torch.rand(n_points, 5, generator=generator)
    cloud[:, :2] = cloud[:, :2] * 20 - 10
    cloud[:, 2] = cloud[:, 2] * 4 - 3
    return cloud


def test_tiny_forward_shapes_and_batch_independence() -> None:
    torch.manual_seed(0)
    model = CenterPoint.from_config("centerpoint_tiny").eval()
    clouds = [_cloud(800, 1), _cloud(500, 2)]
    with torch.no_grad():
        both = model(model.read_clouds(clouds))
        second = model(model.read_clouds(clouds[1:]))
    assert len(both) == 6
    for task, single, classes in zip(both, second, TASK_SIZES, strict=True):
        shapes = {name: tuple(value.shape) for name, value in task.items()}
        assert shapes == {
            "reg": (2, 2, 128, 128),
            "height": (2, 1, 128, 128),
            "dim": (2, 3, 128, 128),
            "rot": (2, 2, 128, 128),
            "vel": (2, 2, 128, 128),
            "hm": (2, classes, 128, 128),
        }
        for name, value in single.items():
            torch.testing.assert_close(task[name][1:], value, rtol=1e-4, atol=1e-5)


def test_tiny_fits_its_budget() -> None:
    model = CenterPoint.from_config("centerpoint_tiny")
    assert 2 * _n_parameters(model) <= 8_000_000


def test_every_parameter_receives_a_gradient() -> None:
    torch.manual_seed(0)
    model = CenterPoint.from_config("centerpoint_tiny").train()
    maps = model(model.read_clouds([_cloud(400)], train=True))
    torch.stack(
        [value.square().mean() for task in maps for value in task.values()]
    ).sum().backward()
    missing = [name for name, p in model.named_parameters() if p.grad is None]
    assert not missing
    assert all(bool(torch.isfinite(p.grad).all()) for p in model.parameters())


def test_one_voxel_passes() -> None:
    model = CenterPoint.from_config("centerpoint_tiny").eval()
    x = model.read_clouds([torch.tensor([[1.0, 2.0, 0.0, 7.0, 0.1]])])
    assert x.features.shape == (1, 5)
    with torch.no_grad():
        assert all(bool(torch.isfinite(v).all()) for task in model(x) for v in task.values())


@pytest.mark.parametrize(
    ("cloud", "message"),
    [
        (torch.zeros(0, 5), "frame 1: none of its 0 points"),
        (torch.full((3, 5), 500.0), "frame 1: none of its 3 points lies inside"),
        (torch.zeros(3, 4), r"frame 1: .*\(3, 4\), need \[points, 5\]"),
        (torch.full((3, 5), float("nan")), "frame 1: got NaN"),
    ],
)
def test_unusable_clouds_are_named(cloud: torch.Tensor, message: str) -> None:
    model = CenterPoint.from_config("centerpoint_tiny")
    with pytest.raises(DatasetError, match=message):
        model.read_clouds([_cloud(10), cloud])
