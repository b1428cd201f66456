"""Quantized layers of spconv one by one against this package's reference, given equal inputs.

From end to end a code on a tie that falls on its other side changes all that follows, so networks
are only as near as their quantization noise; single layers are as near as float32 sums in another
order. Import it only where spconv is installed.
"""

from dataclasses import dataclass
from typing import Any

import spconv.pytorch as spconv
import torch
from torch import Tensor, nn

from voxelquant.quant import quantization_of
from voxelquant.quant.modules import round_if_fp16
from voxelquant.sparse import SparseTensor, convolution_of, resolve_conv_map, sparse_conv


@dataclass(frozen=True)
class LayerErrors:
    """Relative L2 distances: of the outputs in both modes, and of the gradients."""

    eval_output: float
    train_output: float
    input_gradient: float
    weight_gradient: float

    @property
    def worst(self) -> float:
        return max(self.__dict__.values())


def layer_errors(qmodel: nn.Module, *arguments: Any) -> dict[str, LayerErrors]:
    """Errors of each convolution that is not an inverse one, on the input that it gets."""
    inputs: dict[str, spconv.SparseConvTensor] = {}
    convs = [n.path for n in quantization_of(qmodel).plan.graph.convs if not n.inverse]
    handles = []
    for path in convs:

        def keep(m: nn.Module, args: Any, path: str = path) -> None:
            inputs[path] = args[0].replace_feature(args[0].features.clone())

        handles.append(qmodel.get_submodule(path).register_forward_pre_hook(keep))
    with torch.no_grad():
        qmodel(*arguments)
    for handle in handles:
        handle.remove()
    return {path: _compare(qmodel.get_submodule(path), inputs[path]) for path in convs}


def _compare(module: Any, x: spconv.SparseConvTensor) -> LayerErrors:
    was_training = module.training
    features = x.features.detach().clone()
    with torch.no_grad():
        in_eval = module.eval()(_fresh(x, features)).dense()
    module.train()
    mine, others = features.clone().requires_grad_(), features.clone().requires_grad_()
    trained = module(_fresh(x, mine)).dense()
    expected = _reference(module, x, others)
    module.train(was_training)
    generator = torch.Generator().manual_seed(0)
    weights = torch.randn(expected.shape, generator=generator).to(expected.device)
    gradients = [
        torch.autograd.grad((dense * weights).sum(), [leaf, module.weight])
        for dense, leaf in ((trained, mine), (expected, others))
    ]
    return LayerErrors(
        _relative(in_eval, expected),
        _relative(trained, expected),
        *(_relative(*pair) for pair in zip(*gradients, strict=True)),
    )


def _fresh(x: spconv.SparseConvTensor, features: Tensor) -> spconv.SparseConvTensor:
    return spconv.SparseConvTensor(features, x.indices, x.spatial_shape, x.batch_size)


def _reference(module: Any, x: spconv.SparseConvTensor, features: Tensor) -> Tensor:
    conv = convolution_of(module)
    grid = tuple(x.spatial_shape)
    own = SparseTensor.from_coords(features, x.indices, grid, x.batch_size)
    kernel_map, sites, _ = resolve_conv_map(own, conv.geometry, None)
    weight = module.read_weight(conv.weight)
    out = sparse_conv(module.read_input(features), weight, kernel_map, module.read_bias())
    return SparseTensor(round_if_fp16(out, module.precision.output), sites).dense()


def _relative(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).detach().norm() / expected.detach().norm())
