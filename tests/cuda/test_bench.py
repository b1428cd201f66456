"""The benchmark on a GPU, its clocks and the peer included; figures are not judged, places are."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from small_detector import write_config
from voxelquant.recipes.bench import run_bench
from voxelquant.recipes.bench_reference import plan_reference
from voxelquant.recipes.bench_request import BenchRequest
from voxelquant.recipes.progress import StageReporter

if not torch.cuda.is_available():
    pytest.skip("no CUDA device here", allow_module_level=True)

pytestmark = [
    pytest.mark.filterwarnings("ignore:::spconv"),
    pytest.mark.filterwarnings("ignore:::cumm"),
    pytest.mark.filterwarnings("ignore:::pccm"),
    # Of ccimport, which spconv imports.
    pytest.mark.filterwarnings("ignore:'locale.getdefaultlocale':DeprecationWarning"),
]


def measured(tmp_path: Path, planner: Any = None, **options: Any) -> dict[str, Any]:
    config = write_config(tmp_path / "small.yaml")
    request = BenchRequest(
        tmp_path, str(config), voxels=4000, repeats=4, max_voxels=20_000, **options
    )
    run_bench(request, StageReporter.silent(), planner)
    return json.loads((tmp_path / "result.json").read_text())


def judge(result: dict[str, Any], names: tuple[str, ...]) -> None:
    for name in names:
        timing = result["latency"][name]["timing"]
        assert 0 < result["busy_ms"][name] <= 1.1 * timing["wall"]["median_ms"]
        assert timing["busy"]["launches"] >= 1
        assert timing["wall_cold"]["median_ms"] > 0
        assert result["memory"][name]["peak"] > 0
    assert result["gpu"]["name"] == torch.cuda.get_device_name(0)


def test_the_reference_as_a_plan(tmp_path: Path) -> None:
    parts = ("throughput", "stages", "cloud")
    result = measured(tmp_path, plan_reference, precisions=("fp16", "int8"), parts=parts)
    judge(result, ("fp16", "int8"))
    assert set(result["stages"]["int8"]["by_kind_ms"]) == {"maps", "conv", "densify"}
    assert result["memory"]["int8"]["held"] > 0


@pytest.mark.skipif(importlib.util.find_spec("spconv") is None, reason="spconv is not installed")
def test_every_variant_of_the_peer(tmp_path: Path) -> None:
    result = measured(
        tmp_path, plan_reference, precisions=("fp16",), parts=("throughput",), against="spconv"
    )
    judge(result, ("spconv_fp16",))
    tried = result["peer_variants_ms"]
    assert len(tried) >= 5
    for variant, outcome in tried.items():
        if variant.startswith("MaskSplit"):  # has no fused bias in spconv 2.3.8, and says so
            assert "SplitGemm" in outcome
        else:
            assert isinstance(outcome, float), (variant, outcome)


def test_the_engine(tmp_path: Path) -> None:
    parts = ("throughput", "stages", "scaling", "cloud")
    result = measured(tmp_path, parts=parts)
    judge(result, ("fp16", "int8"))
    exact = [check for check in result["gate"] if check["rule"] == "equal bit for bit"]
    assert len(exact) == 1
    assert result["stages"]["fp16"]["replay_ms"] > 0
