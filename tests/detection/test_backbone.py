"""The sparse backbone against dense convolutions with explicit sets of active sites."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from voxelquant.detection.backbone import SparseResidualBlock, SpMiddleResNetFHD
from voxelquant.detection.config_schema import BackboneConfig
from voxelquant.sparse import SparseTensor, trace_sparse_graph

SHAPE = (41, 32, 32)
CONFIG = BackboneConfig(in_channels=3, channels=(4, 4, 6, 8, 10))


def _sparse(n_sites: int, channels: int, seed: int = 0) -> SparseTensor:
    generator = torch.Generator().manual_seed(seed)
    flat = torch.randperm(SHAPE[0] * SHAPE[1] * SHAPE[2], generator=generator)[:n_sites]
    z, y, x = flat // 1024, flat // 32 % 32, flat % 32
    coords = torch.stack([torch.zeros_like(z), z, y, x], 1)
    features = torch.randn(n_sites, channels, generator=generator)
    return SparseTensor.from_coords(features, coords, SHAPE, 1)


def _randomise_batchnorm(module: nn.Module) -> None:
    for norm in module.modules():
        if isinstance(norm, nn.BatchNorm1d):
            nn.init.uniform_(norm.weight, 0.5, 1.5)
            nn.init.normal_(norm.bias, std=0.3)
            nn.init.normal_(norm.running_mean, std=0.3)
            nn.init.uniform_(norm.running_var, 0.5, 2.0)


class _Dense:
    """The same network on dense grids: a mask of active sites beside the values."""

    def __init__(self, values: Tensor, mask: Tensor) -> None:
        self.values = values * mask
        self.mask = mask

    def conv(self, conv: nn.Module, stride, padding, *, subm: bool) -> "_Dense":
        weight = conv.weight.permute(0, 4, 1, 2, 3)
        values = functional.conv3d(self.values, weight, None, stride, padding)
        if conv.bias is not None:
            values = values + conv.bias.view(1, -1, 1, 1, 1)
        reach = torch.ones(1, 1, *weight.shape[2:])
        reached = (functional.conv3d(self.mask, reach, None, stride, padding) > 0).float()
        return _Dense(values, self.mask if subm else reached)

    def norm(self, norm: nn.BatchNorm1d) -> "_Dense":
        scale = norm.weight / torch.sqrt(norm.running_var + 1e-3)
        shift = norm.bias - norm.running_mean * scale
        values = self.values * scale.view(1, -1, 1, 1, 1) + shift.view(1, -1, 1, 1, 1)
        return _Dense(values, self.mask)

    def relu(self) -> "_Dense":
        return _Dense(self.values.clamp(min=0), self.mask)

    def block(self, block: SparseResidualBlock) -> "_Dense":
        out = self.conv(block.conv1, 1, 1, subm=True).norm(block.bn1).relu()
        out = out.conv(block.conv2, 1, 1, subm=True).norm(block.bn2)
        return _Dense(out.values + self.values, self.mask).relu()


def _dense_backbone(net: SpMiddleResNetFHD, x: SparseTensor) -> Tensor:
    mask = x.replace_features(torch.ones(len(x.sites), 1)).dense()
    grid = _Dense(x.dense(), mask)
    grid = grid.conv(net.conv_input[0], 1, 1, subm=True).norm(net.conv_input[1]).relu()
    grid = grid.block(net.conv1[0]).block(net.conv1[1])
    for stage, padding in ((net.conv2, 1), (net.conv3, 1), (net.conv4, (0, 1, 1))):
        grid = grid.conv(stage[0], 2, padding, subm=False).norm(stage[1]).relu()
        grid = grid.block(stage[3]).block(stage[4])
    last = net.extra_conv
    return grid.conv(last[0], (2, 1, 1), 0, subm=False).norm(last[1]).relu().values


def test_backbone_equals_dense_convolutions_and_folds_height() -> None:
    torch.manual_seed(0)
    net = SpMiddleResNetFHD(CONFIG).eval()
    _randomise_batchnorm(net)
    x = _sparse(300, 3)
    with torch.no_grad():
        got, dense = net(x), _dense_backbone(net, x)
    assert dense.shape == (1, 10, 2, 4, 4)
    assert got.shape == (1, 20, 4, 4)
    for channel in range(10):
        for z in range(2):
            torch.testing.assert_close(
                got[:, channel * 2 + z], dense[:, channel, z], rtol=1e-4, atol=1e-5
            )
    assert dense.abs().max().item() > 0.1


def test_residual_block_leaves_its_input_untouched() -> None:
    block = SparseResidualBlock(4).eval()
    x = _sparse(50, 4)
    before = x.features.clone()
    block(x)
    assert torch.equal(x.features, before)


@pytest.mark.parametrize(
    ("path", "stride", "padding", "in_shape", "out_shape"),
    [
        ("conv_input.0", (1, 1, 1), None, (41, 32, 32), (41, 32, 32)),
        ("conv2.0", (2, 2, 2), (1, 1, 1), (41, 32, 32), (21, 16, 16)),
        ("conv3.0", (2, 2, 2), (1, 1, 1), (21, 16, 16), (11, 8, 8)),
        ("conv4.0", (2, 2, 2), (0, 1, 1), (11, 8, 8), (5, 4, 4)),
        ("extra_conv.0", (2, 1, 1), (0, 0, 0), (5, 4, 4), (2, 4, 4)),
    ],
)
def test_geometry_of_each_stage(path, stride, padding, in_shape, out_shape) -> None:
    net = SpMiddleResNetFHD(CONFIG)
    graph = trace_sparse_graph(net, _sparse(300, 3))
    node = next(node for node in graph.nodes if node.path == path)
    assert (node.in_spatial_shape, node.out_spatial_shape) == (in_shape, out_shape)
    geometry = node.module.geometry
    assert geometry.stride == stride
    assert geometry.subm == (padding is None)
    if padding is not None:
        assert geometry.padding == padding


def test_traced_graph_names_every_operation() -> None:
    graph = trace_sparse_graph(SpMiddleResNetFHD(CONFIG), _sparse(300, 3))
    kinds = [node.kind for node in graph.nodes]
    assert {kind: kinds.count(kind) for kind in set(kinds)} == {
        "conv": 21,
        "batchnorm": 21,
        "relu": 21,
        "add": 8,
        "to_dense": 1,
    }
    paths = [node.path for node in graph.nodes]
    assert len(set(paths)) == len(paths)
    assert kinds[-1] == "to_dense"


def test_submanifold_stages_share_kernel_maps() -> None:
    x = _sparse(300, 3)
    net = SpMiddleResNetFHD(CONFIG).eval()
    net(x)
    assert len(x.sites._maps) == 2  # one submanifold map for five convs, one for conv2
