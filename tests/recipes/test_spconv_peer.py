"""The peer computes our network: spconv's CPU build, mended, against our reference backend."""

import importlib
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from small_detector import write_config
from voxelquant.detection.config import load_config
from voxelquant.errors import GateError, MissingDependencyError
from voxelquant.recipes.bench_frames import BenchFrame, batch_of
from voxelquant.recipes.bench_measure import Effort, Profiling
from voxelquant.recipes.bench_networks import Networks, lower_network, make_backbone
from voxelquant.recipes.bench_peer import PeerBench, warm_until_steady
from voxelquant.recipes.bench_plans import BenchFrames
from voxelquant.recipes.progress import StageReporter
from voxelquant.recipes.spconv_peer import PeerVariant, SpconvPeer, require_spconv, sorting

NATIVE = PeerVariant("Native")


@pytest.fixture
def spconv() -> Iterator[Any]:
    """On a CPU it runs in one thread, in float32, with the native algorithm alone."""
    library = pytest.importorskip("spconv.pytorch", reason="spconv is not installed here")
    with importlib.import_module("spconv_ground").spconv_mended_on_cpu():
        yield library


@pytest.fixture(scope="module")
def frame() -> BenchFrame:
    generator = torch.Generator().manual_seed(1)
    cells = torch.unique(torch.randint(0, 8 * 40 * 40, (2000,), generator=generator))
    z, y, x = cells // 1600, cells // 40 % 40, cells % 40
    coords = torch.stack([torch.zeros_like(z), z + 10, y + 40, x + 50], 1).int()
    features = torch.randn(len(coords), 5, generator=generator).half().float()
    return BenchFrame("clustered", features, coords, (41, 136, 136))


@pytest.fixture(scope="module")
def networks(frame: BenchFrame, tmp_path_factory: pytest.TempPathFactory) -> Networks:
    config = write_config(tmp_path_factory.mktemp("peer") / "small.yaml")
    return lower_network(make_backbone(load_config(config), 0, "cpu"), "fp16", frame)


def bench_of(networks: Networks, frames: BenchFrames, fake: Any = None) -> PeerBench:
    return PeerBench(
        fake or networks.fake,
        frames,
        networks.expected,
        Effort(1, 2),
        Profiling(),
        StageReporter.silent(),
        dtype=torch.float32,
    )


def test_the_fastest_variant_that_agrees_is_measured(
    spconv: Any, networks: Networks, frame: BenchFrame
) -> None:
    frames = BenchFrames(frame, batch_of(frame, 2), {"small": frame}, frame)
    bench = bench_of(networks, frames)
    result = bench.measure([PeerVariant("MaskImplicitGemm"), NATIVE])
    assert result.how == "Native"
    assert result.throughput is not None
    assert result.throughput.batch_size == 2
    assert result.growth[0].what == "small"
    assert isinstance(bench.tried["Native"], float)
    # The CPU build has no implicit GEMM; that is kept as the reason.
    assert str(bench.tried["MaskImplicitGemm, sorted"]).startswith("AssertionError: cpu only")
    # Sums in another order, an fp16 rounding less a layer: far inside of the limit of 40 dB.
    assert min(check.sqnr_db for check in bench.checks) > 55


def test_a_peer_that_disagrees_is_not_timed(
    spconv: Any, networks: Networks, frame: BenchFrame
) -> None:
    other = lower_network(
        make_backbone(load_config("centerpoint_tiny"), 1, "cpu"), "fp16", frame
    ).fake
    bench = bench_of(networks, BenchFrames(frame), other)
    with pytest.raises(GateError, match="no variant of spconv that runs and agrees"):
        bench.measure([NATIVE])
    assert str(bench.tried["Native"]).startswith("GateError")


def test_index_pairs_are_shared_per_level(
    spconv: Any, networks: Networks, frame: BenchFrame
) -> None:
    peer = SpconvPeer(networks.fake, frame, NATIVE, torch.float32)
    keys = [conv.indice_key for conv in peer.convs.values() if conv.subm]
    assert len(keys) == 17
    assert len(set(keys)) == 4
    assert all(conv.bias is not None for conv in peer.convs.values())


def test_sorting_is_set_and_put_back(spconv: Any) -> None:
    ops: Any = importlib.import_module("spconv.pytorch.ops")
    before = ops.get_indice_pairs_implicit_gemm
    with sorting(False):
        assert ops.get_indice_pairs_implicit_gemm.keywords == {"do_sort": False}
    assert ops.get_indice_pairs_implicit_gemm is before


def test_a_missing_peer_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "spconv", None)
    monkeypatch.setitem(sys.modules, "spconv.pytorch", None)
    with pytest.raises(MissingDependencyError, match=r"pip install spconv-cu126==2\.3\.8"):
        require_spconv()


def test_variants_have_names() -> None:
    assert str(PeerVariant("MaskImplicitGemm", sort=False)) == "MaskImplicitGemm, unsorted"
    assert str(NATIVE.with_fused_relu) == "Native, fused ReLU"


def test_warming_ends_when_calls_take_equally_long(monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = 0.0
    durations = iter([5.0, 1.0, 3.0, 0.11, 0.1, 0.1, 0.1, 7.0])

    def run() -> None:
        nonlocal now_s
        now_s += next(durations)

    monkeypatch.setattr("time.perf_counter", lambda: now_s)
    assert warm_until_steady(run, torch.device("cpu")) == 7


def test_module_paths_of_the_peer(spconv: Any, networks: Networks, frame: BenchFrame) -> None:
    """Weights are those of the folded network, as spconv reads them."""
    peer = SpconvPeer(networks.fake, frame, NATIVE, torch.float32)
    own = networks.fake.get_submodule("conv2.0")
    theirs: Any = peer.convs["conv2/0"]
    assert torch.equal(theirs.weight, own.weight)
    assert isinstance(theirs, spconv.SparseConv3d)
