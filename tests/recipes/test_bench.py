"""The benchmark on the reference backend: its gate, its numbers' places, what stops it."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from small_detector import write_config
from voxelquant.detection.config import load_config
from voxelquant.detection.detector import CenterPoint
from voxelquant.errors import BadInputError, GateError
from voxelquant.evaluation.gpu_timing import BusyTime
from voxelquant.evaluation.latency import Latency
from voxelquant.recipes import bench_measure, bench_networks
from voxelquant.recipes.bench import run_bench
from voxelquant.recipes.bench_frames import BenchFrame
from voxelquant.recipes.bench_measure import (
    CallTiming,
    Profiling,
    StageBreakdown,
    StageTiming,
)
from voxelquant.recipes.bench_networks import lower_network, make_backbone, on_lattice
from voxelquant.recipes.bench_reference import ReferencePlan, plan_reference
from voxelquant.recipes.bench_request import BenchRequest, choose_frames
from voxelquant.recipes.progress import StageReporter
from voxelquant.sparse.backends import reference

Change = Callable[[Tensor], Tensor]


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_config(tmp_path_factory.mktemp("bench") / "small.yaml")


@pytest.fixture
def request_(config: Path, tmp_path: Path) -> BenchRequest:
    return BenchRequest(
        tmp_path / "out",
        config=str(config),
        voxels=400,
        precisions=("fp16", "int8"),
        parts=(),
        repeats=2,
        device="cpu",
    )


def test_profiling_waits_for_everything_else(monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []

    def measure_busy(run: Callable[[], object], *, repeats: int) -> BusyTime:
        run()
        return BusyTime(float(repeats), 1.0)

    monkeypatch.setattr(bench_measure, "measure_busy", measure_busy)
    profiling = Profiling()
    timings = [CallTiming(Latency(1.0, 1.0, 1.0, 1)) for _ in range(2)]
    for number, timing in enumerate(timings):
        profiling.later(timing, lambda number=number: order.append(f"call {number}"), 3 + number)
    order.append("timed")
    assert [timing.busy for timing in timings] == [None, None]
    profiling.run()
    assert order == ["timed", "call 0", "call 1"]
    assert [timing.busy and timing.busy.busy_ms for timing in timings] == [3.0, 4.0]


def planner_of(change: Change, calls: Callable[[int], bool] = lambda call: True) -> Any:
    """Plans that run the reference backend and then change what it gave, in some calls."""
    count = 0

    class ChangedPlan(ReferencePlan):
        def __call__(self, features: Tensor, coords_bzyx: Tensor) -> Tensor:
            nonlocal count
            count += 1
            out = super().__call__(features, coords_bzyx)
            return change(out) if calls(count) else out

    return lambda engine, frame, max_voxels: ChangedPlan(engine, frame)


def measured(request: BenchRequest, planner: Any = None) -> dict[str, Any]:
    run_bench(request, StageReporter.silent(), planner)
    return json.loads((request.work_dir / "result.json").read_text())


def test_every_part_has_its_place(request_: BenchRequest) -> None:
    parts = ("throughput", "stages", "scaling", "cloud")
    result = measured(replace(request_, parts=parts, precisions=("fp16", "int8", "fp8")))
    for name in ("fp16", "int8"):
        assert result["backbone_ms"][name] > 0
        assert result["throughput_b8_ms_per_frame"][name] > 0
        assert result["throughput"][name]["voxels"] == 8 * 400
        assert result["latency"][name]["timing"]["wall"]["repeats"] == 2
        assert list(result["batch_stages"][name]["by_kind_ms"]) == ["maps", "conv", "densify"]
        stages = result["stages"][name]
        assert list(stages["by_kind_ms"]) == ["maps", "conv", "densify"]
        # 21 convolutions and 8 sums, the maps and the dense map.
        assert len(stages["each"]) == 31
        sum_ms = sum(stages["by_kind_ms"].values())
        assert stages["gap_ms"] == pytest.approx(stages["replay_ms"] - sum_ms)
        assert [point["voxels"] for point in result["scaling"][name]] == [10_000]
        assert result["cloud"][name]["voxels"] > 400
    assert result["frame"] == {"name": "synthetic frame", "voxels": 400}
    assert result["busy_ms"]["fp16"] is None  # no GPU
    assert result["gpu"] is None
    assert result["config"]["voxels"] == 400
    # single, batch, one size and the cloud of each precision, and the exact frame of int8
    measured_precisions = len([ms for ms in result["backbone_ms"].values() if ms is not None])
    assert len(result["gate"]) == 4 * measured_precisions + 1
    assert all(check["differing"] == 0 for check in result["gate"])


def test_a_missing_recipe_is_a_reason_and_no_crash(
    request_: BenchRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench_networks, "bundled_recipes", lambda: ["fp16", "reference"])
    result = measured(replace(request_, precisions=("fp16", "fp8")))
    assert result["backbone_ms"]["fp8"] is None
    assert result["unavailable"] == {"fp8": "no recipe 'fp8' in this version"}
    with pytest.raises(BadInputError, match="got nothing to measure"):
        measured(replace(request_, precisions=("fp8",)))


def refuse(engine: Any, frame: BenchFrame, max_voxels: int) -> Any:
    raise BadInputError("got a chip of 1999")


def test_a_network_beyond_the_engine_is_the_users_to_mend(request_: BenchRequest) -> None:
    with pytest.raises(BadInputError, match="a chip of 1999"):
        measured(request_, refuse)


def test_a_wrong_fp16_plan_is_not_timed(request_: BenchRequest) -> None:
    wrong = planner_of(lambda out: out * 1.01)
    with pytest.raises(GateError, match=r"fp16 on synthetic frame, 400 voxels: got SQNR 40"):
        measured(request_, wrong)
    assert not (request_.work_dir / "result.json").exists()


def nudge_one(out: Tensor) -> Tensor:
    """One value, by one step of fp16: far too little for a limit in dB to see."""
    out = out.clone()
    place = int(out.abs().flatten().argmax())
    value = out.view(-1)[place]
    out.view(-1)[place] = value * (1 + 2.0**-9)
    return out


def test_one_value_off_on_the_lattice_stops_int8(request_: BenchRequest) -> None:
    with pytest.raises(GateError, match=r"int8 on .* lattice.*need equal bits"):
        measured(replace(request_, precisions=("int8",)), planner_of(nudge_one))
    assert not (request_.work_dir / "result.json").exists()


def test_a_wrong_batch_is_not_timed(request_: BenchRequest) -> None:
    request = replace(request_, parts=("throughput",), precisions=("fp16",))

    def swap_samples(out: Tensor) -> Tensor:
        return out.roll(1, 0) if len(out) > 1 else out

    with pytest.raises(GateError, match="fp16 on batch of 8, 3200 voxels"):
        measured(request, planner_of(swap_samples))


@pytest.mark.parametrize("seed", [0, 1])
def test_the_lattice_is_exact_in_any_order(
    config: Path, request_: BenchRequest, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    """Sums by taps and by columns differ in fp16 layers elsewhere, there they do not."""
    frame = some_frame(config)
    backbone = make_backbone(load_config(config), seed, "cpu")
    by_taps = reference._convolve

    def by_columns(features: Tensor, weight: Tensor, kernel_map: Any, columns: bool) -> Tensor:
        return by_taps(features, weight, kernel_map, True)

    lattice, exact_frame = on_lattice(backbone, frame)
    exact = lower_network(lattice, "int8", exact_frame)
    plain = lower_network(backbone, "fp16", frame)
    before = exact.expected(exact_frame), plain.expected(frame)
    monkeypatch.setattr(reference, "_convolve", by_columns)
    assert torch.equal(exact.expected(exact_frame), before[0])
    assert int((before[0] != 0).sum()) > 300
    assert not torch.equal(plain.expected(frame), before[1])


def some_frame(config: Path) -> BenchFrame:
    generator = torch.Generator().manual_seed(1)
    shape = (41, 136, 136)
    cells = torch.unique(torch.randint(0, 8 * 40 * 40, (3000,), generator=generator))
    z, y, x = cells // 1600, cells // 40 % 40, cells % 40
    coords = torch.stack([torch.zeros_like(z), z + 10, y + 40, x + 50], 1).int()
    features = torch.randn(len(coords), 5, generator=generator).half().float()
    return BenchFrame("clustered", features, coords, shape)


def test_stages_of_the_reference_are_the_layers(config: Path) -> None:
    frame = some_frame(config)
    backbone = make_backbone(load_config(config), 0, "cpu")
    networks = lower_network(backbone, "int8", frame)
    plan = plan_reference(networks.reference, frame, 0)
    out = plan(frame.features, frame.coords_bzyx)
    assert torch.equal(out, networks.expected(frame))
    stages = plan.stages
    assert [stage.name for stage in stages[:3]] == ["maps", "conv_input.0", "conv1.0.conv1"]
    assert stages[-1].kind == "densify"
    for stage in stages:
        stage.run()
    assert plan.memory_bytes["weights"] > 0


def test_kinds_of_stages_are_summed() -> None:
    stages = tuple(
        StageTiming(*row) for row in (("a", "maps", 1.0), ("b", "conv", 2.0), ("c", "conv", 3.0))
    )
    assert StageBreakdown(stages, 7.0, 1.0).by_kind == {"maps": 1.0, "conv": 5.0}


def test_precisions_are_known(request_: BenchRequest) -> None:
    with pytest.raises(BadInputError, match=r"got precisions \['int2'\]"):
        measured(replace(request_, precisions=("int2",)))


def test_the_gpu_engine_is_asked_by_its_contract(
    config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import voxelquant.quant

    asked: dict[str, Any] = {}

    def plan_network(engine: Any, **options: Any) -> str:
        asked.update(options, engine=engine)
        return "a plan"

    monkeypatch.setattr(voxelquant.quant, "plan_network", plan_network, raising=False)
    frame = some_frame(config)
    engine = torch.nn.Identity()
    assert bench_networks.plan_on_gpu(engine, frame, 7000) == "a plan"
    features, coords = asked.pop("tune_on")
    assert features is frame.features
    assert coords is frame.coords_bzyx
    assert asked == {
        "engine": engine, "spatial_shape": (41, 136, 136), "in_channels": 5, "batch_size": 1,
        "max_voxels": 7000, "device": "cpu",
    }  # fmt: skip


def test_a_frame_beyond_the_bound_is_refused_before_any_work(request_: BenchRequest) -> None:
    request = replace(request_, device="cuda", max_voxels=300)
    detector = CenterPoint(load_config(request.config))
    with pytest.raises(BadInputError, match=r"400 voxels for plans of at most 300; .*--max-voxels"):
        choose_frames(request, detector, "cpu")
