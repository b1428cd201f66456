"""Fold batch norms into the convolutions before them, and round the result to fp16."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from voxelquant.errors import GraphError, QuantStateError
from voxelquant.numerics import round_to_float16
from voxelquant.quant.substitute import substitute_modules
from voxelquant.quant.topology import FusedGraph
from voxelquant.sparse import BATCHNORMS, require_convolution


def fold_batchnorm(model: nn.Module, graph: FusedGraph) -> None:
    """Fold every batch norm of the graph and round all convolutions to fp16, in place.

    `w' = w γ / √(var + ε)` and `b' = (b - mean) γ / √(var + ε) + β` in float64. The values are
    rounded to fp16 once, before any range is taken, because the deployed file holds fp16. A folded
    norm becomes `nn.Identity`, so that module paths do not move.

    Raises:
        GraphError: a norm keeps no running statistics.
        QuantStateError: a folded weight or bias is not finite in fp16; layer and channel named.
    """
    convs = [node for node in graph.nodes if node.kind == "conv"]
    folded: dict[str, tuple[Tensor, Tensor | None]] = {}
    for node in convs:
        conv = require_convolution(model, node.path)
        norm = None if node.batchnorm_path is None else model.get_submodule(node.batchnorm_path)
        weight, bias = conv.weight.detach().double(), _double(conv.bias)
        if isinstance(norm, BATCHNORMS):
            weight, bias = folded_values(weight, bias, norm, str(node.batchnorm_path))
        folded[node.path] = (
            float16_values(weight, node.path, "weight"),
            None if bias is None else float16_values(bias, node.path, "bias"),
        )
    for path, (weight, bias) in folded.items():
        conv = require_convolution(model, path)
        trains = conv.weight.requires_grad
        conv.module.weight = nn.Parameter(conv.own_layout(weight), requires_grad=trains)
        if bias is not None:
            conv.module.bias = nn.Parameter(bias, requires_grad=trains)
    remove_batchnorms(model, graph)


def remove_batchnorms(model: nn.Module, graph: FusedGraph) -> None:
    """Put `nn.Identity` where a folded norm stood."""
    paths = [node.batchnorm_path for node in graph.nodes if node.batchnorm_path is not None]
    substitute_modules(model, {path: nn.Identity() for path in paths})


def folded_values(
    weight: Tensor, bias: Tensor | None, norm: nn.BatchNorm1d | nn.SyncBatchNorm, path: str
) -> tuple[Tensor, Tensor]:
    """Weight and bias, both float64, of a convolution that does the work of its batch norm too.

    Raises:
        GraphError: the norm keeps no running statistics.
    """
    if norm.running_mean is None or norm.running_var is None:
        raise GraphError(
            f"{path}: got a batch norm without running statistics, need them to fold it; train it "
            "with track_running_stats=True"
        )
    factor = (norm.running_var.double() + norm.eps).rsqrt()  # [c_out]
    if norm.weight is not None:
        factor = factor * norm.weight.detach().double()
    shift = -norm.running_mean.double() if bias is None else bias - norm.running_mean.double()
    new_bias = shift * factor
    if norm.bias is not None:
        new_bias = new_bias + norm.bias.detach().double()
    return weight * factor.view(-1, 1, 1, 1, 1), new_bias


def float16_values(x: Tensor, path: str, what: str) -> Tensor:
    """Values after one rounding to fp16, in float32.

    Raises:
        QuantStateError: one is not finite then; layer and channel named.
    """
    rounded = round_to_float16(x)  # from float64 in one rounding
    bad = torch.nonzero(~torch.isfinite(rounded.reshape(rounded.shape[0], -1)).all(1)).reshape(-1)
    if bad.numel():
        channel = int(bad[0])
        worst = float(x[channel].abs().max())
        raise QuantStateError(
            f"{path}: got a {what} of magnitude {worst:g} in output channel {channel} after "
            "folding, need finite values of at most 65504 (fp16); check the checkpoint and the "
            "running variance of this channel"
        )
    return rounded


def _double(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.detach().double()
