"""Tensor arithmetic on features, as a `TorchFunctionMode` sees it in the code of a forward.

Residual blocks of most code bases sum features without a module: `a.features + b.features`,
`torch.add`, `out += identity`, the sum of two sparse tensors. What such a sum is stands here once,
for the trace that finds it and for the quantized model that takes its place.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

_IN_PLACE_SUMS = frozenset({"add_", "__iadd__"})
_SUMS = frozenset({"add", "__add__", "__radd__"}) | _IN_PLACE_SUMS
_RELUS = frozenset({"relu", "relu_"})
_COPIES = frozenset(
    {"clone", "contiguous", "cpu", "cuda", "detach", "float", "to", "type_as", "view_as"}
)
_HARMLESS_IN_PLACE = frozenset({"requires_grad_", "detach_"})


@dataclass(frozen=True)
class FeatureSum:
    """Sum of two feature tensors of one shape `[n, c]`; `in_place` writes it into the first."""

    first: Tensor
    second: Tensor
    in_place: bool


def feature_sum(
    func: Any, args: Sequence[Any], kwargs: Mapping[str, Any] | None
) -> FeatureSum | None:
    """The sum that a call computes, if it is one of two feature tensors."""
    if name_of(func) not in _SUMS:
        return None
    named = dict(kwargs or {})
    operands = [*args, *(named.pop(key) for key in ("input", "other") if key in named)]
    if len(operands) != 2 or named.pop("alpha", 1) != 1 or named:
        return None
    first, second = operands
    if not (_is_feature_like(first) and _is_feature_like(second)) or first.shape != second.shape:
        return None
    return FeatureSum(first, second, name_of(func) in _IN_PLACE_SUMS)


def is_relu(func: Any) -> bool:
    """Whether a call rectifies, in place or not."""
    return name_of(func) in _RELUS


def is_copy(func: Any, args: Sequence[Any]) -> bool:
    """Whether a call hands on the values of its first argument; adding 0 does (`sum([a, b])`)."""
    if name_of(func) in _SUMS and len(args) == 2:
        return not isinstance(args[1], Tensor) and args[1] == 0
    return name_of(func) in _COPIES


def reads_values(func: Any) -> bool:
    """Whether a result depends on the values of its first argument, not on its shape alone."""
    name = name_of(func)
    return not (name.startswith("new_") or name.endswith("_like"))


def writes_first_argument(func: Any) -> bool:
    """Whether a call changes the tensor that is its first argument."""
    name = name_of(func)
    if name.startswith("__"):
        return name == "__setitem__" or name.startswith("__i")
    return name.endswith("_") and name not in _HARMLESS_IN_PLACE


def name_of(func: Any) -> str:
    """Name of a torch function; of the attribute where it reads one."""
    name = str(getattr(func, "__name__", func))
    if name == "__get__":
        name = str(getattr(getattr(func, "__self__", None), "__name__", name))
    return name


def member_name(module: nn.Module, kind: str, index: int) -> str:
    """Name under which the operation of that index could be a member of the module, and is not.

    >>> member_name(nn.ReLU(), "add", 0), member_name(nn.ReLU(), "add", 1)
    ('add', 'add2')
    """
    name = kind if index == 0 else f"{kind}{index + 1}"
    while hasattr(module, name):
        name += "_"
    return name


def join_path(parent: str, name: str) -> str:
    """Module path of a member."""
    return f"{parent}.{name}" if parent else name


def _is_feature_like(x: Any) -> bool:
    return isinstance(x, Tensor) and x.ndim == 2 and x.is_floating_point()
