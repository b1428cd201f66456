"""What must hold of a state, and between a state and the model that it is applied to."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from voxelquant.errors import QuantStateError
from voxelquant.quant.modules import QuantConvBase
from voxelquant.quant.plan import PrecisionPlan, closest_path
from voxelquant.quant.recipe import Recipe
from voxelquant.quant.stored_weight import verify_stored_weight
from voxelquant.quant.topology import FusedNode
from voxelquant.sparse import BATCHNORMS, SparseAdd, SparseConvBase, convolution_of


def check_state(
    tensors: Mapping[str, Tensor], recipe: Recipe, plan: PrecisionPlan, source: str
) -> None:
    """Completeness, finiteness, and the storage law.

    Raises:
        QuantStateError: one of them fails; `source` and the tensor are named.
    """
    for key, value in tensors.items():
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise QuantStateError(f"{source}: got NaN or infinite values in {key}, need finite")
    for name in plan.range_names:
        _positive_range(tensors, f"activation_amax/{name}", (), source)
    for node in plan.graph.nodes:
        if node.kind != "conv":
            continue
        weight = _require(tensors, f"{node.path}.weight", source)
        if weight.dtype != torch.float16 or weight.ndim != 5:
            raise QuantStateError(
                f"{source}: got {node.path}.weight as {weight.dtype} {tuple(weight.shape)}, need "
                "float16 [c_out, kz, ky, kx, c_in]"
            )
        precision = plan.precision[node.name]
        if precision != "fp16":
            key = f"weight_amax/{node.path}"
            amax = _positive_range(tensors, key, (weight.shape[0],), source)
            fmt = recipe.weight_spec(node.path, precision).fmt
            verify_stored_weight(weight, amax, fmt, node.path)


def check_model_fits(model: nn.Module, plan: PrecisionPlan, tensors: Mapping[str, Tensor]) -> None:
    """Every node of the plan finds its float module in the model.

    Raises:
        QuantStateError: a module is missing, of another kind, or of another geometry.
    """
    modules = dict(model.named_modules())
    for node in plan.graph.nodes:
        for path in (node.path, node.batchnorm_path, node.relu_path):
            if path is not None and path not in modules and not _in_a_forward(path, node, modules):
                raise QuantStateError(
                    f"{path}: got a state with a layer that the model lacks, need a model of the "
                    f"same architecture; its closest module is {closest_path(path, list(modules))}"
                )
        module = modules.get(node.path)
        if node.kind == "conv":
            _check_conv(modules[node.path], node, tensors[f"{node.path}.weight"])
        elif node.kind == "add" and module is not None and type(module) is not SparseAdd:
            raise _misfit(node, f"a {type(module).__name__}", "a SparseAdd")
        if node.batchnorm_path and not isinstance(modules[node.batchnorm_path], BATCHNORMS):
            found = type(modules[node.batchnorm_path]).__name__
            raise _misfit(node, f"a {found} at {node.batchnorm_path}", "a BatchNorm1d")


def _in_a_forward(path: str, node: FusedNode, modules: Mapping[str, nn.Module]) -> bool:
    """Whether the node may be computed in the code of a module's forward, where it has no module.

    Whether that forward really does shows when it runs.
    """
    computed = (path == node.path and node.kind not in ("conv", "relu")) or path == node.relu_path
    owner = modules.get(path.rpartition(".")[0])
    return computed and owner is not None and not isinstance(owner, SparseConvBase)


def _check_conv(module: nn.Module, node: FusedNode, weight: Tensor) -> None:
    conv = convolution_of(module, node.path)
    if conv is None or isinstance(module, QuantConvBase):
        raise _misfit(node, f"a {type(module).__name__}", "a float sparse convolution")
    if conv.geometry != node.geometry or conv.inverse != node.inverse:
        raise _misfit(node, str(conv.geometry), str(node.geometry))
    if conv.weight.shape != weight.shape:
        raise _misfit(node, f"a weight {tuple(conv.weight.shape)}", str(tuple(weight.shape)))


def _misfit(node: FusedNode, got: str, need: str) -> QuantStateError:
    return QuantStateError(f"{node.path}: got {got} in the model, the state needs {need}")


def _require(tensors: Mapping[str, Tensor], key: str, source: str) -> Tensor:
    if key not in tensors:
        raise QuantStateError(f"{source}: got a state without {key}, need every tensor of its plan")
    return tensors[key]


def _positive_range(
    tensors: Mapping[str, Tensor], key: str, shape: tuple[int, ...], source: str
) -> Tensor:
    amax = _require(tensors, key, source)
    if amax.dtype != torch.float32 or tuple(amax.shape) != shape:
        raise QuantStateError(
            f"{source}: got {key} as {amax.dtype} {tuple(amax.shape)}, need float32 of shape "
            f"{shape}"
        )
    if bool((amax <= 0.0).any()):
        raise QuantStateError(
            f"{source}: got {key} with a range of {float(amax.min()):g}, need it above 0; "
            "calibrate again"
        )
    return amax
