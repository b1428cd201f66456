"""Exchange modules in a model, under every name by which it holds them."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from voxelquant.errors import GraphError


def substitute_modules(model: nn.Module, replacements: Mapping[str, nn.Module]) -> None:
    """Put new modules in the place of those at the given paths, in place.

    A module that the model holds under several names is exchanged under all of them, so that
    whatever the forward calls is the new one.

    Raises:
        GraphError: the model itself is to be exchanged.
    """
    if "" in replacements:
        raise GraphError(
            f"got a bare {type(model).__name__} as the model, need a module that contains it; wrap "
            "it in SparseSequential"
        )
    new_of = {id(model.get_submodule(path)): new for path, new in replacements.items()}
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            new = new_of.get(id(child))
            if new is not None:
                setattr(parent, name, new)
