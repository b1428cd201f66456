import logging
import subprocess
import sys

import pytest
import torch

from conv_problems import make_problem
from voxelquant.errors import BackendError
from voxelquant.sparse import choose_backend, sparse_conv, use_backend
from voxelquant.sparse.backends import choice
from voxelquant.sparse.backends.choice import choose_map_backend
from voxelquant.sparse.backends.triton import conv

CPU = torch.device("cpu")
CUDA = torch.device("cuda", 0)


@pytest.fixture(autouse=True)
def nothing_chosen_yet() -> None:
    choice._choose.cache_clear()


def test_auto_is_the_reference_on_a_cpu() -> None:
    assert choose_backend(torch.float32, CPU) == "reference"


def test_auto_is_triton_on_a_gpu_where_it_has_a_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conv, "INTERPRETED", False)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    assert choose_backend(torch.float16, CUDA) == choose_map_backend(CUDA) == "triton"
    assert choose_backend(torch.float64, CUDA) == "reference"


def test_auto_is_the_reference_on_an_old_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conv, "INTERPRETED", False)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla T4")
    assert choose_backend(torch.float16, CUDA) == choose_map_backend(CUDA) == "reference"
    with pytest.raises(BackendError, match=r"compute capability 8\.0, Tesla T4 is older"):
        choose_backend(torch.float16, CUDA, "triton")


def test_auto_logs_its_choice_once(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "voxelquant.sparse"):
        for _ in range(3):
            choose_backend(torch.float32, CPU)
            choose_map_backend(CPU)
    assert caplog.messages == [
        "sparse convolutions of torch.float32 on cpu: reference (no GPU)",
        "kernel maps on cpu: reference (no GPU)",
    ]


def test_a_named_backend_never_falls_back(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BackendError, match=r"no kernel for torch\.float64"):
        choose_backend(torch.float64, CPU, "triton")
    monkeypatch.setattr(conv, "INTERPRETED", False)
    with pytest.raises(BackendError, match=r"got torch\.float32 on cpu, need a CUDA device"):
        choose_backend(torch.float32, CPU, "triton")
    with use_backend("triton"), pytest.raises(BackendError, match="got sites on cpu, need a CUDA"):
        choose_map_backend(CPU)


def test_a_missing_triton_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr("voxelquant.sparse.backends.triton.conv")
    monkeypatch.setitem(sys.modules, "voxelquant.sparse.backends.triton.conv", None)
    with pytest.raises(BackendError, match=r"Triton cannot be imported .*pip install triton"):
        choose_backend(torch.float32, CUDA, "triton")
    assert choose_backend(torch.float32, CUDA) == "reference"


def test_an_unknown_backend_is_refused() -> None:
    with pytest.raises(BackendError, match="got backend 'cutlass', need one of auto, reference"):
        choose_backend(torch.float32, CPU, "cutlass")
    with pytest.raises(BackendError, match="cutlass"), use_backend("cutlass"):
        pass


def test_an_argument_overrules_the_block_and_the_block_ends(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(conv, "INTERPRETED", True)
    with use_backend("triton"):
        assert choose_backend(torch.float32, CPU) == "triton"
        assert choose_backend(torch.float32, CPU, "reference") == "reference"
        with use_backend("reference"):
            assert choose_backend(torch.float32, CPU) == "reference"
        assert choose_backend(torch.float32, CPU) == "triton"
    assert choose_backend(torch.float32, CPU) == "reference"


def test_a_convolution_runs_on_the_backend_of_its_block(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = make_problem("subm", 20, (4, 4), torch.float32)
    kernel_map, _ = problem.kernel_map("cpu")
    monkeypatch.setattr(conv, "INTERPRETED", True)
    monkeypatch.setattr(conv, "sparse_conv", lambda *operands, **named: "of triton")
    with use_backend("triton"):
        assert sparse_conv(problem.features, problem.weight, kernel_map) == "of triton"
    assert isinstance(sparse_conv(problem.features, problem.weight, kernel_map), torch.Tensor)


def test_a_convolution_on_a_cpu_does_not_import_triton() -> None:
    program = """
import sys, torch
from voxelquant.sparse import ConvGeometry, build_kernel_map, sparse_conv
kernel_map, _ = build_kernel_map(
    torch.zeros(1, 4, dtype=torch.int32), (3, 3, 3), 1, ConvGeometry((3, 3, 3), subm=True)
)
sparse_conv(torch.ones(1, 2), torch.ones(2, 3, 3, 3, 2), kernel_map)
print("triton" in sys.modules)
"""
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "False"
