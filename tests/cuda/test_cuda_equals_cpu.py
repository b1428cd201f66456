"""The same numbers on a GPU, wherever the law promises them; skipped where there is none."""

import pytest
import torch

from voxelquant.data.hashing import random_order
from voxelquant.data.synthetic import ClassMix, WorldConfig, generate_frames
from voxelquant.detection.checkpoint import load_weights
from voxelquant.detection.detector import CenterPoint
from voxelquant.export import FileRunner, serialize
from voxelquant.export.from_graph import build_graph
from voxelquant.numerics import FP8_E4M3
from voxelquant.numerics import quantize as quantize_values
from voxelquant.quant import calibrate, layer_parity, lower, quantize
from voxelquant.recipes.demo import tiny_weights
from voxelquant.sparse import (
    ActiveSites,
    ConvGeometry,
    SparseTensor,
    build_kernel_map,
    sparse_conv,
    sparse_conv_fp8,
    sparse_conv_int8,
    use_backend,
)

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")

SAME_SURFACE_M = 0.01

GEOMETRIES = [
    ConvGeometry((3, 3, 3), subm=True),
    ConvGeometry((3, 3, 3), (2, 2, 2), (1, 1, 1)),
    ConvGeometry((3, 1, 1), (2, 1, 1)),
]


def sites(seed: int = 0, count: int = 900) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    cells = torch.randperm(2 * 9 * 16 * 16, generator=generator)[:count]
    b, cell = cells // (9 * 256), cells % (9 * 256)
    return torch.stack([b, cell // 256, cell // 16 % 16, cell % 16], 1).int()


@pytest.mark.parametrize("count", [0, 1, 250_000])
def test_points_are_put_in_the_same_order(count: int) -> None:
    here, there = (random_order(count, 17, torch.device(device)) for device in ("cpu", "cuda"))
    assert torch.equal(here, there.cpu())


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_kernel_maps_are_the_same(geometry: ConvGeometry) -> None:
    coords = sites()
    here, out_here = build_kernel_map(coords, (9, 16, 16), 2, geometry)
    there, out_there = build_kernel_map(coords.cuda(), (9, 16, 16), 2, geometry)
    assert torch.equal(out_here, out_there.cpu())
    assert torch.equal(here.table, there.table.cpu())


def test_kernel_maps_of_a_full_batch_are_those_of_the_reference() -> None:
    """Level by level, with tables of both directions; rows of the input are in no order."""
    shape, batch = (41, 1440, 1440), 4
    generator = torch.Generator(device="cuda").manual_seed(3)
    cells = torch.randperm(batch * 400_000, device="cuda", generator=generator)[:300_000]
    # Corners of 40 x 100 x 100 cells, so that sites have neighbours.
    b, z, y, x = cells // 400_000, cells % 40 + 1, cells // 40 % 100, cells // 4000 % 100
    coords = torch.stack([b, z, y + 1340, x + 1340], 1).int()
    results = []
    for backend in ("triton", "reference"):
        with use_backend(backend):
            sites, tables = ActiveSites(coords, shape, batch), []
            for padding in ((1, 1, 1), (0, 1, 1)):
                centred, _ = sites.kernel_map(GEOMETRIES[0])
                strided, sites = sites.kernel_map(ConvGeometry((3, 3, 3), (2, 2, 2), padding))
                tables += [centred.table, strided.table, strided.transposed().table]
                tables.append(sites.coords_bzyx)
        results.append(tables)
    for mine, other in zip(*results, strict=True):
        assert torch.equal(mine, other)


@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("channels", [5, 16, 128])
def test_integer_convolutions_are_bit_equal(geometry: ConvGeometry, channels: int) -> None:
    coords = sites()
    generator = torch.Generator().manual_seed(1)
    codes = torch.randint(-128, 128, (len(coords), channels), generator=generator).to(torch.int8)
    shape = (24, *geometry.kernel_size, channels)
    weight = torch.randint(-128, 128, shape, generator=generator).to(torch.int8)
    here, _ = build_kernel_map(coords, (9, 16, 16), 2, geometry)
    there, _ = build_kernel_map(coords.cuda(), (9, 16, 16), 2, geometry)
    expected = sparse_conv_int8(codes, weight, here)
    assert torch.equal(expected, sparse_conv_int8(codes.cuda(), weight.cuda(), there).cpu())


def test_fp8_codes_are_the_same() -> None:
    generator = torch.Generator().manual_seed(5)
    exponents = torch.rand(1_000_000, generator=generator) * 24 - 14
    x = torch.randn(1_000_000, generator=generator) * 2.0**exponents
    scale = torch.tensor(0.37)
    here = quantize_values(x, scale, FP8_E4M3)
    there = quantize_values(x.cuda(), scale.cuda(), FP8_E4M3).cpu()
    assert torch.equal(here.float(), there.float())


@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("channels", [5, 16, 128])
def test_fp8_convolutions_are_bit_equal(geometry: ConvGeometry, channels: int) -> None:
    coords = sites()
    generator = torch.Generator().manual_seed(6)
    shapes = (len(coords), channels), (24, *geometry.kernel_size, channels)
    one = torch.tensor(1.0)
    codes, weight = (
        quantize_values(200 * torch.randn(shape, generator=generator), one, FP8_E4M3)
        for shape in shapes
    )
    here, _ = build_kernel_map(coords, (9, 16, 16), 2, geometry)
    there, _ = build_kernel_map(coords.cuda(), (9, 16, 16), 2, geometry)
    expected = sparse_conv_fp8(codes, weight, here)
    assert torch.equal(expected, sparse_conv_fp8(codes.cuda(), weight.cuda(), there).cpu())


@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("channels", [5, 16, 128])
def test_values_and_gradients_agree_in_double(geometry: ConvGeometry, channels: int) -> None:
    coords = sites()
    generator = torch.Generator().manual_seed(2)
    features = torch.randn(len(coords), channels, generator=generator, dtype=torch.float64)
    shape = (24, *geometry.kernel_size, channels)
    weight = torch.randn(shape, generator=generator, dtype=torch.float64)
    results = []
    for device in ("cpu", "cuda"):
        kernel_map, _ = build_kernel_map(coords.to(device), (9, 16, 16), 2, geometry)
        x = features.clone().to(device).requires_grad_()
        w = weight.clone().to(device).requires_grad_()
        y = sparse_conv(x, w, kernel_map)
        y.square().sum().backward()
        assert x.grad is not None
        assert w.grad is not None
        results.append([tensor.detach().cpu() for tensor in (y, x.grad, w.grad)])
    for mine, other in zip(*results, strict=True):
        # Sums of some 27 * 128 products of unit size, in another order, in double.
        torch.testing.assert_close(mine, other, rtol=1e-11, atol=1e-9)


@pytest.fixture(scope="module")
def tiny() -> tuple[CenterPoint, SparseTensor]:
    model = CenterPoint.from_config("centerpoint_tiny")
    load_weights(model, tiny_weights())
    model = model.eval().cuda()
    frame = generate_frames(4, [0], key_frames=1, device="cuda")[0]
    return model, model.read_clouds([frame.points])


@pytest.mark.parametrize("mix", ["nuscenes", "balanced"])
def test_the_world_has_the_same_boxes_and_surfaces(mix: ClassMix) -> None:
    """Boxes to the bit; of the rays of a key frame, which all report, one in a thousand may part.

    Whoever meets an edge may meet what lies behind it on another device.
    """
    config = WorldConfig(class_mix=mix)
    here, there = (
        generate_frames(4, range(8), key_frames=1, device=device, config=config)
        for device in ("cpu", "cuda")
    )
    apart, rays = 0, 0
    for mine, other in zip(here, there, strict=True):
        assert mine.boxes_det3d is not None
        assert other.boxes_det3d is not None
        assert torch.equal(mine.boxes_det3d, other.boxes_det3d.cpu())
        first, second = (frame.points.cpu() for frame in (mine, other))
        first, second = first[first[:, 4] == 0], second[second[:, 4] == 0]
        assert len(first) == len(second) == config.lidar.rays
        apart += int(((first[:, :3] - second[:, :3]).norm(dim=1) > SAME_SURFACE_M).sum())
        rays += len(first)
        assert len(mine.points) == pytest.approx(len(other.points), rel=1e-3)
    assert apart <= 1e-3 * rays


def test_engine_fake_quant_and_file_agree_on_the_gpu(
    tiny: tuple[CenterPoint, SparseTensor],
) -> None:
    model, x = tiny
    qmodel = quantize(model, "reference")
    calibrate(qmodel, [x])
    engine = lower(qmodel)
    layers = layer_parity(qmodel, engine, x)
    assert sum(layer.unexplained for layer in layers) == 0
    coded = [layer for layer in layers if layer.output_precision == "int8"]
    flips = sum(layer.differing for layer in coded) / sum(layer.elements for layer in coded)
    assert flips < 1e-5  # 4e-7 on a CPU

    runner = FileRunner(serialize(build_graph(qmodel, x)), device="cuda")
    run = runner(x.features, x.coords_bzyx, x.spatial_shape)
    (output,) = run.outputs.values()
    with torch.no_grad():
        expected = engine.backbone(x)
    assert torch.equal(output.values, expected)


def test_fp8_engine_and_fake_quant_agree_on_the_gpu(tiny: tuple[CenterPoint, SparseTensor]) -> None:
    model, x = tiny
    qmodel = quantize(model, "reference_fp8")
    calibrate(qmodel, [x])
    layers = layer_parity(qmodel, lower(qmodel), x)
    coded = [layer for layer in layers if layer.output_precision == "fp8"]
    assert len(coded) > 10
    assert sum(layer.unexplained for layer in layers) == 0
    flips = sum(layer.differing for layer in coded) / sum(layer.elements for layer in coded)
    assert flips < 3e-5
