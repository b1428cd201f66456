"""SpMiddleResNetFHD: the sparse residual backbone of CenterPoint (Yin 2021, 2006.11275).

State-dict keys are those of det3d, so that released checkpoints load as they are.
"""

from torch import Tensor, nn

from voxelquant.detection.config_schema import BackboneConfig
from voxelquant.sparse import (
    SparseAdd,
    SparseConv3d,
    SparseConvBase,
    SparseModule,
    SparseSequential,
    SparseTensor,
    SparseToDense,
    SubMConv3d,
    apply_module,
)


def sparse_batchnorm(channels: int) -> nn.BatchNorm1d:
    """BatchNorm of the sparse part: eps 1e-3, momentum 0.01."""
    return nn.BatchNorm1d(channels, eps=1e-3, momentum=0.01)


class SparseResidualBlock(SparseModule):
    """Two submanifold convolutions around a skip: relu(bn2(conv2(relu(bn1(conv1(x))))) + x).

    The convolutions have a bias although a BatchNorm follows: released checkpoints hold one.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = SubMConv3d(channels, channels, 3, bias=True)
        self.bn1 = sparse_batchnorm(channels)
        self.relu1 = nn.ReLU()
        self.conv2 = SubMConv3d(channels, channels, 3, bias=True)
        self.bn2 = sparse_batchnorm(channels)
        self.add = SparseAdd()
        self.relu2 = nn.ReLU()

    def forward(self, x: SparseTensor) -> SparseTensor:
        """`[n, c]` → `[n, c]` on the same sites."""
        out = apply_module(self.relu1, apply_module(self.bn1, self.conv1(x)))
        out = apply_module(self.bn2, self.conv2(out))
        return apply_module(self.relu2, self.add(out, x))


class SpMiddleResNetFHD(nn.Module):
    """Voxels → bird's-eye-view map of an eighth of the resolution.

    Args:
        config: input features and the channels of the five stages.
    """

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        first, *_, last = config.channels
        self.conv_input = SparseSequential(
            SubMConv3d(config.in_channels, first, 3, bias=False),
            sparse_batchnorm(first),
            nn.ReLU(),
        )
        self.conv1 = SparseSequential(SparseResidualBlock(first), SparseResidualBlock(first))
        self.conv2 = _strided_stage(*config.channels[1:3], padding=(1, 1, 1))
        self.conv3 = _strided_stage(*config.channels[2:4], padding=(1, 1, 1))
        self.conv4 = _strided_stage(*config.channels[3:5], padding=(0, 1, 1))
        self.extra_conv = SparseSequential(
            SparseConv3d(last, last, (3, 1, 1), (2, 1, 1), bias=False),
            sparse_batchnorm(last),
            nn.ReLU(),
        )
        self.to_dense = SparseToDense()
        convs = [module for module in self.modules() if isinstance(module, SparseConvBase)]
        self._geometries = [conv.geometry for conv in convs]  # in the order of a forward
        self._strided = [geometry for geometry in self._geometries if not geometry.subm]

    def forward(self, x: SparseTensor) -> Tensor:
        """Sparse voxels `[n, c_in]` → `[b, c * z, y / 8, x / 8]`, channel = c * z_cells + z."""
        # The sites of all levels first: a GPU is waited for once a level, for how many there are,
        # and has nothing else to do yet.
        self.find_sites(x)
        x = self.conv1(self.conv_input(x))
        x = self.conv4(self.conv3(self.conv2(x)))
        dense: Tensor = self.to_dense(self.extra_conv(x))
        return dense

    def find_sites(self, x: SparseTensor) -> None:
        """Build the maps that lead from level to level, and keep them with the sites of `x`."""
        sites = x.sites
        for geometry in self._strided:
            _, sites = sites.kernel_map(geometry)

    def build_maps(self, x: SparseTensor) -> None:
        """Build every kernel map, so that a forward on `x` waits for nothing; no weight is read."""
        self.find_sites(x)
        sites = x.sites
        for geometry in self._geometries:
            _, sites = sites.kernel_map(geometry)


def _strided_stage(c_in: int, c_out: int, *, padding: tuple[int, int, int]) -> SparseSequential:
    return SparseSequential(
        SparseConv3d(c_in, c_out, 3, 2, padding, bias=False),
        sparse_batchnorm(c_out),
        nn.ReLU(),
        SparseResidualBlock(c_out),
        SparseResidualBlock(c_out),
    )
