"""Names and order: what NVIDIA's parser looks up without ever saying that it is missing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator

from voxelquant.export.defects import Defect, error, warning
from voxelquant.export.libspconv_reader import FileContent


def check_structure(content: FileContent) -> Iterator[Defect]:
    """Defects of names, order and connections."""
    if not content.outline:
        yield error("graph", "graph-empty", "got no nodes", "export the model again")
        return
    found = [
        *_check_graph_values(content),
        *_check_repetitions(content),
        *_check_lookups(content),
    ]
    yield from found
    if not found:  # with wrong names, what depends on what is unknown
        yield from _check_dead_nodes(content)
    yield from _check_substrings(content)


def _check_graph_values(content: FileContent) -> Iterator[Defect]:
    inputs = [info.name for info in content.graph.inputs]
    listed = [name for name in inputs if name in content.initializer_names]
    for name in listed:
        message = "got an initializer among the graph inputs: the engine waits for it as input"
        yield error(name, "initializer-in-inputs", message, "list only the features there")
    if len(inputs) - len(listed) != 1:
        message = f"got {len(inputs) - len(listed)} graph inputs, need one, the features"
        yield error("graph", "graph-inputs", message, "coordinates are given at run time")
    if not content.graph.outputs:
        yield error("graph", "graph-outputs", "got no graph output", "name the result as output")
    produced = {name for node in content.outline for name in node.outputs}
    for info in content.graph.outputs:
        if info.name not in produced:
            message = f"got graph output {info.name!r}, which no node produces"
            yield error("graph", "output-unknown", message, "name the output of a node")


def _repeated(names: Iterable[str]) -> list[str]:
    return [name for name, count in Counter(names).items() if count > 1]


def _check_repetitions(content: FileContent) -> Iterator[Defect]:
    for name in _repeated(node.name for node in content.outline):
        message = f"got several nodes named {name!r}"
        yield error(name or "graph", "node-name-repeated", message, "name every node once")
    for name in _repeated(content.initializer_names):
        message = "got several initializers of this name"
        yield error(name, "initializer-repeated", message, "keep one")
    inputs = [i.name for i in content.graph.inputs if i.name not in content.initializer_names]
    outputs = [name for node in content.outline for name in node.outputs]
    for name in _repeated([*inputs, *dict.fromkeys(content.initializer_names), *outputs]):
        owner = next((n.name for n in reversed(content.outline) if name in n.outputs), "graph")
        message = f"got tensor {name!r} produced more than once"
        mend = "give each output its own name (a trace of in-place ops merges them)"
        yield error(owner, "tensor-repeated", message, mend)


def _check_lookups(content: FileContent) -> Iterator[Defect]:
    known = {info.name for info in content.graph.inputs} | set(content.initializer_names)
    produced = {name for node in content.outline for name in node.outputs}
    for node in content.outline:
        for name in dict.fromkeys(node.inputs):
            if name in known:
                continue
            if name in produced:
                message = f"got input {name!r} before the node that produces it"
                yield error(node.name, "graph-order", message, "sort the nodes topologically")
            else:
                message = f"got input {name!r}, which nothing produces: the parser crashes"
                yield error(node.name, "input-unknown", message, "connect it, or remove the node")
        known.update(node.outputs)


def _check_dead_nodes(content: FileContent) -> Iterator[Defect]:
    maker = {name: node for node in content.outline for name in node.outputs}
    waiting = [info.name for info in content.graph.outputs]
    needed: set[str] = set()
    while waiting:
        name = waiting.pop()
        if name in maker and name not in needed:
            waiting += maker[name].inputs
        needed.add(name)
    for node in content.outline:
        if needed.isdisjoint(node.outputs):
            message = "no graph output depends on this node"
            yield warning(node.name, "dead-node", message, "remove it, or name its output")
    used = {name for node in content.outline for name in node.inputs}
    for name in dict.fromkeys(content.initializer_names):
        if name not in used:
            message = "no node reads this initializer"
            yield warning(name, "initializer-unused", message, "remove it")


def _check_substrings(content: FileContent) -> Iterator[Defect]:
    for node in content.outline:
        if node.op_type != "SparseConvolution" or len(node.inputs) != 3:
            continue
        roles = [("weight" in name, "bias" in name) for name in node.inputs]
        if roles != [(False, False), (True, False), (False, True)]:
            message = (
                f"got inputs {list(node.inputs)}: the open engine finds weight and bias by these "
                "words in their names"
            )
            mend = "name them `spconvN.weight` and `spconvN.bias`, and no tensor so"
            yield warning(node.name, "name-substring", message, mend)
