"""The whole sparse backbone trained a step on the Triton backend, in small."""

import copy

import pytest
import torch

from oracles.sparse_sites import random_sites
from voxelquant.detection.backbone import SpMiddleResNetFHD
from voxelquant.detection.config_schema import BackboneConfig
from voxelquant.numerics import relative_l2
from voxelquant.sparse import SparseTensor, use_backend
from voxelquant.sparse.backends.triton import conv

DEVICE = "cpu" if conv.INTERPRETED else "cuda"
GRID = (41, 16, 16)


def test_output_and_gradients_are_those_of_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    convolve = conv.sparse_conv
    monkeypatch.setattr(
        conv, "sparse_conv", lambda *args, **named: calls.append(1) or convolve(*args, **named)
    )
    torch.manual_seed(0)
    config = BackboneConfig(in_channels=5, channels=(4, 4, 6, 8, 10))
    net = SpMiddleResNetFHD(config).train().to(DEVICE)
    coords, features = random_sites(200, GRID, [0, 1]).to(DEVICE), torch.randn(200, 5)
    results = {}
    for backend in ("reference", "triton"):
        twin = copy.deepcopy(net)
        x = SparseTensor.from_coords(features.to(DEVICE), coords, GRID, 2)
        with use_backend(backend):
            out = twin(x)
        # Backward follows forward, outside of the block too.
        out.square().mean().backward()
        results[backend] = out.detach(), {n: p.grad for n, p in twin.named_parameters()}
    assert len(calls) == 21
    (expected, gradients), (found, own) = results["reference"], results["triton"]
    assert relative_l2(expected, found) < 1e-5
    for name, gradient in gradients.items():
        if not name.endswith((".conv1.bias", ".conv2.bias")):  # batch norm takes them out
            assert relative_l2(gradient, own[name]) < 1e-3, name
