"""Rulebooks: convs that share their index pairs must share everything that makes them."""

from __future__ import annotations

from collections.abc import Hashable, Iterator

from voxelquant.export.defects import Defect, error, warning
from voxelquant.export.flow import GraphFlow
from voxelquant.export.ir import Graph, SparseConvolution


def check_rulebooks(graph: Graph, flow: GraphFlow) -> Iterator[Defect]:
    """Defects of index sharing."""
    owners: dict[str, SparseConvolution] = {}
    keyless: dict[Hashable, str] = {}
    for conv in graph.convs:
        if conv.inverse and not conv.subm:
            yield from _check_inverse(conv, flow)
        elif conv.rulebook:
            owner = owners.setdefault(conv.rulebook, conv)
            yield from _check_agreement(conv, owner, flow)
        elif conv.subm:
            facts = flow.input_facts(conv)
            problem = (facts.sites, conv.kernel_size, conv.dilation) if facts else conv.name
            first = keyless.setdefault(problem, conv.name)
            if first != conv.name:
                message = f"got no rulebook on the sites and kernel of {first}"
                mend = "the engine computes the same index pairs twice: name one rulebook in both"
                yield warning(conv.name, "rulebook-missing", message, mend)


def _problem(conv: SparseConvolution, flow: GraphFlow) -> dict[str, Hashable]:
    facts = flow.input_facts(conv)
    problem: dict[str, Hashable] = {
        "coordinates": facts.sites if facts else None,
        "kernel_size": conv.kernel_size,
        "dilation": conv.dilation,
        "subm": conv.subm,
    }
    if not conv.subm:
        problem |= {"stride": conv.stride, "padding": conv.padding}
    return problem


def _check_agreement(
    conv: SparseConvolution, owner: SparseConvolution, flow: GraphFlow
) -> Iterator[Defect]:
    mine, theirs = _problem(conv, flow), _problem(owner, flow)
    parts = [key for key in mine if mine[key] != theirs.get(key)]
    if parts:
        message = f"got rulebook {conv.rulebook!r} of {owner.name}, with another {', '.join(parts)}"
        yield error(conv.name, "rulebook-conflict", message, "give it a key of its own")


def _check_inverse(conv: SparseConvolution, flow: GraphFlow) -> Iterator[Defect]:
    coupled = flow.inverted.get(conv.name)
    if coupled is None:
        message = f"got an inverse conv of rulebook {conv.rulebook!r}, which no earlier conv makes"
        mend = "give the downsampling conv to invert the same rulebook"
        yield error(conv.name, "rulebook-inverse", message, mend)
        return
    made, used = flow.tensors.get(coupled.output), flow.input_facts(conv)
    if made is not None and used is not None and made.sites != used.sites:
        message = f"got an inverse conv on other sites than the outputs of {coupled.name}"
        yield error(conv.name, "rulebook-inverse", message, "name the rulebook of its own level")
    elif conv.kernel_size != coupled.kernel_size:
        message = (
            f"got kernel_size {list(conv.kernel_size)}, {coupled.name} that it inverts has "
            f"{list(coupled.kernel_size)}"
        )
        yield error(conv.name, "rulebook-inverse", message, "both need the same kernel")
