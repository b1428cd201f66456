"""Small networks built of `spconv.pytorch`, each in the manner of a code base that people use.

Import it only where spconv is installed. The manner is what matters: how a block sums, who makes
the sparse tensor, what a forward takes and returns.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import spconv.pytorch as spconv
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from spconv_ground import GRID, batchnorm, make_voxels

Frame = Any


class Det3dBlock(spconv.SparseModule):
    """CenterPoint's own: `replace_feature` with `+`, one ReLU module twice, convs with bias."""

    def __init__(self, channels: int, indice_key: str) -> None:
        super().__init__()
        conv = partial(spconv.SubMConv3d, channels, channels, 3, padding=1, bias=True)
        self.conv1 = conv(indice_key=indice_key)
        self.bn1 = batchnorm(channels)
        self.relu = nn.ReLU()
        self.conv2 = conv(indice_key=indice_key)
        self.bn2 = batchnorm(channels)

    def forward(self, x: spconv.SparseConvTensor) -> spconv.SparseConvTensor:
        identity = x
        out = self.conv1(x)
        out = out.replace_feature(self.bn1(out.features))
        out = out.replace_feature(self.relu(out.features))
        out = self.conv2(out)
        out = out.replace_feature(self.bn2(out.features))
        out = out.replace_feature(out.features + identity.features)
        return out.replace_feature(self.relu(out.features))


class Det3dBackbone(nn.Module):
    """CenterPoint's SpMiddleResNetFHD: its state keys are those of this package's backbone."""

    def __init__(self, channels: tuple[int, ...]) -> None:
        super().__init__()
        first, *_, last = channels
        self.conv_input = spconv.SparseSequential(
            spconv.SubMConv3d(5, first, 3, bias=False, indice_key="res0"),
            batchnorm(first),
            nn.ReLU(inplace=True),
        )
        self.conv1 = spconv.SparseSequential(Det3dBlock(first, "res0"), Det3dBlock(first, "res0"))
        self.conv2 = self._stage(channels[1], channels[2], 1, "res1")
        self.conv3 = self._stage(channels[2], channels[3], 1, "res2")
        self.conv4 = self._stage(channels[3], channels[4], [0, 1, 1], "res3")
        self.extra_conv = spconv.SparseSequential(
            spconv.SparseConv3d(last, last, (3, 1, 1), (2, 1, 1), bias=False),
            batchnorm(last),
            nn.ReLU(),
        )

    @staticmethod
    def _stage(c_in: int, c_out: int, padding: Any, key: str) -> nn.Module:
        return spconv.SparseSequential(
            spconv.SparseConv3d(c_in, c_out, 3, 2, padding=padding, bias=False),
            batchnorm(c_out),
            nn.ReLU(inplace=True),
            Det3dBlock(c_out, key),
            Det3dBlock(c_out, key),
        )

    def forward(
        self, voxel_features: Tensor, coors: Tensor, batch_size: int
    ) -> tuple[Tensor, dict[str, Any]]:
        x = spconv.SparseConvTensor(voxel_features, coors, GRID, batch_size)
        x = self.conv_input(x)
        x_conv1 = self.conv1(x)
        x_conv2 = self.conv2(x_conv1)
        x_conv3 = self.conv3(x_conv2)
        x_conv4 = self.conv4(x_conv3)
        ret = self.extra_conv(x_conv4).dense()
        n, c, d, h, w = ret.shape
        ret = ret.view(n, c * d, h, w)
        return ret, {"conv1": x_conv1, "conv2": x_conv2, "conv3": x_conv3, "conv4": x_conv4}


class Det3dDetector(nn.Module):
    """Reader, backbone and a dense part; takes the collated example, as VoxelNet does."""

    def __init__(self, channels: tuple[int, ...] = (8, 8, 16, 24, 32)) -> None:
        super().__init__()
        self.backbone = Det3dBackbone(channels)
        self.neck = nn.Sequential(
            nn.Conv2d(2 * channels[-1], 8, 1), nn.BatchNorm2d(8), nn.ReLU(inplace=True)
        )

    def forward(self, example: dict[str, Any], return_loss: bool = True) -> Tensor:
        reader = example["voxels"].mean(1)
        bev, _ = self.backbone(reader, example["coordinates"], example["batch_size"])
        out = self.neck(bev)
        return out.square().mean() if return_loss else out

    @staticmethod
    def frame(seed: int, device: str = "cpu", batch: int = 1, **more: Any) -> Frame:
        features, coords = make_voxels(seed, device=device, batch=batch, **more)
        voxels = features[:, None, :].repeat(1, 2, 1)
        return {"voxels": voxels, "coordinates": coords, "batch_size": batch}, False


class PcdetBlock(spconv.SparseModule):
    """OpenPCDet's SparseBasicBlock: a norm function, a bias flag, an optional downsample."""

    def __init__(self, channels: int, norm_fn: Callable[[int], nn.Module], key: str) -> None:
        super().__init__()
        conv = partial(spconv.SubMConv3d, kernel_size=3, stride=1, padding=1, bias=True)
        self.conv1 = conv(channels, channels, indice_key=key)
        self.bn1 = norm_fn(channels)
        self.relu = nn.ReLU()
        self.conv2 = conv(channels, channels, indice_key=key)
        self.bn2 = norm_fn(channels)
        self.downsample = None

    def forward(self, x: spconv.SparseConvTensor) -> spconv.SparseConvTensor:
        identity = x if self.downsample is None else self.downsample(x)
        out = self.conv1(x)
        out = replace_feature(out, self.bn1(out.features))
        out = replace_feature(out, self.relu(out.features))
        out = self.conv2(out)
        out = replace_feature(out, self.bn2(out.features))
        out = replace_feature(out, out.features + identity.features)
        return replace_feature(out, self.relu(out.features))


def replace_feature(out: Any, features: Tensor) -> Any:
    """As OpenPCDet and mmdetection3d write it, for spconv 1 and 2."""
    if "replace_feature" in out.__dir__():
        return out.replace_feature(features)
    out.features = features
    return out


class PcdetBackbone(nn.Module):
    """OpenPCDet's VoxelResBackBone8x: everything passes through one dictionary."""

    def __init__(self, norm_fn: Callable[[int], nn.Module] = batchnorm) -> None:
        super().__init__()

        def post_act(c_in: int, c_out: int, stride: int, key: str) -> nn.Module:
            if stride == 1:
                conv = spconv.SubMConv3d(c_in, c_out, 3, bias=False, padding=1, indice_key=key)
            else:
                conv = spconv.SparseConv3d(
                    c_in, c_out, 3, stride=stride, padding=1, bias=False, indice_key=key
                )
            return spconv.SparseSequential(conv, norm_fn(c_out), nn.ReLU())

        self.conv_input = spconv.SparseSequential(
            spconv.SubMConv3d(5, 8, 3, padding=1, bias=False, indice_key="subm1"),
            norm_fn(8),
            nn.ReLU(),
        )
        self.conv1 = spconv.SparseSequential(PcdetBlock(8, norm_fn, "res1"))
        self.conv2 = spconv.SparseSequential(
            post_act(8, 16, 2, "spconv2"), PcdetBlock(16, norm_fn, "res2")
        )
        self.conv_out = spconv.SparseSequential(
            spconv.SparseConv3d(
                16, 24, (3, 1, 1), stride=(2, 1, 1), bias=False, indice_key="spconv_down2"
            ),
            norm_fn(24),
            nn.ReLU(),
        )

    def forward(self, batch_dict: dict[str, Any]) -> dict[str, Any]:
        x = spconv.SparseConvTensor(
            features=batch_dict["voxel_features"],
            indices=batch_dict["voxel_coords"].int(),
            spatial_shape=list(GRID),
            batch_size=batch_dict["batch_size"],
        )
        x_conv1 = self.conv1(self.conv_input(x))
        x_conv2 = self.conv2(x_conv1)
        batch_dict.update({"encoded_spconv_tensor": self.conv_out(x_conv2)})
        batch_dict.update({"multi_scale_3d_features": {"x_conv1": x_conv1, "x_conv2": x_conv2}})
        return batch_dict


class HeightCompression(nn.Module):
    def forward(self, batch_dict: dict[str, Any]) -> dict[str, Any]:
        features = batch_dict["encoded_spconv_tensor"].dense()
        n, c, d, h, w = features.shape
        batch_dict["spatial_features"] = features.view(n, c * d, h, w)
        return batch_dict


class PcdetDetector(nn.Module):
    """OpenPCDet's Detector3DTemplate: modules in a list, one dictionary through all."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone_3d = PcdetBackbone()
        self.map_to_bev_module = HeightCompression()
        self.dense_head = nn.Conv2d(240, 4, 1)

    def forward(self, batch_dict: dict[str, Any]) -> Tensor:
        for module in (self.backbone_3d, self.map_to_bev_module):
            batch_dict = module(batch_dict)
        return self.dense_head(batch_dict["spatial_features"])

    @staticmethod
    def frame(seed: int, device: str = "cpu", batch: int = 1, **more: Any) -> Frame:
        features, coords = make_voxels(seed, device=device, batch=batch, **more)
        return {"voxel_features": features, "voxel_coords": coords.float(), "batch_size": batch}


class MmdetBlock(spconv.SparseModule):
    """mmdetection3d's SparseBasicBlock: norms by name, the identity as bare features."""

    def __init__(self, channels: int, key: str) -> None:
        super().__init__()
        self.norm1_name, self.norm2_name = "bn1", "bn2"
        self.conv1 = spconv.SubMConv3d(channels, channels, 3, 1, 1, bias=False, indice_key=key)
        self.add_module(self.norm1_name, batchnorm(channels))
        self.conv2 = spconv.SubMConv3d(channels, channels, 3, 1, 1, bias=False, indice_key=key)
        self.add_module(self.norm2_name, batchnorm(channels))
        self.relu = nn.ReLU(inplace=True)

    @property
    def norm1(self) -> nn.Module:
        return getattr(self, self.norm1_name)

    @property
    def norm2(self) -> nn.Module:
        return getattr(self, self.norm2_name)

    def forward(self, x: spconv.SparseConvTensor) -> spconv.SparseConvTensor:
        identity = x.features
        out = self.conv1(x)
        out = replace_feature(out, self.norm1(out.features))
        out = replace_feature(out, self.relu(out.features))
        out = self.conv2(out)
        out = replace_feature(out, self.norm2(out.features))
        out = replace_feature(out, out.features + identity)
        return replace_feature(out, self.relu(out.features))


class MmdetEncoder(nn.Module):
    """mmdetection3d's SparseEncoder with basic blocks: the strided conv ends each stage."""

    def __init__(self) -> None:
        super().__init__()
        self.conv_input = self._conv(spconv.SubMConv3d, 5, 8, 3, 1, 1, "subm1")
        self.encoder_layers = spconv.SparseSequential()
        for stage, (c_in, c_out) in enumerate(((8, 16), (16, 16)), 1):
            members = [MmdetBlock(c_in, f"subm{stage}"), MmdetBlock(c_in, f"subm{stage}")]
            if stage == 1:
                key = f"spconv{stage}"
                members.append(self._conv(spconv.SparseConv3d, c_in, c_out, 3, 2, 1, key))
            self.encoder_layers.add_module(
                f"encoder_layer{stage}", spconv.SparseSequential(*members)
            )
        self.conv_out = self._conv(
            spconv.SparseConv3d, 16, 24, (3, 1, 1), (2, 1, 1), 0, "spconv_down2"
        )

    @staticmethod
    def _conv(kind: Any, c_in: int, c_out: int, k: Any, s: Any, p: Any, key: str) -> nn.Module:
        conv = kind(c_in, c_out, k, s, p, bias=False, indice_key=key)
        return spconv.SparseSequential(conv, batchnorm(c_out), nn.ReLU(inplace=True))

    def forward(self, voxel_features: Tensor, coors: Tensor, batch_size: int) -> Tensor:
        x = spconv.SparseConvTensor(voxel_features, coors.int(), GRID, batch_size)
        x = self.conv_input(x)
        levels = []
        for encoder_layer in self.encoder_layers:
            x = encoder_layer(x)
            levels.append(x)
        out = self.conv_out(levels[-1])
        spatial_features = out.dense()
        n, c, d, h, w = spatial_features.shape
        return spatial_features.view(n, c * d, h, w)

    @staticmethod
    def frame(seed: int, device: str = "cpu", batch: int = 1, **more: Any) -> Frame:
        features, coords = make_voxels(seed, device=device, batch=batch, **more)
        return features, coords, batch


class InPlaceBlock(spconv.SparseModule):
    """Sums in place, rectifies with functions: the tensor object stays, its value changes."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = spconv.SubMConv3d(channels, channels, 3, bias=False, indice_key="a")
        self.norm = batchnorm(channels)
        self.conv2 = spconv.SubMConv3d(channels, channels, 3, bias=True, indice_key="a")

    def forward(self, x: spconv.SparseConvTensor) -> spconv.SparseConvTensor:
        out = self.conv1(x)
        out = out.replace_feature(F.relu(self.norm(out.features), inplace=True))
        out = self.conv2(out)
        features = out.features
        features += x.features
        return out.replace_feature(torch.relu_(features))


class ResidualSequential(spconv.SparseSequential):
    """A container that runs its members and sums afterwards, twice, once by `torch.add`."""

    def forward(self, x: spconv.SparseConvTensor) -> spconv.SparseConvTensor:
        out = super().forward(x)
        out = out + x
        return out.replace_feature(torch.add(x.features, other=out.features))


class OddNet(nn.Module):
    """Ways that the code bases above do not take: 1×1×1 kernels, an inverse convolution, tables."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = spconv.SparseSequential(
            spconv.SubMConv3d(5, 8, 3, indice_key="s"), spconv.SparseReLU()
        )
        self.point = spconv.SparseSequential(
            spconv.SubMConv3d(8, 12, 1, bias=False), spconv.SparseBatchNorm(12), nn.ReLU()
        )
        self.mix = spconv.SparseConv3d(12, 8, 1)
        self.block = InPlaceBlock(8)
        self.residual = ResidualSequential(spconv.SubMConv3d(8, 8, 3, indice_key="r"), nn.ReLU())
        self.down = spconv.SparseSequential(
            spconv.SparseConv3d(8, 16, 3, 2, 1, indice_key="d"), nn.ReLU()
        )
        self.up = spconv.SparseInverseConv3d(16, 8, 3, indice_key="d")
        self.table = spconv.AddTable()
        self.last = spconv.SubMConv3d(8, 6, 1)

    def forward(self, x: spconv.SparseConvTensor) -> spconv.SparseConvTensor:
        x = self.mix(self.point(self.stem(x)))
        skip = self.residual(self.block(x))
        return self.last(self.table([self.up(self.down(skip)), skip]))

    @staticmethod
    def frame(seed: int, device: str = "cpu", batch: int = 1, **more: Any) -> Frame:
        features, coords = make_voxels(seed, device=device, batch=batch, **more)
        return spconv.SparseConvTensor(features, coords, GRID, batch)


NETWORKS: dict[str, Any] = {
    "det3d": Det3dDetector,
    "pcdet": PcdetDetector,
    "mmdet": MmdetEncoder,
    "odd": OddNet,
}


def build_network(name: str, device: str = "cpu", *args: Any) -> nn.Module:
    """Seeded network whose batch norms are those of a trained one, in eval mode."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(11)
        network: nn.Module = NETWORKS[name](*args)
        for module in network.modules():
            if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.normal_(module.bias, std=0.3)
                nn.init.normal_(module.running_mean, std=0.1)
                nn.init.uniform_(module.running_var, 0.05, 0.3)
    return network.to(device).eval()
