"""The precision plan: what every node computes in, and the type of every tensor between them.

The rules are those of the deployed engine (one type for each tensor, whoever reads it):

- a tensor is int8 exactly when every consumer computes in int8; what leaves the sparse part
  (a graph output, the operand of a scatter) is fp16;
- a sum computes in int8 only between int8 tensors and into one: an int8 sum with an fp16 output
  exists in no published graph, and the one open engine silently does nothing there;
- a convolution may compute in int8 on an fp16 tensor: it quantizes on entry.

Demanding more than the rules allow is an error only where a recipe's *rule* demands it; a default
gives way and leaves a note.

The plan also says with which ranges a node reads a tensor: with the tensor's own, or, where a
recipe asks for `ranges: in_place`, with those of all int8 readers up to the node, in turn.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass

from voxelquant.errors import ConfigError
from voxelquant.quant.recipe import Precision, RangeSharing, Recipe
from voxelquant.quant.topology import GRAPH_INPUT, FusedGraph, FusedNode

_COMPUTING = ("conv", "add")
_OF_READER = "/input"


@dataclass(frozen=True)
class PrecisionPlan:
    """Resolved precisions of a graph.

    Attributes:
        graph: the nodes and tensors.
        precision: node name → compute precision.
        tensor_precision: tensor name (`@input` too) → type of the stored tensor; for a node this
            is its output precision.
        notes: where a default of the recipe gave way, in words.
        ranges: whether a range belongs to a tensor or to each of its readers; see `Recipe`.
    """

    graph: FusedGraph
    precision: dict[str, Precision]
    tensor_precision: dict[str, Precision]
    notes: tuple[str, ...] = ()
    ranges: RangeSharing = "tensor"

    @property
    def quantized_tensors(self) -> tuple[str, ...]:
        """Tensors that some node reads in int8, in execution order."""
        return tuple(
            tensor
            for tensor in self.graph.tensors
            if any(self.precision[node.name] == "int8" for node in self.graph.consumers(tensor))
        )

    @property
    def range_names(self) -> tuple[str, ...]:
        """Ranges of activations in execution order: quantized tensors, or `<reader>/input`."""
        if self.ranges == "tensor":
            return self.quantized_tensors
        nodes = (node.name for node in self.graph.nodes if self.precision[node.name] == "int8")
        return tuple(name + _OF_READER for name in nodes)

    def read_with(self, node: FusedNode, tensor: str) -> tuple[str, ...]:
        """Names of the ranges that a tensor passes, in turn, before a node computes with it.

        The last is the node's own; those before it are of earlier readers that quantized the
        tensor in place. Empty where the node reads an fp16 tensor that nobody has quantized.
        """
        if self.ranges == "tensor":
            return (tensor,) if self.precision[node.name] == "int8" else ()
        readers = self.graph.consumers(tensor)
        until = readers[: readers.index(node) + 1]
        return tuple(r.name + _OF_READER for r in until if self.precision[r.name] == "int8")

    def stored_with(self, tensor: str) -> str:
        """Name of the range with which the codes of an int8 tensor are made."""
        return self.read_with(self.graph.consumers(tensor)[0], tensor)[0]

    @property
    def quantized_convs(self) -> tuple[FusedNode, ...]:
        """Convolutions that compute in int8, in execution order."""
        return tuple(
            node
            for node in self.graph.nodes
            if node.kind == "conv" and self.precision[node.name] == "int8"
        )


def make_plan(graph: FusedGraph, recipe: Recipe) -> PrecisionPlan:
    """Resolve a recipe on a graph.

    Raises:
        ConfigError: a rule matches nothing, or rules demand what the precision rules above
            exclude; every conflict is named.
    """
    recipe.check_matches(graph.tensors)
    notes: dict[str, str] = {}
    precision = {node.name: _wish(node, recipe, notes) for node in graph.nodes}
    while True:
        tensors = _type_tensors(graph, recipe, precision)
        demoted = {
            node.name: reason
            for node in graph.nodes
            if node.kind == "add" and precision[node.name] == "int8"
            if (reason := _why_sum_is_fp16(node, tensors)) is not None
        }
        if not demoted:
            break
        for name, reason in demoted.items():
            precision[name] = "fp16"
            notes[name] = f"{name} computes in fp16: {reason}"
    plan = PrecisionPlan(graph, precision, tensors, tuple(notes.values()), recipe.ranges)
    conflicts = [*_conflicts(plan, recipe, notes), *_unreachable_readers(plan)]
    if conflicts:
        raise ConfigError(
            f"recipe {recipe.name!r}: got {len(conflicts)} rules that cannot hold together: "
            + "; ".join(conflicts)
        )
    return plan


def _wish(node: FusedNode, recipe: Recipe, notes: dict[str, str]) -> Precision:
    if node.kind not in _COMPUTING:
        return "fp16"
    ruled: Precision | None = recipe.setting(node.path, "precision")
    wish = ruled or recipe.precision
    if wish == "fp16" or GRAPH_INPUT not in node.inputs or recipe.raw_input == "int8":
        return wish
    notes[node.name] = (
        f"{node.name} computes in fp16: its input is the raw graph input, whose channels differ "
        "too much for one range (raw_input: int8 forces it)"
    )
    return "fp16"


def _type_tensors(
    graph: FusedGraph, recipe: Recipe, precision: dict[str, Precision]
) -> dict[str, Precision]:
    typed: dict[str, Precision] = {}
    for tensor in graph.tensors:
        consumers = graph.consumers(tensor)
        all_int8 = bool(consumers) and all(precision[node.name] == "int8" for node in consumers)
        # The model's input arrives in floating point, and a standalone ReLU computes in fp16.
        made_as_float = tensor == GRAPH_INPUT or graph.node(tensor).kind not in _COMPUTING
        kept_fp16 = recipe.setting(tensor, "output_precision") == "fp16"
        is_fp16 = made_as_float or kept_fp16 or tensor in graph.outputs or not all_int8
        typed[tensor] = "fp16" if is_fp16 else "int8"
    return typed


def _why_sum_is_fp16(node: FusedNode, tensors: dict[str, Precision]) -> str | None:
    fp16_operands = [name for name in node.inputs if tensors[name] == "fp16"]
    if fp16_operands:
        return f"its operand {fp16_operands[0]} is an fp16 tensor"
    if tensors[node.name] == "fp16":
        return "its output is an fp16 tensor"
    return None


def _conflicts(plan: PrecisionPlan, recipe: Recipe, notes: dict[str, str]) -> list[str]:
    found = []
    for node in plan.graph.nodes:
        name = node.name
        if recipe.setting(node.path, "precision") == "int8" and plan.precision[name] == "fp16":
            found.append(f"{name} is to compute in int8, but {_reason(node, notes)}")
        wanted = recipe.setting(name, "output_precision")
        if wanted == "int8" and plan.tensor_precision[name] == "fp16":
            readers = [
                consumer.name
                for consumer in plan.graph.consumers(name)
                if plan.precision[consumer.name] == "fp16"
            ]
            cause = f"{readers} read it in fp16" if readers else "it leaves the sparse part"
            found.append(f"{name} is to be an int8 tensor, but {cause}")
    return found


def _unreachable_readers(plan: PrecisionPlan) -> list[str]:
    """Who would have to see what was quantized in place, and computes outside of our layers."""
    if plan.ranges == "tensor":
        return []
    found = []
    for tensor in plan.quantized_tensors:
        first = next(n for n in plan.graph.consumers(tensor) if plan.precision[n.name] == "int8")
        blind = [
            node.name
            for node in plan.graph.consumers(tensor)
            if node.kind not in _COMPUTING and plan.read_with(node, tensor)
        ]
        if tensor in plan.graph.outputs:
            blind.append("the rest of the model")
        found += [
            f"{first.name} quantizes {tensor} in place (ranges: in_place), but {reader} reads it "
            "unquantized; use ranges: tensor"
            for reader in blind
        ]
    return found


def range_owner(name: str) -> str:
    """Path by whose rules a range is chosen: the tensor's, or the reader's."""
    return name.removesuffix(_OF_READER)


def _reason(node: FusedNode, notes: dict[str, str]) -> str:
    note = notes.get(node.name)
    return note.split(": ", 1)[1] if note else f"a {node.kind} always computes in fp16"


def closest_path(path: str, known: list[str]) -> str:
    """The known path nearest to one, quoted, for error messages."""
    close = difflib.get_close_matches(path, known, n=1, cutoff=0.0)
    return repr(close[0]) if close else "none"
