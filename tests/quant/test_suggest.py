"""Recipes that keep layers in fp16 always resolve, whatever rules they start from."""

from collections.abc import Callable

import pytest
import yaml
from torch import nn

from voxelquant.quant import Recipe, calibrate, load_recipe, quantization_of, quantize
from voxelquant.quant.plan import PrecisionPlan
from voxelquant.quant.recipe import Rule
from voxelquant.quant.suggest import SuggestedRecipe, keep_in_fp16

DEMANDING = Recipe(
    name="demanding",
    precision="fp16",
    rules=(
        Rule(match="*conv*", precision="int8"),
        Rule(match="conv_input.0", precision="fp16"),
        Rule(match="conv1.0.conv2", output_precision="int8", method="max"),
        Rule(match="*.conv1", weight_bits=4),
        Rule(match="extra_conv.*", output_precision="fp16"),
    ),
)


MIXED = Recipe(
    name="mixed",
    precision="fp8",
    rules=(Rule(match="conv1.0.conv?", precision="int8"),),
)


@pytest.fixture
def plan_of(make_network, make_frame) -> Callable[[Recipe], PrecisionPlan]:
    def make(recipe: Recipe) -> PrecisionPlan:
        qmodel = quantize(make_network("residual"), recipe, example=make_frame(0))
        return quantization_of(qmodel).require_plan()

    return make


def suggest(plan: PrecisionPlan, recipe: Recipe, *kept: str) -> SuggestedRecipe:
    return keep_in_fp16(plan, recipe, kept, name="kept", description="As they are.")


def in_fp16(plan: PrecisionPlan) -> set[str]:
    return {
        n.name
        for n in plan.graph.nodes
        if n.kind != "to_dense" and plan.precision[n.name] == "fp16"
    }


LAYERS = [
    "conv_input.0",
    "conv1.0.conv1",
    "conv1.0.conv2",
    "conv1.0.add",
    "conv1.1.conv1",
    "conv1.1.add",
    "conv2.0",
    "conv2.3.conv2",
    "conv2.3.add",
    "extra_conv.0",
]


@pytest.mark.parametrize(
    "recipe", ["int8", "every_layer", "reference", "nvidia", "reference_fp8", DEMANDING, MIXED]
)
@pytest.mark.parametrize("kept", LAYERS)
def test_any_layer_can_be_kept(plan_of, recipe, kept) -> None:
    recipe = load_recipe(recipe)
    before = plan_of(recipe)
    suggested = suggest(before, recipe, kept)
    after = plan_of(suggested.recipe)  # must not raise
    assert in_fp16(after) == in_fp16(before) | {kept} | set(suggested.dragged)
    assert suggested.kept == (kept,)
    assert all(after.graph.node(name).kind == "add" for name in suggested.dragged)


def test_sums_beside_a_kept_convolution_are_named(plan_of) -> None:
    recipe = load_recipe("int8")
    # conv1 of the second block reads what the first block's sum makes: that tensor becomes fp16.
    suggested = suggest(plan_of(recipe), recipe, "conv1.1.conv1")
    assert suggested.dragged == ("conv1.0.add", "conv1.1.add")
    assert suggest(plan_of(recipe), recipe, "extra_conv.0").dragged == ("conv2.3.add",)


def test_formats_and_ranges_are_taken_over(plan_of) -> None:
    suggested = suggest(plan_of(DEMANDING), DEMANDING, "conv2.0").recipe
    assert suggested.weight_spec("conv1.0.conv1", "int8").fmt.bits == 4
    assert suggested.activation_spec("conv1.0.conv2", "int8").method == "max"
    assert suggested.setting("extra_conv.0", "output_precision") == "fp16"
    assert all(
        rule.precision != "int8" and rule.output_precision != "int8" for rule in suggested.rules
    )


@pytest.mark.parametrize("recipe", ["fp8", MIXED])
def test_layers_keep_their_8_bit_precision(plan_of, recipe) -> None:
    recipe = load_recipe(recipe)
    before = plan_of(recipe)
    after = plan_of(suggest(before, recipe, "extra_conv.0").recipe)
    convs = [node.name for node in after.quantized_convs]
    assert "conv1.0.conv1" in convs
    assert {name: after.precision[name] for name in convs} == {
        name: before.precision[name] for name in convs
    }


def test_nothing_kept_is_the_recipe_itself(plan_of) -> None:
    recipe = load_recipe("reference")
    suggested = suggest(plan_of(recipe), recipe)
    assert (suggested.kept, suggested.dragged) == ((), ())
    assert plan_of(suggested.recipe).precision == plan_of(recipe).precision


def test_a_model_is_quantized_by_the_file(plan_of, make_network, frames_of, tmp_path) -> None:
    recipe = load_recipe("int8")
    suggested = suggest(plan_of(recipe), recipe, "conv2.3.conv1").recipe
    path = tmp_path / "suggested.yaml"
    path.write_text(yaml.safe_dump(suggested.model_dump(mode="json", exclude_defaults=True)))
    assert load_recipe(path) == suggested
    qmodel: nn.Module = quantize(make_network("residual"), str(path))
    calibrate(qmodel, frames_of("residual"))
    assert quantization_of(qmodel).require_plan().precision["conv2.3.conv1"] == "fp16"
