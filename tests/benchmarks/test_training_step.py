"""One small step of the GPU benchmark on a CPU: its gate, its timing and its result."""

import copy
import importlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
SMALL = ["--device", "cpu", "--backend", "reference", "--peer", "none"]
SMALL += ["--voxels", "400", "--batch", "1", "--runs", "2", "--warmup", "0"]


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("training_step_gpu")


def test_a_small_step_is_gated_and_measured(benchmark: Any, tmp_path: Path) -> None:
    out = tmp_path / "step.json"
    benchmark.main([*SMALL, "--frame", str(tmp_path / "absent.npz"), "--out", str(out)])
    result = json.loads(out.read_text())
    assert set(result["step"]) == {"voxelquant_fp32", "voxelquant_amp"}
    assert (result["frame"], result["voxels"]) == ("synthetic", 400)
    assert result["step"]["voxelquant_fp32"]["wall"]["median_ms"] > 0
    assert result["relative_l2_against"]["reference_fp32"] == {"output": 0.0, "worst_gradient": 0.0}
    assert {"commit", "machine", "versions"} <= set(result)


def test_a_batch_is_the_frame_several_times(benchmark: Any) -> None:
    features, coords = torch.rand(3, 5), torch.tensor([[0, 1, 2, 3], [0, 0, 0, 9], [0, 4, 4, 4]])
    batch = benchmark.make_batch(features, coords.int(), 2, "cpu")
    assert batch.coords_bzyx[:, 0].tolist() == [0, 0, 0, 1, 1, 1]
    for half in (slice(0, 3), slice(3, 6)):
        assert torch.equal(batch.features[half], features)
        assert torch.equal(batch.coords_bzyx[half, 1:], coords[:, 1:].int())


def test_a_wrong_gradient_ends_the_run(benchmark: Any, tmp_path: Path) -> None:
    frame = benchmark.load_frame(tmp_path / "absent.npz")
    features, coords = frame.features, frame.coords_bzyx
    batch = benchmark.make_batch(features[:400], coords[:400], 1, "cpu")
    config = benchmark.BackboneConfig(in_channels=5, channels=benchmark.CHANNELS)
    net = benchmark.SpMiddleResNetFHD(config).train()
    twin = copy.deepcopy(net)
    twin.conv3[0].weight.register_hook(lambda grad: 1.1 * grad)
    pairs = [(model, benchmark.own_forward(model, "reference")) for model in (net, twin)]
    with pytest.raises(SystemExit, match=r"9\.1e-02 of the gradient of conv3\.0\.weight"):
        benchmark.assert_agreement(*pairs, batch, "fp32")
