"""Recipes: which layers compute in which precision, and how ranges are chosen.

A recipe is a YAML file of a few defaults and a list of rules. A rule's `match` is a shell wildcard
over module paths (`*` also crosses dots); later rules win, field by field.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from fnmatch import fnmatchcase
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from voxelquant.errors import ConfigError
from voxelquant.numerics import FP8_E4M3, INT8, IntFormat, NumberFormat
from voxelquant.quant.spec import Method, QuantSpec

Precision = Literal["int8", "fp8", "fp16"]
Bits = Literal[4, 8]
ActivationRanges = Literal["frozen", "ema", "learned"]
WeightRanges = Literal["frozen", "max", "learned"]
RangeSharing = Literal["tensor", "in_place"]


_FORMATS: dict[Precision, NumberFormat] = {"int8": INT8, "fp8": FP8_E4M3}


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ActivationDefaults(_Strict):
    """How the ranges of activations are chosen; see `QuantSpec`."""

    method: Method = "mse"
    percentile: float = Field(default=99.99, gt=0.0, le=100.0)
    skip_zeros: bool = False


class WeightDefaults(_Strict):
    """Bits of the weights of int8 layers; ranges are the maximum of each output channel."""

    bits: Bits = 8


class Rule(_Strict):
    """Overrides for every node whose module path matches.

    `method`, `percentile` and `skip_zeros` speak of the tensor that the node *makes* (its fused
    ReLU included), since a tensor has one range, whoever consumes it; `@input` is the graph's own.
    In a recipe of `ranges: in_place` they speak of the range with which the node *reads*.
    """

    match: str
    precision: Precision | None = None
    output_precision: Precision | None = None
    weight_bits: Bits | None = None
    method: Method | None = None
    percentile: float | None = Field(default=None, gt=0.0, le=100.0)
    skip_zeros: bool | None = None


class RangeTraining(_Strict):
    """What becomes of the ranges in quantization-aware training.

    Attributes:
        activation_ranges: `frozen` at their calibrated value; `ema`, a moving average of the
            largest magnitude of each step (Jacob 2018, 1712.05877); `learned` by gradient
            (Esser 2020, 1902.08153).
        weight_ranges: `frozen`; `max`, the largest magnitude of each channel after every step; or
            `learned`.
        ema_momentum: share of the newest step in the moving average.
        freeze_after: share of the steps after which no range moves any more, so that the weights
            settle in the ranges that are deployed. Moving averages have to freeze before the end.
        range_lr_factor: learned ranges train on a logarithmic scale, at so many times the learning
            rate of the weights: Adam then changes a range by about `lr * factor` of itself a step.
    """

    activation_ranges: ActivationRanges = "frozen"
    weight_ranges: WeightRanges = "frozen"
    ema_momentum: float = Field(default=0.01, gt=0.0, le=1.0)
    freeze_after: float = Field(default=0.5, gt=0.0, le=1.0)
    range_lr_factor: float = Field(default=10.0, gt=0.0)

    @model_validator(mode="after")
    def _averages_freeze(self) -> RangeTraining:
        if self.activation_ranges == "ema" and self.freeze_after == 1.0:
            raise ValueError(
                "ema ranges that never freeze are not those that the weights were trained with; "
                "give freeze_after below 1"
            )
        return self


class Recipe(_Strict):
    """A whole policy.

    Attributes:
        name: name of the recipe.
        description: one sentence for people.
        precision: compute precision of convolutions and sums that no rule names.
        raw_input: `fp16` keeps the convolution on the graph's input in fp16, because channels of
            very different reach share it (intensity runs to 255, a step of 2.0 in int8; fp8 is
            off by up to 2.3 m at 50 m); `int8` or `fp8` is its precision otherwise.
        ranges: `tensor` gives every tensor one range, whoever reads it. `in_place` is the way of
            the published CenterPoint flow, for its checkpoints: every reader has a range of its
            own (a sum one for both operands), and quantizes the tensor for all later readers too.
        activations: defaults of activation ranges.
        weights: defaults of weights.
        rules: overrides, the last match wins.
        qat: what becomes of the ranges when the model is trained further.
    """

    name: str
    description: str = ""
    precision: Precision = "int8"
    raw_input: Precision = "fp16"
    ranges: RangeSharing = "tensor"
    activations: ActivationDefaults = ActivationDefaults()
    weights: WeightDefaults = WeightDefaults()
    rules: tuple[Rule, ...] = ()
    qat: RangeTraining = RangeTraining()

    def check_matches(self, paths: Sequence[str]) -> None:
        """Raise a ConfigError for a rule that matches none of the module paths."""
        for rule in self.rules:
            if not any(fnmatchcase(path, rule.match) for path in paths):
                stem = rule.match.strip("*.")
                close = difflib.get_close_matches(stem, paths, n=3, cutoff=0.3) or list(paths[:3])
                raise ConfigError(
                    f"recipe {self.name!r}: got a rule for {rule.match!r} that matches no layer of "
                    f"this model, need a wildcard over its module paths; close ones are {close}"
                )

    def setting(self, path: str, field: str) -> Any:
        """Value that the last matching rule gives to a field, or None."""
        for rule in reversed(self.rules):
            value = getattr(rule, field)
            if value is not None and fnmatchcase(path, rule.match):
                return value
        return None

    def activation_spec(self, node: str, precision: Precision) -> QuantSpec:
        """Spec of the tensor that a node makes, or with `ranges: in_place` of what it reads.

        Args:
            node: name of the node.
            precision: `int8` or `fp8`, of the layers that read with this range.
        """
        chosen = {
            field: self.setting(node, field) for field in ("method", "percentile", "skip_zeros")
        }
        given = {field: value for field, value in chosen.items() if value is not None}
        fmt = _FORMATS[precision]
        return QuantSpec(**{"fmt": fmt, **self.activations.model_dump(), **given})

    def weight_bits(self, path: str) -> Bits:
        """Bits that the recipe gives to a convolution's weight."""
        bits: Bits = self.setting(path, "weight_bits") or self.weights.bits
        return bits

    def weight_spec(self, path: str, precision: Precision) -> QuantSpec:
        """Spec of the weight of a convolution that computes in `int8` or `fp8`."""
        fmt = IntFormat(self.weight_bits(path)) if precision == "int8" else _FORMATS[precision]
        return QuantSpec(fmt, "per_channel", "max")

    def check_method(self, method: Method | None) -> None:
        """Raise a ConfigError for a method that a layer of this recipe cannot use.

        Args:
            method: what overrides the recipe's own methods; None overrides nothing.
        """
        named = [self.precision, self.raw_input, *(rule.precision for rule in self.rules)]
        if method is not None and "fp8" in named:
            QuantSpec(FP8_E4M3, method=method)


def bundled_recipes() -> list[str]:
    """Names of the recipes that come with the package."""
    folder = resources.files("voxelquant.quant") / "recipes"
    return sorted(item.name[:-5] for item in folder.iterdir() if item.name.endswith(".yaml"))


def load_recipe(source: str | Path | Recipe) -> Recipe:
    """Recipe from a bundled name, a YAML file, or itself.

    Raises:
        ConfigError: no such recipe, not YAML, or an unknown or ill-typed key.

    >>> load_recipe("int8").precision
    'int8'
    """
    if isinstance(source, Recipe):
        return source
    text = _read_source(source)
    try:
        content = yaml.safe_load(text)
    except yaml.YAMLError as error:
        reason = str(error).replace("\n", " ")
        raise ConfigError(f"recipe {source}: got a file that is not YAML ({reason})") from error
    if not isinstance(content, dict):
        raise ConfigError(f"recipe {source}: got {type(content).__name__}, need a YAML mapping")
    return parse_recipe(content, str(source))


def parse_recipe(content: dict[str, Any], source: str) -> Recipe:
    """Validated recipe; an error names `source`, the key, and the nearest known key."""
    try:
        return Recipe.model_validate(content)
    except ValidationError as error:
        raise ConfigError(f"recipe {source}: {_explain(error)}") from error


def _read_source(source: str | Path) -> str:
    if isinstance(source, str) and source in bundled_recipes():
        return (resources.files("voxelquant.quant") / "recipes" / f"{source}.yaml").read_text()
    path = Path(source)
    if not path.is_file():
        close = difflib.get_close_matches(str(source), bundled_recipes(), n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise ConfigError(
            f"recipe {source}: got neither a file nor a bundled name, need one of "
            f"{bundled_recipes()} or a YAML file{hint}"
        )
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"recipe {source}: cannot be read as text ({error})") from error


_LEVELS: dict[str, type[BaseModel]] = {
    "activations": ActivationDefaults,
    "weights": WeightDefaults,
    "rules": Rule,
    "qat": RangeTraining,
}


def _explain(error: ValidationError) -> str:
    first = error.errors()[0]
    location = ".".join(str(part) for part in first["loc"])
    if first["type"] != "extra_forbidden":
        return f"{location}: got {first['input']!r}, {first['msg']}"
    level = _LEVELS.get(str(first["loc"][0]), Recipe) if len(first["loc"]) > 1 else Recipe
    known = list(level.model_fields)
    close = difflib.get_close_matches(str(first["loc"][-1]), known, n=1, cutoff=0.0)
    return f"got the unknown key {location!r}, the nearest known one is {close[0]!r}"
