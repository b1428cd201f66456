"""A captured plan on a GPU, full size: frames of every size, equal codes, no growth of memory."""

import pytest
import torch
from torch import Tensor, nn

if not torch.cuda.is_available():
    pytest.skip("no CUDA device here", allow_module_level=True)

triton = pytest.importorskip("triton")
tl = pytest.importorskip("triton.language")

from voxelquant.detection.config import load_config  # noqa: E402
from voxelquant.errors import GeometryError  # noqa: E402
from voxelquant.numerics import quantize, relative_l2, sqnr_db  # noqa: E402
from voxelquant.quant import lower  # noqa: E402
from voxelquant.quant.engine.network_plan import NetworkPlan, plan_network  # noqa: E402
from voxelquant.recipes.bench_frames import BenchFrame  # noqa: E402
from voxelquant.recipes.bench_gate import FP16_RELATIVE_L2, FP16_SQNR_DB  # noqa: E402
from voxelquant.recipes.bench_networks import (  # noqa: E402
    Networks,
    lower_network,
    make_backbone,
    on_lattice,
)
from voxelquant.sparse.backends.triton.epilogue import (  # noqa: E402
    load_divisor,
    quantize_int8,
    with_reciprocal,
)

GRID, MOST = (41, 1440, 1440), 136_000
COUNTS = (10_000, 79_745, 135_000)


def make_frame(n: int, seed: int) -> BenchFrame:
    """`n` voxels in shuffled order: patches of 8 x 8 cells on slopes, denser near the sensor."""
    generator = torch.Generator(device="cuda").manual_seed(seed)

    def normal(*size: int) -> Tensor:
        return torch.randn(size, generator=generator, device="cuda")

    centres = (normal(n // 12, 2) * 250 + 720).clamp(10, 1420).long()
    patch = torch.cartesian_prod(*[torch.arange(8, device="cuda")] * 2)
    yx = (centres[:, None] + patch).view(-1, 2)
    slope = (normal(n // 12, 1, 2) * 0.3 * patch).sum(2).round()
    height = torch.randint(4, 36, (n // 12, 1), generator=generator, device="cuda")
    z = (height + slope.long()).clamp(0, 40).view(-1)
    keys = ((z * 1440 + yx[:, 0]) * 1440 + yx[:, 1]).unique()
    assert len(keys) >= n
    keys = keys[torch.randperm(len(keys), generator=generator, device="cuda")][:n]
    cells = torch.stack([keys * 0, keys // 1440**2, keys // 1440 % 1440, keys % 1440], 1)
    return BenchFrame("patches", normal(n, 5).half().float(), cells.int(), GRID)


def make_plan(networks: Networks) -> NetworkPlan:
    sizes = [MOST, 4 * MOST, 3 * MOST, 2 * MOST, 2 * MOST]
    return plan_network(
        lower(networks.fake), spatial_shape=GRID, in_channels=5, max_voxels=MOST, capacities=sizes
    )


@pytest.fixture(scope="module")
def backbone() -> nn.Module:
    return make_backbone(load_config("centerpoint_voxel0075"), 0, "cuda")


@pytest.fixture(scope="module")
def in_fp16(backbone: nn.Module) -> Networks:
    return lower_network(backbone, "fp16", make_frame(30_000, 1))


def test_one_graph_replays_frames_of_every_size_in_fp16(in_fp16: Networks) -> None:
    plan = make_plan(in_fp16)
    for seed, n in enumerate((*COUNTS, 1, 0, COUNTS[0])):
        frame = make_frame(n, seed) if n > 1 else one_of(n)
        found, expected = plan(frame.features, frame.coords_bzyx).clone(), in_fp16.expected(frame)
        if n <= 1:
            # One voxel's neighbourhoods are itself: too few values for a measure of noise.
            torch.testing.assert_close(found, expected, rtol=2e-2, atol=2e-3)
            continue
        assert sqnr_db(expected, found) >= FP16_SQNR_DB, f"{n} voxels"
        assert relative_l2(expected, found) <= FP16_RELATIVE_L2, f"{n} voxels"


def one_of(n: int) -> BenchFrame:
    coords = torch.tensor([[0, 20, 700, 700]], dtype=torch.int32, device="cuda")[:n]
    return BenchFrame("one", torch.ones(n, 5, device="cuda"), coords, GRID)


def test_every_integer_layer_is_equal_given_equal_codes(backbone: nn.Module) -> None:
    """fp16 layers sum on a lattice, so that equal codes enter the integer layers."""
    network, lattice = on_lattice(backbone, make_frame(30_000, 1))
    networks = lower_network(network, "int8", lattice)
    plan = make_plan(networks)
    generator = torch.Generator(device="cuda").manual_seed(2)
    for seed, n in enumerate(COUNTS):
        coords = make_frame(n, seed).coords_bzyx
        whole = torch.randint(-8, 9, (n, 5), generator=generator, device="cuda").float()
        frame = BenchFrame("lattice", whole, coords, GRID)
        found = plan(whole, coords).clone()
        assert torch.equal(found, networks.expected(frame)), f"{n} voxels"
        order = torch.randperm(n, generator=generator, device="cuda")
        assert torch.equal(plan(whole[order], coords[order]), found), f"{n} voxels, shuffled"


def test_memory_does_not_grow_over_frames(in_fp16: Networks) -> None:
    plan = make_plan(in_fp16)
    frames = [make_frame(n, seed) for seed, n in enumerate(COUNTS)]
    for frame in frames:
        plan(frame.features, frame.coords_bzyx)
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated(), torch.cuda.memory_reserved(), plan.memory_bytes
    torch.cuda.reset_peak_memory_stats()
    for number in range(21):  # the last is the last above: a plan keeps the frame that it ran
        frame = frames[number % 3]
        plan(frame.features, frame.coords_bzyx)
    torch.cuda.synchronize()
    after = torch.cuda.memory_allocated(), torch.cuda.memory_reserved(), plan.memory_bytes
    assert after == before
    # What copying a frame in may need for a moment, and no more.
    assert torch.cuda.max_memory_allocated() - before[0] <= 2 * MOST * 5 * 4


def test_the_same_frame_twice_is_bit_equal(in_fp16: Networks) -> None:
    plan = make_plan(in_fp16)
    frame = make_frame(79_745, 3)
    first = plan(frame.features, frame.coords_bzyx).clone()
    plan(*(x[:5000] for x in (frame.features, frame.coords_bzyx)))
    assert torch.equal(plan(frame.features, frame.coords_bzyx), first)


def test_queued_frames_are_those_that_were_handed_over(in_fp16: Networks) -> None:
    """Nobody waits between the calls, and the frames' tensors are let go at once."""
    plan = make_plan(in_fp16)
    frames = [make_frame(n, seed) for seed, n in enumerate(COUNTS)]
    expected = [plan(f.features, f.coords_bzyx).clone() for f in frames]
    order = [number % len(frames) for number in range(30)]
    found = [
        plan(frames[n].features.half(), frames[n].coords_bzyx.clone(), check=False).clone()
        for n in order
    ]
    plan.check()
    for number, n in enumerate(order):
        assert torch.equal(found[number], expected[n]), f"call {number}"


def test_a_captured_graph_tells_what_did_not_fit(in_fp16: Networks) -> None:
    plan = make_plan(in_fp16)
    frame = make_frame(10_000, 4)
    good = plan(frame.features, frame.coords_bzyx).clone()
    for place, message in ((GRID[0], "outside of the grid"), (None, "repeated")):
        coords = frame.coords_bzyx.clone()
        if place is None:
            coords[77] = coords[5]
        else:
            coords[77, 1] = place
        assert plan(frame.features, coords, check=False).isnan().all()
        with pytest.raises(GeometryError, match=message):
            plan(frame.features, coords)
    assert torch.equal(plan(frame.features, frame.coords_bzyx), good)


@triton.jit
def _quantize(x_ptr, step_ptr, out_ptr, N: tl.constexpr):
    places = tl.program_id(0).to(tl.int64) * N + tl.arange(0, N)
    by = load_divisor(step_ptr, "int8")
    tl.store(out_ptr + places, quantize_int8(tl.load(x_ptr + places), by))


@pytest.mark.parametrize("step", [0.0371, 3.1e-7, 977.3, 1.0, 2.0**-89 * 1.7, 2.0**59 * 1.3])
def test_codes_are_those_of_a_division(step: float) -> None:
    """2**26 values a step: ties k + 1/2 and their neighbours, all magnitudes far beyond codes."""
    n = 2**26
    scale = torch.tensor(step, dtype=torch.float32, device="cuda")
    generator = torch.Generator(device="cuda").manual_seed(0)
    codes = torch.randint(-140, 140, (n // 2,), generator=generator, device="cuda") + 0.5
    ties = codes * scale
    beside = torch.randint(-2, 3, ties.shape, generator=generator, device="cuda", dtype=torch.int32)
    ties = (ties.view(torch.int32) + beside).view(torch.float32)
    exponents = torch.rand(n // 2, generator=generator, device="cuda") * 17 - 2
    signs = torch.randint(0, 2, exponents.shape, generator=generator, device="cuda") * 2 - 1
    x = torch.cat([ties, signs * exponents.exp2() * scale])
    x[:6] = torch.tensor([0.0, -0.0, 1e-45, -1e-45, torch.inf, -torch.inf])
    out = torch.full(x.shape, 77, dtype=torch.int8, device="cuda")
    _quantize[(n // 1024,)](x, with_reciprocal(scale), out, N=1024, enable_fp_fusion=False)
    assert torch.equal(out, quantize(x, scale))
