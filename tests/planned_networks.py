"""Small networks whose results are dense maps, calibrated and lowered, with frames for them."""

import torch
from torch import Tensor, nn

import voxelquant as vq
from oracles.sparse_sites import random_sites
from voxelquant.quant.int8_modules import Fp16SparseConv3d
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

GRID = (12, 9, 10)
BATCH = 3


class Block(SparseModule):
    """conv, ReLU, conv, sum, ReLU."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = SubMConv3d(channels, channels, 3)
        self.conv2 = SubMConv3d(channels, channels, 3)
        self.add = SparseAdd()
        self.relu = nn.ReLU()

    def forward(self, x: SparseTensor) -> SparseTensor:
        out = self.conv2(apply_module(self.relu, self.conv1(x)))
        return apply_module(self.relu, self.add(out, x))


class Residual(nn.Module):
    """Names as in CenterPoint's backbone, so that its recipes find their layers."""

    def __init__(self) -> None:
        super().__init__()
        self.conv_input = SparseSequential(SubMConv3d(5, 8, 3), nn.ReLU())
        self.conv1 = SparseSequential(Block(8))
        self.conv2 = SparseSequential(SparseConv3d(8, 13, 3, 2, 1), nn.ReLU(), Block(13))
        self.extra_conv = SparseSequential(SparseConv3d(13, 16, (3, 1, 1), (2, 1, 1)), nn.ReLU())
        self.to_dense = SparseToDense()

    def forward(self, x: SparseTensor) -> Tensor:
        return self.to_dense(self.extra_conv(self.conv2(self.conv1(self.conv_input(x)))))


class UpAndDown(nn.Module):
    """An inverse convolution meets its skip in a sum."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = SparseSequential(SubMConv3d(5, 8, 3), nn.ReLU())
        self.down = SparseSequential(SparseConv3d(8, 16, 3, 2, 1, indice_key="d"), nn.ReLU())
        self.up = SparseInverseConv3d(16, 8, 3, indice_key="d")
        self.add = SparseAdd()
        self.last = SparseConv3d(8, 8, 3, 2, 1)
        self.to_dense = SparseToDense()

    def forward(self, x: SparseTensor) -> Tensor:
        skip = self.stem(x)
        return self.to_dense(self.last(self.add(self.up(self.down(skip)), skip)))


class ThreeReaders(nn.Module):
    """A tensor read by two convolutions and a sum; one summed with itself; a ReLU on its own."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a, self.b = (SubMConv3d(c, 8, 3) for c in (5, 8, 8))
        self.add1, self.add2, self.twice = SparseAdd(), SparseAdd(), SparseAdd()
        self.relu = nn.ReLU()
        self.last = SparseConv3d(8, 8, 3, 2, 1)
        self.to_dense = SparseToDense()

    def forward(self, x: SparseTensor) -> Tensor:
        x = self.stem(x)
        x = self.add2(self.add1(self.a(x), apply_module(self.relu, self.b(x))), x)
        return self.to_dense(self.last(self.twice(x, x)))


class Branches(nn.Module):
    """Two strided convolutions of one geometry read one tensor, and one of another geometry."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = SubMConv3d(5, 8, (3, 1, 3))
        self.left, self.right = SparseConv3d(8, 8, 3, 2, 1), SparseConv3d(8, 6, 3, 2, 1)
        self.other = SparseConv3d(8, 4, 2, 2)
        self.to_dense = nn.ModuleList(SparseToDense() for _ in range(3))

    def forward(self, x: SparseTensor) -> tuple[Tensor, ...]:
        x = self.stem(x)
        readers = (self.left, self.right, self.other)
        return tuple(d(conv(x)) for d, conv in zip(self.to_dense, readers, strict=True))


NETWORKS = {
    "residual": Residual,
    "up and down": UpAndDown,
    "three readers": ThreeReaders,
    "branches": Branches,
}


def make_frame(n: int, seed: int = 0) -> SparseTensor:
    """Sites in samples 0 and 2 of three, in shuffled order."""
    generator = torch.Generator().manual_seed(seed)
    coords = random_sites(n, GRID, [0, 2], seed)
    features = torch.randint(-8, 9, (n, 5), generator=generator) / 4
    return SparseTensor.from_coords(features, coords, GRID, BATCH)


def make_engine(name: str, recipe: vq.Recipe | str) -> nn.Module:
    """Lowered network whose first fp16 layers sum exactly, in any order.

    Features are multiples of 1/4 and those layers' weights multiples of 1/16: up to the third layer
    all products are multiples of 2**-14, and their sums stay below 2**10. So equal codes enter the
    integer layers, whose results are then equal by law.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        network = NETWORKS[name]().eval()
    qmodel = vq.quantize(network, recipe)
    vq.calibrate(qmodel, [make_frame(200, seed) for seed in range(2)])
    engine = vq.lower(qmodel)
    for module in engine.modules():
        if isinstance(module, Fp16SparseConv3d):
            for operand in (module.weight, module.bias):
                if operand is not None:
                    operand.copy_((operand * 16).round() / 16)
    return engine
