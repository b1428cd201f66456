"""Sums in the code of a forward, quantized where they stand.

A residual block that computes `out.features + identity.features` has no module to exchange. It gets
one: the block's n-th sum of two feature tensors is handed to a `QuantFeatureAdd`, a member of the
block under the name that the plan gives to the sum. While the block's own forward runs, and only
in its own code, a `TorchFunctionMode` finds the sums; nothing of the block is rewritten.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.overrides import TorchFunctionMode

from voxelquant.errors import GraphError
from voxelquant.quant.modules import QuantSparseAdd
from voxelquant.quant.quantizer import TensorQuantizer
from voxelquant.quant.subclassing import Subclassed, become
from voxelquant.sparse import feature_ops

# Of these nothing runs that could be a sum.
_WITHOUT_SUMS = (nn.Identity, nn.ReLU, nn.ModuleList, nn.ModuleDict, TensorQuantizer)
_MOST_SUMS = 1000


class QuantFeatureAdd(QuantSparseAdd):
    """Fake-quantized sum of two feature tensors `[n, c]` in the code of a forward."""

    def forward(self, a: Any, b: Any = None) -> Any:
        """`[n, c]` + `[n, c]`; the single argument of a container that runs its members passes."""
        return a if b is None else self.add_features(a, b)


@dataclass(eq=False)
class _Frame:
    """A forward that is running: which of its sums are quantized, how many it has computed."""

    module: nn.Module
    layers: Mapping[int, nn.Module]
    count: int = 0


class _Frames(threading.local):
    def __init__(self) -> None:
        self.stack: list[_Frame] = []


_frames = _Frames()


class SumsOfForward(Subclassed):
    """A module whose own forward computes sums that are quantized."""

    # Number of a sum within one forward → name of the member that computes it.
    quantized_sums: dict[int, str]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The module's own forward, its sums computed by their layers.

        Raises:
            GraphError: it computes fewer sums than when it was traced.
        """
        layers = {index: self.get_submodule(name) for index, name in self.quantized_sums.items()}
        with _running(_Frame(self, layers)) as frame:
            out = super().forward(*args, **kwargs)
        if frame.count <= max(layers):
            raise GraphError(
                f"got a forward of {self.original_class.__name__} with {frame.count} sums of "
                f"features, need at least {max(layers) + 1}, as when it was traced; quantize the "
                "float model anew, with an example that takes this branch"
            )
        return out


class _SumMode(TorchFunctionMode):
    """Hands the sums in the own code of one forward to their layers."""

    def __init__(self, frame: _Frame) -> None:
        super().__init__()
        self.frame = frame

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Compute a sum by its layer, anything else as it is."""
        own_code = _frames.stack[-1] is self.frame
        total = feature_ops.feature_sum(func, args, kwargs) if own_code else None
        if total is None:
            return func(*args, **(kwargs or {}))
        layer = self.frame.layers.get(self.frame.count)
        self.frame.count += 1
        if layer is None:
            return func(*args, **(kwargs or {}))
        summed = layer(total.first, total.second)
        # Quantizers keep none of their input for the backward pass: autograd would tell.
        return total.first.copy_(summed) if total.in_place else summed


@contextmanager
def _running(frame: _Frame) -> Iterator[_Frame]:
    depth = len(_frames.stack)
    _frames.stack.append(frame)
    try:
        with _SumMode(frame):
            yield frame
    finally:
        del _frames.stack[depth:]


def attach_sums(model: nn.Module, layers: Mapping[str, QuantFeatureAdd]) -> None:
    """Let layers compute the sums that a plan names by their paths, in place.

    Raises:
        GraphError: no forward of the model can compute a sum of that name.
    """
    by_owner: dict[str, dict[str, QuantFeatureAdd]] = {}
    for path, layer in layers.items():
        owner_path, _, name = path.rpartition(".")
        by_owner.setdefault(owner_path, {})[name] = layer
    for owner_path, members in by_owner.items():
        owner = model.get_submodule(owner_path)
        names = [feature_ops.member_name(owner, "add", index) for index in range(_MOST_SUMS)]
        odd = [name for name in members if name not in names]
        if odd:
            raise GraphError(
                f"{feature_ops.join_path(owner_path, odd[0])}: got a sum of that name in the "
                f"plan, a forward of {type(owner).__name__} computes none so named; need a model "
                "of the same architecture"
            )
        become(owner, SumsOfForward)
        assert isinstance(owner, SumsOfForward)
        owner.quantized_sums = {names.index(name): name for name in members}
        for inner in owner.modules():
            if inner is not owner and not isinstance(inner, _WITHOUT_SUMS):
                inner.register_forward_pre_hook(_begin_inner)
                inner.register_forward_hook(_end_inner, always_call=True)
        for name, layer in members.items():
            owner.add_module(name, layer)


def _begin_inner(module: nn.Module, arguments: Any) -> None:
    """The code that runs now is not that of the forward around it."""
    _frames.stack.append(_Frame(module, {}))


def _end_inner(module: nn.Module, arguments: Any, out: Any) -> None:
    if _frames.stack and _frames.stack[-1].module is module:
        _frames.stack.pop()
