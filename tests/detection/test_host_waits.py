"""How often a training step of the backbone makes the host wait for a GPU, counted on a CPU."""

from typing import Any

import pytest
import torch

from operation_counter import OperationCounter
from oracles.sparse_sites import random_sites
from voxelquant.detection.backbone import SpMiddleResNetFHD
from voxelquant.detection.config_schema import BackboneConfig
from voxelquant.sparse import ActiveSites, SparseTensor, use_backend
from voxelquant.sparse.backends.triton import conv
from voxelquant.sparse.backends.triton.launch import Launcher

SHAPE = (41, 16, 24)
DEVICE = "cpu" if conv.INTERPRETED else "cuda"


def count_step(amp: bool) -> OperationCounter:
    """A step in which the kernels of convolutions do not run; those of kernel maps do."""
    net = SpMiddleResNetFHD(BackboneConfig(channels=(4, 4, 4, 4, 4))).train().to(DEVICE)
    coords = random_sites(60, SHAPE, [0, 1]).to(DEVICE)
    features = torch.zeros((60, 5), device=DEVICE)
    counter = OperationCounter()
    launch = Launcher.__call__

    def launch_uncounted(self: Launcher, *operands: Any, **tile: Any) -> None:
        counter.counts["launch"] += 1
        if self in (conv._launch_conv, conv._launch_weight_grad):
            counter.counts["convolution"] += 1
            return
        counter.is_paused = True  # the interpreter computes with tensors
        launch(self, *operands, **tile)
        counter.is_paused = False

    with pytest.MonkeyPatch.context() as patch, use_backend("triton"), counter:
        patch.setattr(Launcher, "__call__", launch_uncounted)
        with torch.autocast(DEVICE, torch.float16, enabled=amp):
            out = net(SparseTensor(features, ActiveSites(coords, SHAPE, 2)))
        out.backward(torch.zeros_like(out))
    return counter


def test_a_step_waits_once_for_each_strided_level() -> None:
    """For the number of its sites, which is allocated for; before any convolution begins."""
    counter = count_step(amp=False)
    assert counter.waits == {"_local_scalar_dense": 4}
    assert counter.counts["convolution"] == 21 + 20 + 21
    assert counter.convolutions_waited_for == 0


def test_mixed_precision_adds_a_cast_for_each_weight_and_no_wait() -> None:
    full, amp = (count_step(amp=amp) for amp in (False, True))
    assert amp.waits == full.waits
    # Beside the weights of 21 convolutions: the input, and ends of the dense map.
    assert amp.counts["_to_copy"] - full.counts["_to_copy"] <= 21 + 2


def test_a_step_has_few_operations() -> None:
    """Each takes the host some ten microseconds; 722 and 62 launches were too many."""
    counter = count_step(amp=True)
    assert counter.counts.pop("launch") <= 94
    del counter.counts["convolution"]
    assert counter.launches <= 210


def test_the_counter_itself() -> None:
    x = torch.arange(4)
    with OperationCounter() as counter:
        x[x > 1], x[torch.tensor([0])], x.unique(), bool(x[0] == 1), x.nonzero()
    found = counter.waits
    assert {"indexed with a mask", "_local_scalar_dense", "nonzero"} <= set(found)
    assert any("unique" in name for name in found)
    assert found["indexed with a mask"] == 1
