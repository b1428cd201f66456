"""The precision plan: what every node computes in, and the type of every tensor between them.

The rules are those of the deployed engine (one type for each tensor, whoever reads it):

- a tensor is int8 or fp8 exactly when every consumer computes in that one precision; what leaves
  the sparse part (a graph output, the operand of a scatter) is fp16;
- a sum computes in int8 only between int8 tensors and into one: an int8 sum with an fp16 output
  exists in no published graph, and the one open engine silently does nothing there; fp8 likewise;
- a convolution may compute in 8 bits on an fp16 tensor: it quantizes on entry.

Demanding more than the rules allow is an error only where a recipe's *rule* demands it; a default
gives way and leaves a note.

The plan also says with which ranges a node reads a tensor: with the tensor's own (one for int8 and
one for fp8 where it has readers of both), or, where a recipe asks for `ranges: in_place`, with
those of all int8 readers up to the node, in turn.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass

from voxelquant.errors import ConfigError
from voxelquant.quant.recipe import Precision, RangeSharing, Recipe
from voxelquant.quant.topology import GRAPH_INPUT, FusedGraph, FusedNode

_COMPUTING = ("conv", "add")
_OF_READER = "/input"
_EIGHT_BITS: tuple[Precision, ...] = ("int8", "fp8")


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
        """Tensors that some node reads in 8 bits, in execution order."""
        return tuple(tensor for tensor in self.graph.tensors if self._codes_read(tensor))

    @property
    def range_precisions(self) -> dict[str, Precision]:
        """Ranges of activations in execution order, each with the precision of its codes.

        They are named like the quantized tensors, or `<reader>/input`; a tensor with readers of
        both precisions has `<tensor>/int8` and `<tensor>/fp8`.
        """
        if self.ranges == "tensor":
            return {
                self._range_of(tensor, precision): precision
                for tensor in self.quantized_tensors
                for precision in self._codes_read(tensor)
            }
        nodes = (node for node in self.graph.nodes if self.precision[node.name] != "fp16")
        return {node.name + _OF_READER: self.precision[node.name] for node in nodes}

    @property
    def range_names(self) -> tuple[str, ...]:
        """Names of `range_precisions`."""
        return tuple(self.range_precisions)

    def read_with(self, node: FusedNode, tensor: str) -> tuple[str, ...]:
        """Names of the ranges that a tensor passes, in turn, before a node computes with it.

        The last is the node's own; those before it are of earlier readers that quantized the
        tensor in place. Empty where the node reads an fp16 tensor that nobody has quantized.
        """
        precision = self.precision[node.name]
        if self.ranges == "tensor":
            return () if precision == "fp16" else (self._range_of(tensor, precision),)
        readers = self.graph.consumers(tensor)
        until = readers[: readers.index(node) + 1]
        return tuple(r.name + _OF_READER for r in until if self.precision[r.name] != "fp16")

    def stored_with(self, tensor: str) -> str:
        """Name of the range with which the codes of an int8 or fp8 tensor are made."""
        return self.read_with(self.graph.consumers(tensor)[0], tensor)[0]

    @property
    def quantized_convs(self) -> tuple[FusedNode, ...]:
        """Convolutions that compute in 8 bits, in execution order."""
        return tuple(
            node
            for node in self.graph.nodes
            if node.kind == "conv" and self.precision[node.name] != "fp16"
        )

    def _codes_read(self, tensor: str) -> tuple[Precision, ...]:
        """The 8-bit precisions in which a tensor is read."""
        read = {self.precision[node.name] for node in self.graph.consumers(tensor)}
        return tuple(precision for precision in _EIGHT_BITS if precision in read)

    def _range_of(self, tensor: str, precision: Precision) -> str:
        return f"{tensor}/{precision}" if len(self._codes_read(tensor)) > 1 else tensor


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
            if node.kind == "add" and precision[node.name] != "fp16"
            if (reason := _why_sum_is_fp16(node, tensors, precision[node.name])) is not None
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
    if wish == "fp16" or GRAPH_INPUT not in node.inputs:
        return wish
    if recipe.raw_input != "fp16":
        return ruled or recipe.raw_input
    notes[node.name] = (
        f"{node.name} computes in fp16: its input is the raw graph input, whose channels differ "
        f"too much for one range (raw_input: {wish} forces it)"
    )
    return "fp16"


def _type_tensors(
    graph: FusedGraph, recipe: Recipe, precision: dict[str, Precision]
) -> dict[str, Precision]:
    typed: dict[str, Precision] = {}
    for tensor in graph.tensors:
        consumers = graph.consumers(tensor)
        read = {precision[node.name] for node in consumers}
        # The model's input arrives in floating point, and a standalone ReLU computes in fp16.
        made_as_float = tensor == GRAPH_INPUT or graph.node(tensor).kind not in _COMPUTING
        kept_fp16 = recipe.setting(tensor, "output_precision") == "fp16"
        is_fp16 = made_as_float or kept_fp16 or tensor in graph.outputs or len(read) != 1
        typed[tensor] = "fp16" if is_fp16 else read.pop()
    return typed


def _why_sum_is_fp16(node: FusedNode, tensors: dict[str, Precision], wish: Precision) -> str | None:
    others = [name for name in node.inputs if tensors[name] != wish]
    if others:
        return f"its operand {others[0]} is an {tensors[others[0]]} tensor"
    if tensors[node.name] != wish:
        return f"its output is an {tensors[node.name]} tensor"
    return None


def _conflicts(plan: PrecisionPlan, recipe: Recipe, notes: dict[str, str]) -> list[str]:
    found = []
    for node in plan.graph.nodes:
        name = node.name
        ruled = recipe.setting(node.path, "precision")
        if ruled not in (None, "fp16", plan.precision[name]):
            found.append(f"{name} is to compute in {ruled}, but {_reason(node, notes)}")
        wanted = recipe.setting(name, "output_precision")
        if wanted not in (None, "fp16", plan.tensor_precision[name]):
            found.append(f"{name} is to be an {wanted} tensor, but {_why_not(wanted, node, plan)}")
        if node.kind == "conv" and plan.precision[name] == "fp8":
            bits = recipe.weight_bits(node.path)
            if bits != 8:
                found.append(f"{name} is to have {bits}-bit weights, but computes in fp8")
    return found


def _why_not(wanted: Precision, node: FusedNode, plan: PrecisionPlan) -> str:
    """Why the output of a node is no tensor of the wanted 8-bit precision."""
    readers: dict[Precision, list[str]] = {}
    for consumer in plan.graph.consumers(node.name):
        readers.setdefault(plan.precision[consumer.name], []).append(consumer.name)
    readers.pop(wanted, None)
    causes = [f"{names} read it in {precision}" for precision, names in readers.items()]
    return " and ".join(causes) or "it leaves the sparse part"


def _unreachable_readers(plan: PrecisionPlan) -> list[str]:
    """Who would have to see what was quantized in place, and computes outside of our layers."""
    if plan.ranges == "tensor":
        return []
    found = [
        f"{node.name} computes in fp8, which has no ranges: in_place (the way of int8 "
        "checkpoints); use ranges: tensor"
        for node in plan.graph.nodes
        if plan.precision[node.name] == "fp8"
    ]
    for tensor in plan.quantized_tensors:
        first = next(n for n in plan.graph.consumers(tensor) if plan.precision[n.name] != "fp16")
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
    for suffix in (_OF_READER, *(f"/{precision}" for precision in _EIGHT_BITS)):
        name = name.removesuffix(suffix)
    return name


def _reason(node: FusedNode, notes: dict[str, str]) -> str:
    note = notes.get(node.name)
    return note.split(": ", 1)[1] if note else f"a {node.kind} always computes in fp16"


def closest_path(path: str, known: list[str]) -> str:
    """The known path nearest to one, quoted, for error messages."""
    close = difflib.get_close_matches(path, known, n=1, cutoff=0.0)
    return repr(close[0]) if close else "none"
