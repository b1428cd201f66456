"""Networks from end to end through a plan; without a GPU in Triton's interpreter.

The reference is the same lowered network, run layer by layer in plain torch.
"""

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

import voxelquant as vq
from oracles.sparse_sites import random_sites
from planned_index import DEVICE
from planned_networks import make_engine
from voxelquant.errors import GeometryError, GraphError
from voxelquant.numerics import relative_l2, sqnr_db
from voxelquant.quant.engine.network_plan import NetworkPlan, plan_network
from voxelquant.quant.engine.program import ConvOp, read_program
from voxelquant.sparse import SparseTensor
from voxelquant.sparse.backends.triton.planned_conv import ConvTile

GRID, BATCH, MOST = (12, 9, 10), 3, 61
IN_PLACE = vq.Recipe(name="r", ranges="in_place")
MIXED = vq.Recipe(
    name="m", rules=[{"match": name, "precision": "fp16"} for name in ("add2", "b", "twice")]
)
INTEGER = [
    *(("residual", recipe) for recipe in ("int8", "reference", "nvidia", "every_layer")),
    ("up and down", "int8"),
    ("up and down", IN_PLACE),
    ("three readers", IN_PLACE),
    ("three readers", MIXED),
]


def make_plan(engine: torch.nn.Module, capacities: list[int] | None = None) -> NetworkPlan:
    if capacities is None:
        capacities = [MOST] + [400] * (len(read_program(engine, GRID, 5).levels) - 1)
    return plan_network(
        engine,
        spatial_shape=GRID,
        in_channels=5,
        max_voxels=MOST,
        batch_size=BATCH,
        device=DEVICE,
        capacities=capacities,
    )


def run(plan: NetworkPlan, frame: SparseTensor, *, check: bool = True) -> Tensor:
    features, coords = frame.features.to(DEVICE), frame.coords_bzyx.to(DEVICE)
    return plan(features, coords, check=check).float().cpu()


def name_of(value: object) -> str:
    return value.name if isinstance(value, vq.Recipe) else str(value)


@pytest.mark.parametrize(("name", "recipe"), INTEGER, ids=name_of)
def test_codes_are_the_reference_engines_bit_for_bit(engine_of, frame_of, name, recipe) -> None:
    """Sample 1 of the batch is empty."""
    engine = engine_of(name, recipe)
    frame = frame_of(MOST, 9)
    expected = engine(frame)
    found = run(make_plan(engine), frame)
    assert torch.equal(found, expected)
    assert len(expected[0].unique()) > 20
    assert (expected[2] != expected[1]).any()


@pytest.mark.parametrize("name", ["residual", "up and down"])
@pytest.mark.parametrize("recipe", ["fp16", "fp8"])
def test_sums_in_another_order_stay_near(engine_of, frame_of, name, recipe) -> None:
    """One unit in the last place of every fp16 value of one layer is 63 dB and 7e-4.

    fp8 layers sum a few hundred products in float32; a code that falls on the other side of a tie
    is rarer than one value in 2**12.
    """
    engine = engine_of(name, recipe)
    frame = frame_of(MOST, 9)
    expected = engine(frame)
    found = run(make_plan(engine), frame)
    assert sqnr_db(expected, found) > 55
    assert relative_l2(expected, found) < 1.8e-3


def test_frames_of_every_size_through_one_plan(engine_of, frame_of) -> None:
    engine = engine_of("residual", "reference")
    plan = make_plan(engine)
    held = plan.memory_bytes
    for seed, n in enumerate((MOST, 0, 1, 33)):
        frame = frame_of(n, seed)
        assert torch.equal(run(plan, frame), engine(frame)), f"{n} voxels"
    order = torch.randperm(33, generator=torch.Generator().manual_seed(1))
    shuffled = SparseTensor.from_coords(
        frame.features[order], frame.coords_bzyx[order], GRID, BATCH
    )
    assert torch.equal(run(plan, shuffled), engine(frame))
    assert plan.memory_bytes == held


@pytest.mark.parametrize(("name", "recipe"), [("residual", "reference"), ("up and down", "int8")])
def test_rows_in_groups_from_frame_to_frame(engine_of, frame_of, name, recipe) -> None:
    """Convolutions leave out taps that no row of a tile sees; each frame groups its rows anew."""
    engine = engine_of(name, recipe)
    plan = make_plan(engine)
    program = plan.program
    convs = [op for op in program.ops if isinstance(op, ConvOp)]
    shapes = {plan.launches.conv_shape(op) for op in convs}
    tiles = {
        shape: ConvTile(32, 16, 32, "seen", 4, 2, splits=min(2, shape.columns))
        for shape in shapes
        if shape.kz > 1
    }
    assert tiles
    grouped = NetworkPlan(
        program,
        batch_size=BATCH,
        max_voxels=MOST,
        device=torch.device(DEVICE),
        tiles=tiles,
        capacities=[level.capacity for level in plan.index.levels],
    )
    for seed, n in enumerate((MOST, 0, 1, 33)):
        frame = frame_of(n, seed)
        assert torch.equal(run(grouped, frame), engine(frame)), f"{n} voxels"


def test_every_dense_map_of_a_network_is_an_output(engine_of, frame_of) -> None:
    engine = engine_of("branches", "int8")
    frame = frame_of(40, 3)
    plan = make_plan(engine)
    run(plan, frame)
    for found, expected in zip(plan.outputs, engine(frame), strict=True):
        assert torch.equal(found.float().cpu(), expected)


def test_what_is_poison_in_unused_memory_reaches_no_result(engine_of, frame_of) -> None:
    """All features between kernels begin as NaN, or as codes that are no zeros."""
    engine = engine_of("up and down", "int8")
    plan = make_plan(engine)
    for value in plan._values:
        value.fill_(torch.nan if value.is_floating_point() else 99)
    for output in plan.outputs:
        output.fill_(torch.nan)
    frame = frame_of(33, 2)
    assert torch.equal(run(plan, frame), engine(frame))


def test_what_does_not_fit_is_refused_and_leaves_nan(engine_of, frame_of) -> None:
    engine = engine_of("residual", "reference")
    plan = make_plan(engine)
    frame = frame_of(33, 2)
    for spoil, message in (
        (torch.tensor([0, 12, 0, 0]), r"outside of the grid.* below \[3, 12, 9, 10\]"),
        (frame.coords_bzyx[4], "repeated coordinates"),
    ):
        coords = frame.coords_bzyx.clone()
        coords[20] = spoil
        features, coords = frame.features.to(DEVICE), coords.to(DEVICE)
        assert plan(features, coords, check=False).isnan().all()
        with pytest.raises(GeometryError, match=message):
            plan.check()
    assert torch.equal(run(plan, frame), engine(frame))


def test_a_level_that_overflows_is_told_with_what_it_needs(engine_of, frame_of) -> None:
    engine = engine_of("residual", "int8")
    plan = make_plan(engine, [MOST, 20, 400])
    with pytest.raises(GeometryError, match=r"frame of \d+ sites on level 1 .* holds 20; plan for"):
        run(plan, frame_of(MOST, 2))
    assert run(plan, frame_of(MOST, 3), check=False).isnan().all()
    small = frame_of(2, 4)
    assert torch.equal(run(plan, small), engine(small))


def test_a_step_that_kernels_cannot_divide_by_is_refused() -> None:
    engine = make_engine("residual", "int8")
    layer = next(m for m in engine.modules() if getattr(m, "output_scale", None) is not None)
    layer.output_scale = torch.tensor(2.0**61)  # type: ignore[assignment]
    with pytest.raises(GraphError, match=r"got a step of codes of 2.3\d*e\+18, the engine divides"):
        make_plan(engine)


def test_shapes_that_do_not_fit_are_refused(engine_of) -> None:
    plan = make_plan(engine_of("residual", "int8"))
    coords = random_sites(MOST + 1, GRID, [0, 2]).to(DEVICE)
    features = torch.zeros(MOST + 1, 5, device=DEVICE)
    with pytest.raises(GeometryError, match="a frame of 62 voxels, the plan holds 61; plan for"):
        plan(features, coords)
    for wrong in ((features[:9], coords[:8]), (features[:9, :4], coords[:9])):
        with pytest.raises(GeometryError, match=r"need \(9, 5\) and \(9, 4\) \(batch, z, y, x\)"):
            plan(*wrong)


def test_more_features_than_32_bits_can_count_are_refused_before_they_are_allocated(
    engine_of,
) -> None:
    with pytest.raises(
        GeometryError, match="features in one tensor, need fewer than 2,147,483,648"
    ):
        make_plan(engine_of("residual", "int8"), [MOST, 1 << 28, 400])


def test_memory_is_reported_by_what_it_is_for(engine_of) -> None:
    plan = make_plan(engine_of("residual", "int8"))
    held = plan.memory_bytes
    assert held["outputs"] == BATCH * 32 * 5 * 5 * 2
    spans = [(v.data_ptr(), v.data_ptr() + v.nbytes) for v in plan._values]
    begin, end = min(s[0] for s in spans), max(s[1] for s in spans)
    assert held["features"] == end - begin < sum(v.nbytes for v in plan._values)
