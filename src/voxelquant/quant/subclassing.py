"""Give a module of someone else's class more behaviour, in place: it stays one of its class.

The new class is made of a mixin of ours and the module's own class. Everything that asks for the
old class (`isinstance`, containers of other libraries) still finds it, attributes and hooks stay
where they are, and copying and pickling work although no source file names the new class.
"""

from __future__ import annotations

from typing import Any, ClassVar

from torch import nn


class Subclassed(nn.Module):
    """What all mixins share: how an instance is rebuilt from a copy or a pickle."""

    original_class: ClassVar[type[nn.Module]]
    mixin: ClassVar[type[Subclassed]]

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        return _rebuild, (self.mixin, self.original_class), self.__getstate__()


def become(module: nn.Module, mixin: type[Subclassed]) -> None:
    """Make the module an instance of its own class with the mixin's behaviour before it."""
    module.__class__ = _combined(mixin, type(module))


_classes: dict[tuple[Any, Any], type[Subclassed]] = {}


def _combined(mixin: type[Subclassed], original: type[nn.Module]) -> type[Subclassed]:
    if (mixin, original) not in _classes:
        namespace = {"mixin": mixin, "original_class": original, "__doc__": mixin.__doc__}
        name = f"Quant{original.__name__}"
        _classes[mixin, original] = type(name, (mixin, original), namespace)
    return _classes[mixin, original]


def _rebuild(mixin: type[Subclassed], original: type[nn.Module]) -> Subclassed:
    combined = _combined(mixin, original)
    return combined.__new__(combined)
