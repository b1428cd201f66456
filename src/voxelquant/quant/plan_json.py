"""Plans as JSON, for the header of a state file."""

from __future__ import annotations

import dataclasses
from typing import Any, get_args

from voxelquant.quant.plan import PrecisionPlan
from voxelquant.quant.recipe import Precision, RangeSharing
from voxelquant.quant.topology import FusedGraph, FusedNode
from voxelquant.sparse import ConvGeometry


def plan_to_json(plan: PrecisionPlan) -> dict[str, Any]:
    """Plain dictionaries and lists."""
    return dataclasses.asdict(plan)


def plan_from_json(content: dict[str, Any]) -> PrecisionPlan:
    """The plan again.

    Raises:
        KeyError, TypeError, ValueError: the content is not that of a plan.
    """
    graph = content["graph"]
    nodes = tuple(_node_from_json(node) for node in graph["nodes"])
    plan = PrecisionPlan(
        FusedGraph(nodes, tuple(graph["outputs"]), tuple(graph["shared_relus"])),
        {name: _precision(content["precision"][name]) for name in (n.name for n in nodes)},
        {name: _precision(value) for name, value in content["tensor_precision"].items()},
        tuple(content["notes"]),
        _range_sharing(content.get("ranges", "tensor")),  # older files say nothing
    )
    known = set(plan.graph.tensors)
    read = {name for node in nodes for name in node.inputs}
    if set(plan.tensor_precision) != known or not (read | set(plan.graph.outputs)) <= known:
        raise ValueError("the plan's tensors are not those of its graph")
    return plan


def _node_from_json(content: dict[str, Any]) -> FusedNode:
    geometry = content["geometry"]
    if geometry is not None:
        triples: dict[str, Any] = {
            key: value if key == "subm" else tuple(value) for key, value in geometry.items()
        }
        geometry = ConvGeometry(**triples)
    return FusedNode(**{**content, "inputs": tuple(content["inputs"]), "geometry": geometry})


def _precision(value: Any) -> Precision:
    if value not in get_args(Precision):
        raise ValueError(f"{value!r} is no precision")
    checked: Precision = value
    return checked


def _range_sharing(value: Any) -> RangeSharing:
    if value not in get_args(RangeSharing):
        raise ValueError(f"{value!r} is no way to share ranges")
    checked: RangeSharing = value
    return checked
