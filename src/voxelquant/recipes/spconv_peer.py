"""The peer: the same folded network built of `spconv.pytorch` (2.3), as fast as spconv runs it.

Batch norms are folded and biases lie inside the convolutions; ReLUs and sums work in place; index
pairs are shared per level. Every algorithm and sort setting is tried and the fastest is reported.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

from voxelquant.errors import GraphError, MissingDependencyError
from voxelquant.quant import GRAPH_INPUT, FusedNode, quantization_of
from voxelquant.recipes.bench_frames import BenchFrame


@dataclass(frozen=True)
class PeerVariant:
    """One way to run spconv.

    Attributes:
        algorithm: name in `spconv.pytorch.ConvAlgo`.
        sort: whether implicit GEMM sorts rows by their neighbour mask (`SPCONV_DO_SORT`).
        fused_relu: whether convolutions rectify themselves; else an in-place ReLU follows.
    """

    algorithm: str
    sort: bool = True
    fused_relu: bool = False

    def __str__(self) -> str:
        sort = "" if self.algorithm == "Native" else ", sorted" if self.sort else ", unsorted"
        return f"{self.algorithm}{sort}{', fused ReLU' if self.fused_relu else ''}"

    @property
    def with_fused_relu(self) -> PeerVariant:
        """The same with ReLUs in the convolutions."""
        return replace(self, fused_relu=True)


# In `Native` spconv 2.3 hands a fused activation on in the wrong argument, so it stays apart there.
VARIANTS = (
    PeerVariant("Native"),
    PeerVariant("MaskImplicitGemm", sort=True),
    PeerVariant("MaskImplicitGemm", sort=False),
    PeerVariant("MaskSplitImplicitGemm", sort=True),
    PeerVariant("MaskSplitImplicitGemm", sort=False),
)


def require_spconv() -> Any:
    """The module `spconv.pytorch`.

    Raises:
        MissingDependencyError: it cannot be imported.
    """
    try:
        return import_module("spconv.pytorch")
    except (ImportError, OSError) as error:  # OSError: a shared library of another CUDA is missing
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise MissingDependencyError(
            f"got no spconv.pytorch ({reason}), need it for --against spconv; "
            "pip install spconv-cu126==2.3.8, or leave --against out"
        ) from error


class SpconvPeer(nn.Module):
    """A fused network executed by spconv.

    Args:
        fake: fake-quant model of recipe `fp16`, batch norms folded.
        frame: gives grid and device.
        variant: how spconv runs it.
        dtype: of weights and features.

    Raises:
        MissingDependencyError: no spconv.
        GraphError: the network holds what this peer does not build.
    """

    def __init__(
        self,
        fake: nn.Module,
        frame: BenchFrame,
        variant: PeerVariant,
        dtype: torch.dtype = torch.float16,
    ) -> None:
        super().__init__()
        self.spconv = require_spconv()
        self.spatial_shape = list(frame.spatial_shape)
        self.variant = variant
        self.dtype = dtype
        graph = quantization_of(fake).require_plan().graph
        self.nodes = graph.nodes
        self.single_use = {node.name: len(graph.consumers(node.name)) == 1 for node in self.nodes}
        self.convs = nn.ModuleDict()
        level: dict[str, int] = {GRAPH_INPUT: 0}
        for node in self.nodes:
            level[node.name] = level[node.inputs[0]]
            if node.kind != "conv":
                continue
            if node.geometry is None or node.inverse:
                raise GraphError(f"{node.path}: got an inverse convolution, which no peer is for")
            level[node.name] += not node.geometry.subm
            conv = self._convolution(fake.get_submodule(node.path), node, level[node.name])
            self.convs[_key(node.path)] = conv
        self.to(frame.features.device, dtype).eval()

    def _convolution(self, own: Any, node: FusedNode, level: int) -> nn.Module:
        geometry = node.geometry
        assert geometry is not None
        c_out, *_, c_in = own.weight.shape
        common = {
            "bias": own.bias is not None,
            "algo": getattr(self.spconv.ConvAlgo, self.variant.algorithm),
            "dilation": list(geometry.dilation),
        }
        kernel = list(geometry.kernel_size)
        if geometry.subm:
            key = f"level{level}_{'x'.join(map(str, [*kernel, *geometry.dilation]))}"
            conv = self.spconv.SubMConv3d(c_in, c_out, kernel, indice_key=key, **common)
        else:
            stride, padding = list(geometry.stride), list(geometry.padding)
            conv = self.spconv.SparseConv3d(c_in, c_out, kernel, stride, padding, **common)
        conv.weight.data.copy_(own.weight.detach())
        if own.bias is not None:
            conv.bias.data.copy_(own.bias.detach())
        if self.variant.fused_relu and node.relu_path is not None:
            conv.act_type = import_module("cumm.tensorview").gemm.Activation.ReLU
        return conv

    def forward(self, features: Tensor, coords_bzyx: Tensor, batch_size: int) -> Tensor:
        """Dense map `[b, c * z, y, x]` of voxels on the peer's device."""
        x = self.spconv.SparseConvTensor(features, coords_bzyx, self.spatial_shape, batch_size)
        values = {GRAPH_INPUT: x}
        dense = None
        for node in self.nodes:
            operands = [values[name] for name in node.inputs]
            if node.kind == "conv":
                out = self.convs[_key(node.path)](operands[0])
                if node.relu_path is not None and not self.variant.fused_relu:
                    out.features.relu_()
            elif node.kind == "add":
                out = self._sum(node, *operands)
            else:
                dense = operands[0].dense()
                break
            values[node.name] = out
        if dense is None:
            raise GraphError("got a network without a dense map at its end, need one to compare")
        result: Tensor = dense.view(dense.shape[0], -1, *dense.shape[-2:])
        return result

    def _sum(self, node: FusedNode, a: Any, b: Any) -> Any:
        if self.single_use[node.inputs[0]]:
            total = a.features.add_(b.features)
        else:
            total = a.features + b.features
        return a.replace_feature(total.relu_() if node.relu_path is not None else total)

    def call(self, frame: BenchFrame) -> Callable[[], Tensor]:
        """A call on a frame; features are handed over in the peer's own type."""
        features = frame.features.to(self.dtype)

        def run() -> Tensor:
            with torch.no_grad(), sorting(self.variant.sort):
                out: Tensor = self(features, frame.coords_bzyx, frame.batch_size)
            return out

        return run


@contextmanager
def sorting(enabled: bool) -> Iterator[None]:
    """Inside, implicit GEMM sorts or does not: `SPCONV_DO_SORT`, which is read once on import."""
    ops: Any = import_module("spconv.pytorch.ops")
    original = ops.get_indice_pairs_implicit_gemm
    ops.get_indice_pairs_implicit_gemm = partial(original, do_sort=enabled)
    try:
        yield
    finally:
        ops.get_indice_pairs_implicit_gemm = original


def _key(path: str) -> str:
    """A module path as a key of a ModuleDict, which allows no dots."""
    return path.replace(".", "/")
