"""Tell what a module or a value is: of this package, of torch, or of spconv."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from voxelquant.sparse.backends import spconv
from voxelquant.sparse.convolution import Convolution
from voxelquant.sparse.modules import SparseConvBase, SparseModule
from voxelquant.sparse.tensor import SparseTensor

BATCHNORMS = (nn.BatchNorm1d, nn.SyncBatchNorm)
# Exact types: what a subclass adds is not known here.
_FEATURE_MODULES: dict[type[nn.Module], str] = {
    nn.BatchNorm1d: "batchnorm",
    nn.SyncBatchNorm: "batchnorm",
    nn.ReLU: "relu",
}


def kind_of(module: nn.Module) -> str | None:
    """Operation that a trace records for a module: `conv`, `add`, ...; None for any other."""
    if isinstance(module, SparseModule):
        return module.graph_kind
    return _FEATURE_MODULES.get(type(module)) or spconv.kind_of(module)


def convolution_of(module: nn.Module, path: str = "") -> Convolution | None:
    """The convolution that a float or fake-quantized module is; None if it is none.

    Raises:
        GraphError, GeometryError: it is one that the sparse graph cannot express; `path` is named.
    """
    if isinstance(module, SparseConvBase):
        return Convolution(
            module,
            module.in_channels,
            module.out_channels,
            module.geometry,
            module.inverse,
            module.indice_key,
        )
    return spconv.describe_convolution(module, path) if spconv.is_convolution(module) else None


def require_convolution(model: nn.Module, path: str) -> Convolution:
    """The convolution at a path where a graph says that there is one."""
    conv = convolution_of(model.get_submodule(path), path)
    assert conv is not None
    return conv


def builds_own_tensors(model: nn.Module) -> bool:
    """Whether sparse tensors may be made in the model's own forward: it is built on spconv."""
    return any(spconv.is_convolution(module) for module in model.modules())


def is_sparse_tensor(x: Any) -> bool:
    """Whether it is a sparse tensor, of this package or of spconv."""
    return isinstance(x, SparseTensor) or spconv.is_tensor(x)


def features_of(x: Any) -> Tensor:
    """Features of a sparse tensor; a bare tensor is its own."""
    features: Tensor = x.features if is_sparse_tensor(x) else x
    return features
