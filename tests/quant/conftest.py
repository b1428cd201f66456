"""Small networks of every shape that quantization must not be surprised by; none is CenterPoint."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from voxelquant.sparse import (
    SparseAdd,
    SparseConv3d,
    SparseInverseConv3d,
    SparseModule,
    SparseSequential,
    SparseTensor,
    SparseToDense,
    SubMConv3d,
    apply_module,
)

GRID = (12, 16, 16)
MakeFrame = Callable[..., SparseTensor]


def build_frame(seed: int, sites: int = 300, channels: int = 5, batch: int = 1) -> SparseTensor:
    generator = torch.Generator().manual_seed(seed)
    cells = GRID[0] * GRID[1] * GRID[2]
    keys = torch.randperm(batch * cells, generator=generator)[:sites]
    cell = keys % cells
    coords = torch.stack([keys // cells, cell // 256, cell // 16 % 16, cell % 16], 1)
    features = torch.randn(sites, channels, generator=generator)
    return SparseTensor.from_coords(features, coords, GRID, batch)


class ResidualBlock(SparseModule):
    """One ReLU module for two uses, as in det3d."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = SubMConv3d(channels, channels, 3, bias=False)
        self.bn1 = nn.BatchNorm1d(channels)
        self.relu = nn.ReLU()
        self.conv2 = SubMConv3d(channels, channels, 3)
        self.bn2 = nn.BatchNorm1d(channels)
        self.add = SparseAdd()

    def forward(self, x: SparseTensor) -> SparseTensor:
        out = apply_module(self.relu, apply_module(self.bn1, self.conv1(x)))
        out = apply_module(self.bn2, self.conv2(out))
        return apply_module(self.relu, self.add(out, x))


class ResidualNet(nn.Module):
    """A small residual encoder with a dense head; names as in CenterPoint's backbone."""

    def __init__(self) -> None:
        super().__init__()
        self.conv_input = SparseSequential(
            SubMConv3d(5, 8, 3, bias=False), nn.BatchNorm1d(8), nn.ReLU(inplace=True)
        )
        self.conv1 = SparseSequential(ResidualBlock(8), ResidualBlock(8))
        self.conv2 = SparseSequential(
            SparseConv3d(8, 13, 3, 2, 1, bias=False),
            nn.BatchNorm1d(13),
            nn.ReLU(inplace=True),
            ResidualBlock(13),
        )
        self.extra_conv = SparseSequential(
            SparseConv3d(13, 16, (3, 1, 1), (2, 1, 1), bias=False), nn.BatchNorm1d(16), nn.ReLU()
        )
        self.to_dense = SparseToDense()
        self.head = nn.Sequential(nn.Conv2d(32, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())

    def forward(self, x: SparseTensor) -> Tensor:
        x = self.extra_conv(self.conv2(self.conv1(self.conv_input(x))))
        return self.head(self.to_dense(x))


class PlainNet(nn.Module):
    """Four convolutions, three input channels, a (3, 1, 1) kernel, no residuals, own forward."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = SubMConv3d(3, 7, 3, bias=False)
        self.stem_norm = nn.BatchNorm1d(7)
        self.down = SparseSequential(
            SparseConv3d(7, 16, 3, (1, 2, 2), 1), nn.ReLU(), SubMConv3d(16, 16, 3), nn.ReLU()
        )
        self.squeeze = SparseConv3d(16, 24, (3, 1, 1), (2, 1, 1))

    def forward(self, x: SparseTensor) -> SparseTensor:
        x = self.stem(x)
        x = x.replace_features(self.stem_norm(x.features))
        return self.squeeze(self.down(x))


class InverseNet(nn.Module):
    """Encoder and decoder: an inverse convolution meets its skip in a sum."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = SparseSequential(SubMConv3d(5, 8, 3), nn.ReLU())
        self.down = SparseSequential(SparseConv3d(8, 16, 3, 2, 1, indice_key="d"), nn.ReLU())
        self.up = SparseInverseConv3d(16, 8, 3, indice_key="d")
        self.add = SparseAdd()
        self.last = SubMConv3d(8, 8, 1)

    def forward(self, x: SparseTensor) -> SparseTensor:
        skip = self.stem(x)
        return self.last(self.add(self.up(self.down(skip)), skip))


class PointwiseNet(nn.Module):
    """1×1×1 convolutions, submanifold and strided, one of them with nothing but a bias after it."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = SparseSequential(
            SubMConv3d(5, 24, 1, bias=False),
            nn.BatchNorm1d(24),
            nn.ReLU(),
            SubMConv3d(24, 5, 1),
            SparseConv3d(5, 9, 1, 2),
            nn.ReLU(),
            SubMConv3d(9, 1, 3),
        )

    def forward(self, x: SparseTensor) -> SparseTensor:
        return self.layers(x)


NETWORKS = {
    "residual": (ResidualNet, 5),
    "plain": (PlainNet, 3),
    "inverse": (InverseNet, 5),
    "pointwise": (PointwiseNet, 5),
}


def build_network(name: str) -> nn.Module:
    """Seeded network whose batch norms have seen data."""
    kind, channels = NETWORKS[name]
    with torch.random.fork_rng():
        torch.manual_seed(7)
        network = kind()
        for module in network.modules():
            if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.normal_(module.bias, std=0.3)
        network.train()
        with torch.no_grad():
            for seed in range(6):
                network(build_frame(seed, channels=channels))
    return network.eval()


@pytest.fixture(scope="session")
def make_frame() -> MakeFrame:
    return build_frame


@pytest.fixture(scope="session")
def make_network() -> Callable[[str], nn.Module]:
    return build_network


@pytest.fixture(params=list(NETWORKS))
def network_name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def frames_of(make_frame: MakeFrame) -> Callable[[str], list[SparseTensor]]:
    """Four calibration frames for a network."""

    def build(name: str) -> list[SparseTensor]:
        return [make_frame(seed, channels=NETWORKS[name][1]) for seed in range(4)]

    return build


@pytest.fixture
def calibrated(
    make_network: Callable[[str], nn.Module], frames_of: Callable[[str], list[SparseTensor]]
) -> Callable[..., Any]:
    """Calibrated fake-quant network by name and recipe."""

    def build(name: str, recipe: Any = "int8") -> nn.Module:
        import voxelquant as vq

        qmodel = vq.quantize(make_network(name), recipe)
        vq.calibrate(qmodel, frames_of(name))
        return qmodel

    return build
