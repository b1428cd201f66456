"""Modules and tensors of `spconv.pytorch` (2.3), told in this package's terms.

Nothing is imported: an object can only be spconv's where its owner has imported spconv already.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any

from torch import Tensor, nn

from voxelquant.errors import GeometryError, GraphError
from voxelquant.sparse.conv_geometry import ConvGeometry, Triple
from voxelquant.sparse.convolution import Convolution

_FEATURE_MODULES = {
    "SparseBatchNorm": "batchnorm",
    "SparseSyncBatchNorm": "batchnorm",
    "SparseReLU": "relu",
}


def is_tensor(x: Any) -> bool:
    """Whether it is a `SparseConvTensor`."""
    return isinstance(x, _classes("SparseConvTensor"))


def is_convolution(module: nn.Module) -> bool:
    """Whether it is one of spconv's convolutions, or of a class made from one."""
    return isinstance(module, _classes("SparseConvolution", "conv"))


def kind_of(module: nn.Module) -> str | None:
    """What a trace records for a module of spconv: `conv`, `batchnorm`, `relu`, `to_dense`."""
    if is_convolution(module):
        return "conv"
    if type(module) in _classes("ToDense"):
        return "to_dense"
    for name, kind in _FEATURE_MODULES.items():
        if type(module) in _classes(name, "modules"):
            return kind
    return None


def describe_convolution(module: Any, path: str) -> Convolution:
    """A convolution of spconv in this package's terms.

    Of kernel volume 1, submanifold or of stride 1, it multiplies with `weight.view(c_in, c_out)`,
    although the weight's shape says `[c_out, 1, 1, 1, c_in]`.

    Raises:
        GraphError: the module does what the sparse graph cannot express; it is named.
    """
    refusal = _why_inexpressible(module)
    if refusal is not None:
        raise GraphError(f"{path}: got a {type(module).__name__} of spconv with {refusal}")
    kernel, stride, padding, dilation = (
        _triple(value)
        for value in (module.kernel_size, module.stride, module.padding, module.dilation)
    )
    try:
        if module.inverse:
            geometry = ConvGeometry(kernel)
        elif module.subm:  # sites stay and the kernel is centred, whatever padding says
            geometry = ConvGeometry(kernel, stride, dilation=dilation, subm=True)
        else:
            geometry = ConvGeometry(kernel, stride, padding, dilation)
    except GeometryError as reason:
        raise GeometryError(f"{path}: {reason}") from reason
    return Convolution(
        module,
        module.in_channels,
        module.out_channels,
        geometry,
        module.inverse,
        module.indice_key,
        reads_flat=module.conv1x1,
    )


@contextmanager
def watching_dense(
    on_dense: Callable[[Any, Callable[[], Tensor], bool], Tensor],
) -> Iterator[None]:
    """Inside, `SparseConvTensor.dense` calls `on_dense(tensor, make_dense, channels_first)`."""
    classes = _classes("SparseConvTensor")
    if not classes:
        yield
        return
    (tensor_class,) = classes
    original = tensor_class.dense

    @wraps(original)
    def dense(self: Any, channels_first: bool = True) -> Tensor:
        return on_dense(self, lambda: original(self, channels_first), channels_first)

    tensor_class.dense = dense
    try:
        yield
    finally:
        tensor_class.dense = original


def _classes(name: str, submodule: str | None = None) -> tuple[Any, ...]:
    """The class of that name where spconv is loaded, else none."""
    library = sys.modules.get(f"spconv.pytorch.{submodule}" if submodule else "spconv.pytorch")
    found = getattr(library, name, None)
    return () if found is None else (found,)


def _why_inexpressible(conv: Any) -> str | None:
    """What this package has no words for, and what to do; None if all is well."""
    if not hasattr(conv, "_conv_forward"):
        return "no _conv_forward, need spconv 2.3 (pip install spconv-cu126==2.3.8)"
    if conv.ndim != 3:
        return f"{conv.ndim} dimensions, need 3 (a 2D layer is a 3D one on a grid of height 1)"
    if conv.transposed or any(conv.output_padding):
        return "a transposed kernel or output_padding, need SparseInverseConv3d to go back up"
    if conv.groups != 1:
        return f"{conv.groups} groups, need 1"
    if int(conv.act_type) != 0:
        return f"a fused activation ({conv.act_type}), need an nn.ReLU after it"
    if conv.inverse and conv.conv1x1:
        return "a kernel of one tap that inverts nothing, need the kernel of the conv to invert"
    shape = (conv.out_channels, *conv.kernel_size, conv.in_channels)
    if tuple(conv.weight.shape) != shape:
        return f"a weight {tuple(conv.weight.shape)}, need {shape} [c_out, kz, ky, kx, c_in]"
    return None


def _triple(values: list[int]) -> Triple:
    return (int(values[0]), int(values[1]), int(values[2]))
