"""From a list of sensitive layers to a recipe that keeps them in fp16."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass

from voxelquant.quant.plan import PrecisionPlan, make_plan
from voxelquant.quant.recipe import Precision, Recipe, Rule


@dataclass(frozen=True)
class SuggestedRecipe:
    """A recipe that keeps some layers in fp16.

    Attributes:
        recipe: the policy. It holds no rule that demands 8 bits of a sum or a tensor, and no tensor
            is quantized in place: either could clash with a layer that is kept.
        kept: the layers that were asked for, in execution order.
        dragged: sums that the plan's rules take to fp16 with them, in execution order: a sum
            computes in 8 bits only between tensors of its precision and into one.
    """

    recipe: Recipe
    kept: tuple[str, ...]
    dragged: tuple[str, ...]


def keep_in_fp16(
    plan: PrecisionPlan, recipe: Recipe, kept: Collection[str], *, name: str, description: str
) -> SuggestedRecipe:
    """A recipe like another, with some layers of its plan in fp16.

    Args:
        plan: the plan that `recipe` makes of a model.
        recipe: how it quantizes; formats and the choice of ranges are taken over.
        kept: names of convolutions and sums.
        name: of the new recipe.
        description: of the new recipe.
    """
    layers = [node for node in plan.graph.nodes if node.kind in ("conv", "add")]
    fp16 = [n for n in layers if plan.precision[n.name] == "fp16" or n.name in kept]
    usual = _usual_precision(plan)
    others = [
        node
        for node in layers
        if node.kind == "conv" and plan.precision[node.name] not in ("fp16", usual)
    ]
    rules = [rule for original in recipe.rules if (rule := _without_demands(original)) is not None]
    rules += [Rule(match=_literally(n.path), precision=plan.precision[n.name]) for n in others]
    rules += [Rule(match=_literally(node.path), precision="fp16") for node in fp16]
    changes = {"name": name, "description": description, "precision": usual, "ranges": "tensor"}
    suggested = recipe.model_copy(update={**changes, "rules": tuple(rules)})
    made = make_plan(plan.graph, suggested)
    named = {node.name for node in fp16}
    return SuggestedRecipe(
        suggested,
        tuple(node.name for node in layers if node.name in kept),
        tuple(n.name for n in layers if made.precision[n.name] == "fp16" and n.name not in named),
    )


def _usual_precision(plan: PrecisionPlan) -> Precision:
    """The 8-bit precision of most layers; int8 where there is none."""
    counts = Counter(precision for precision in plan.precision.values() if precision != "fp16")
    return counts.most_common(1)[0][0] if counts else "int8"


def _without_demands(rule: Rule) -> Rule | None:
    """The rule without precisions that an fp16 neighbour could make impossible; None if empty."""
    keeps_output = rule.output_precision == "fp16"
    left = rule.model_copy(
        update={"precision": None, "output_precision": "fp16" if keeps_output else None}
    )
    fields = left.model_dump(exclude={"match"}, exclude_none=True)
    return left if fields else None


def _literally(path: str) -> str:
    return re.sub(r"([*?\[])", r"[\1]", path)
