"""Index-sharing keys: one for each set of active sites and kernel, as the engine reuses pairs."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field

from voxelquant.quant import GRAPH_INPUT, FusedGraph, FusedNode


@dataclass
class _Sharing:
    """Convolutions that can use one set of index pairs, and the keys that the model gave them."""

    prefix: str
    members: list[str] = field(default_factory=list)
    indice_keys: set[str] = field(default_factory=set)


def assign_rulebooks(graph: FusedGraph, indice_keys: Mapping[str, str | None]) -> dict[str, str]:
    """Rulebook of every convolution by node name.

    Submanifold convs share a key when sites, kernel size and dilation are equal; a strided conv
    has one only if an inverse conv needs it, and is "" otherwise. The model's own `indice_key` is
    the name where it is unambiguous.

    Args:
        graph: kernels and tensors of the model.
        indice_keys: module path → `indice_key`.
    """
    sites: dict[str, Hashable] = {GRAPH_INPUT: GRAPH_INPUT}
    groups: dict[Hashable, _Sharing] = {}
    strided: list[FusedNode] = []
    for node in graph.nodes:
        before = sites[node.inputs[0]]
        sites[node.name] = before
        if node.geometry is None:
            continue
        key = indice_keys.get(node.path)
        if node.inverse:
            partner = _find_partner(strided, sites, before, key, indice_keys)
            group = groups.setdefault(("down", partner.name), _Sharing("down", [partner.name]))
            sites[node.name] = sites[partner.inputs[0]]
        elif node.geometry.subm:
            problem = (before, node.geometry.kernel_size, node.geometry.dilation)
            group = groups.setdefault(problem, _Sharing("subm"))
        else:
            sites[node.name] = (before, node.geometry)
            strided.append(node)
            continue
        group.members.append(node.name)
        if key is not None:
            group.indice_keys.add(key)
    return _name_groups(groups)


def _find_partner(
    strided: list[FusedNode],
    sites: Mapping[str, Hashable],
    input_sites: Hashable,
    key: str | None,
    indice_keys: Mapping[str, str | None],
) -> FusedNode:
    return next(
        node
        for node in reversed(strided)
        if indice_keys.get(node.path) == key and sites[node.name] == input_sites
    )


def _name_groups(groups: Mapping[Hashable, _Sharing]) -> dict[str, str]:
    own = [next(iter(g.indice_keys)) if len(g.indice_keys) == 1 else None for g in groups.values()]
    taken = {name for name in own if name}
    given: set[str] = set()
    rulebooks: dict[str, str] = {}
    for group, name in zip(groups.values(), own, strict=True):
        if name is None or name in given:
            number = 0
            while f"{group.prefix}{number}" in taken:
                number += 1
            name = f"{group.prefix}{number}"
        taken.add(name)
        given.add(name)
        rulebooks |= dict.fromkeys(group.members, name)
    return rulebooks
