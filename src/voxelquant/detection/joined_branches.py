"""The branches of a task head computed as one while it trains: a wide convolution for six narrow.

All branches read the same map with kernels of one size. Their first convolutions are one whose
output channels stand side by side, and their batch norms one; their last convolutions are one whose
weight is block diagonal, so that each output reads the channels of its own branch alone. Tensor
cores have more to do in two convolutions of hundreds of channels than in a dozen, half of which
have one to three output channels. Parameters, running statistics and state dict are those of the
branches.
"""

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from voxelquant.detection.head import CenterHead, TaskHead

_ALIGNMENT = 8  # tensor cores take channels in multiples of this


def can_join(head: CenterHead) -> bool:
    """Whether every branch is convolution, batch norm in training, ReLU, convolution, all alike."""
    branches = [cast(nn.Sequential, branch) for task in head.tasks for branch in task.children()]
    kinds = [tuple(type(module) for module in branch) for branch in branches]
    if any(kind != (nn.Conv2d, nn.BatchNorm2d, nn.ReLU, nn.Conv2d) for kind in kinds):
        return False
    if not all(_is_plain(cast(nn.Conv2d, branch[i])) for branch in branches for i in (0, 3)):
        return False
    norms = [cast(nn.BatchNorm2d, branch[1]) for branch in branches]
    return all(
        norm.training
        and norm.track_running_stats
        and norm.affine
        and norm.momentum is not None
        and (norm.eps, norm.momentum) == (norms[0].eps, norms[0].momentum)
        for norm in norms
    )


def _is_plain(conv: nn.Conv2d) -> bool:
    """Whether it is a 3 x 3 convolution as `join_maps` computes it."""
    sizes = (conv.kernel_size, conv.padding, conv.stride, conv.dilation)
    ones = (1, 1)
    return (
        sizes == ((3, 3), ones, ones, ones)
        and (conv.groups, conv.padding_mode) == (1, "zeros")
        and conv.bias is not None
    )


def join_maps(head: TaskHead, shared: Tensor) -> Tensor:
    """`[b, c_shared, h, w]` → `[b, channels of all maps, h, w]`, in the order of the branches.

    Moves running statistics as the branches do.

    Args:
        head: of which `can_join` is true.
        shared: what all branches read.
    """
    branches = [_as_sequence(branch) for branch in head.children()]
    first, norms, last = (_column(branches, place) for place in (0, 1, 3))
    hidden = F.conv2d(shared, _stacked(first, "weight"), _stacked(first, "bias"), padding=1)
    hidden = _normalise(hidden, [cast(nn.BatchNorm2d, norm) for norm in norms]).relu()
    weight, bias = _block_diagonal([conv.weight for conv in last]), _stacked(last, "bias")
    spare = -len(bias) % _ALIGNMENT
    weight, bias = F.pad(weight, (0, 0, 0, 0, 0, 0, 0, spare)), F.pad(bias, (0, spare))
    return F.conv2d(hidden, weight, bias, padding=1)[:, : len(bias) - spare]


def _as_sequence(branch: nn.Module) -> nn.Sequential:
    assert isinstance(branch, nn.Sequential)
    return branch


def _column(branches: list[nn.Sequential], place: int) -> list[nn.Conv2d]:
    return [cast(nn.Conv2d, branch[place]) for branch in branches]


def _stacked(modules: list[nn.Conv2d] | list[nn.BatchNorm2d], name: str) -> Tensor:
    """A parameter or buffer of each module, one behind the other along its first axis."""
    return torch.cat([getattr(module, name) for module in modules])


def _normalise(x: Tensor, norms: list[nn.BatchNorm2d]) -> Tensor:
    """Batch norm of all branches at once; their running statistics move."""
    mean, var = _stacked(norms, "running_mean"), _stacked(norms, "running_var")
    weight, bias = _stacked(norms, "weight"), _stacked(norms, "bias")
    momentum = cast(float, norms[0].momentum)
    x = F.batch_norm(x, mean, var, weight, bias, True, momentum, norms[0].eps)
    widths = [norm.num_features for norm in norms]
    for name, moved in (("running_mean", mean), ("running_var", var)):
        torch._foreach_copy_([getattr(norm, name) for norm in norms], moved.split(widths))
    torch._foreach_add_([cast(Tensor, norm.num_batches_tracked) for norm in norms], 1)
    return x


def _block_diagonal(weights: list[Tensor]) -> Tensor:
    """`[sum of c_out, sum of c_in, k, k]`, zero where an output reads another branch."""
    total = sum(weight.shape[1] for weight in weights)
    rows, before = [], 0
    for weight in weights:
        after = total - before - weight.shape[1]
        rows.append(F.pad(weight, (0, 0, 0, 0, before, after)))
        before += weight.shape[1]
    return torch.cat(rows)
