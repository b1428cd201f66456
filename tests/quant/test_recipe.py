from pathlib import Path

import pytest

from voxelquant.errors import ConfigError
from voxelquant.numerics import FP8_E4M3, INT4, INT8
from voxelquant.quant.recipe import Recipe, Rule, bundled_recipes, load_recipe


def test_bundled_recipes_load_under_their_names() -> None:
    assert bundled_recipes() == [
        "every_layer",
        "fp16",
        "fp8",
        "int8",
        "nvidia",
        "reference",
        "reference_fp8",
    ]
    for name in bundled_recipes():
        assert load_recipe(name).name == name
        assert load_recipe(name).description


def test_later_rules_win_field_by_field() -> None:
    recipe = Recipe(
        name="r",
        rules=(
            Rule(match="backbone.*", precision="fp16", method="max", weight_bits=4),
            Rule(match="*conv2*", precision="int8"),
        ),
    )
    assert recipe.setting("backbone.conv2.0", "precision") == "int8"
    assert recipe.setting("backbone.conv1.0", "precision") == "fp16"
    assert recipe.setting("neck", "precision") is None
    assert recipe.activation_spec("backbone.conv2.0", "int8").method == "max"
    assert recipe.activation_spec("neck", "int8").method == "mse"
    assert recipe.weight_spec("backbone.conv2.0", "int8").fmt == INT4
    assert recipe.weight_spec("neck", "int8").fmt == INT8


def test_formats_follow_the_precision() -> None:
    recipe = Recipe(name="r", rules=(Rule(match="a", weight_bits=4, method="entropy"),))
    assert recipe.weight_spec("a", "int8").fmt == INT4
    assert recipe.weight_spec("a", "fp8").fmt == FP8_E4M3
    assert recipe.activation_spec("b", "fp8").fmt == FP8_E4M3
    with pytest.raises(ConfigError, match="got method 'entropy' for an fp8 tensor, need max"):
        recipe.activation_spec("a", "fp8")


def test_a_method_that_fp8_has_not_is_refused_before_the_work() -> None:
    with pytest.raises(ConfigError, match="got method 'entropy' for an fp8 tensor"):
        load_recipe("fp8").check_method("entropy")
    with pytest.raises(ConfigError, match="got method 'entropy' for an fp8 tensor"):
        Recipe(name="r", rules=(Rule(match="a", precision="fp8"),)).check_method("entropy")
    load_recipe("fp8").check_method("mse")
    load_recipe("fp8").check_method(None)
    load_recipe("int8").check_method("entropy")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: r\nprecison: int8", "unknown key 'precison', the nearest known one is 'precision'"),
        ("name: r\nrules: [{match: a, metod: max}]", "'rules.0.metod', the nearest.*'method'"),
        ("name: r\nactivations: {skip_zero: true}", "nearest known one is 'skip_zeros'"),
        ("name: r\nprecision: int9", "precision: got 'int9'"),
        ("name: r\nweights: {bits: 5}", "weights.bits: got 5"),
        ("name: r\nrules: [{precision: int8}]", "rules.0.match: got"),
        ("name: r\nqat: {wieght_ranges: max}", "nearest known one is 'weight_ranges'"),
        ("name: r\nqat: {weight_ranges: ema}", "qat.weight_ranges: got 'ema'"),
        ("name: r\nqat: {freeze_after: 0}", "qat.freeze_after: got 0"),
        ("- a", "got list, need a YAML mapping"),
        ("name: [", "not YAML"),
        ("a: !!python/object/apply:os.getcwd []", "not YAML"),
    ],
)
def test_malformed_recipes_are_named_in_one_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message) as caught:
        load_recipe(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_unknown_names_suggest_a_bundled_one() -> None:
    with pytest.raises(ConfigError, match="did you mean 'reference'"):
        load_recipe("referense")


def test_a_rule_without_a_match_lists_close_paths() -> None:
    recipe = Recipe(name="r", rules=(Rule(match="*conv_inptu*", precision="fp16"),))
    with pytest.raises(ConfigError, match=r"'\*conv_inptu\*' that matches no.*conv_input\.0"):
        recipe.check_matches(["backbone.conv_input.0", "backbone.conv1.0.conv1"])
