"""What a sensitivity profile is asked for, and what makes two of them the same."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from voxelquant import __version__
from voxelquant.data.records import FrameDataset
from voxelquant.detection.config import DetectorConfig
from voxelquant.digest import file_digest, text_digest
from voxelquant.errors import BadInputError
from voxelquant.quant.layer_forms import Mode
from voxelquant.quant.recipe import Recipe, load_recipe
from voxelquant.quant.spec import Method
from voxelquant.recipes.quant_states import is_quant_state
from voxelquant.recipes.sensitivity_result import SuggestionRule

Metric = Literal["map", "proxy"]
DEFAULT_RECIPE = "int8"


@dataclass(frozen=True)
class SensitivityRequest:
    """What the command line asks for.

    Attributes:
        config: detector.
        data: data root; None is the config's.
        weights: float weights, which are calibrated here, or a QuantState, whose ranges are taken.
        work_dir: results, and what a broken off profile needs to go on.
        metric: `map`: the official metric, and the proxy beside it; `proxy`: needs no labels.
        mode: `one` layer quantized at a time, or `all-but-one`.
        float_weights: what the QuantState in `weights` was made from. Without them its stored
            weights, which are rounded to their codes already, serve as the float ones, so that
            only the rounding of activations is seen.
        recipe: None is `int8`: all but the convolution on the raw input, which `every_layer`
            quantizes too; a QuantState has its own.
        method: how ranges are chosen; None is the recipe's.
        calibrate_batches: batches that ranges are chosen from.
        batch_size: frames of a calibration batch.
        frames: so many, evenly spaced over the split; None is all of them.
        rule: which layers the suggested recipe keeps in fp16.
        resamples: of the bootstrap behind the intervals.
        save_every: frames in a chunk: at most so many are lost when a process is killed.
        split: of the frames; default: the one for validation.
        calibration_split: default: the one for training.
        version: version folder of the tables.
        device: where it runs.
    """

    config: str
    data: str | None
    weights: Path
    work_dir: Path
    metric: Metric = "map"
    mode: Mode = "one"
    float_weights: Path | None = None
    recipe: str | None = None
    method: Method | None = None
    calibrate_batches: int = 400
    batch_size: int = 1
    frames: int | None = None
    rule: SuggestionRule = field(default_factory=SuggestionRule)
    resamples: int = 500
    save_every: int = 10
    split: str | None = None
    calibration_split: str | None = None
    version: str | None = None
    device: str = "auto"


def spaced_indices(total: int, wanted: int | None) -> list[int]:
    """So many of the frames, evenly spaced; all of them for None or more than there are.

    >>> spaced_indices(10, 4)
    [0, 2, 5, 7]
    """
    count = total if wanted is None else min(wanted, total)
    return [place * total // count for place in range(count)]


def check_combination(request: SensitivityRequest, from_state: bool) -> None:
    """Refuse flags that the given weights leave no use for.

    Raises:
        BadInputError: a recipe or method for a quantized state, or float weights beside float ones.
    """
    if from_state:
        for flag, value in (("--recipe", request.recipe), ("--method", request.method)):
            if value is not None:
                raise BadInputError(
                    f"{request.weights}: got {flag} for a quantized state, which has its own "
                    f"recipe and ranges; leave {flag} away, or give float weights"
                )
    elif request.float_weights is not None:
        raise BadInputError(
            f"{request.weights}: got --float-weights beside float weights, need them only for a "
            "quantized state; leave them away"
        )


def profile_identity(
    request: SensitivityRequest, config: DetectorConfig, dataset: FrameDataset, indices: list[int]
) -> dict[str, Any]:
    """Everything that the frames' outcome depends on; metric, rule and processes are none of it."""
    tokens = [dataset.sample_tokens[index] for index in indices]
    float_weights = None
    if request.float_weights is not None:
        float_weights = file_digest(request.float_weights)
    identity: dict[str, Any] = {
        "voxelquant": __version__,
        "config": config,
        "weights": file_digest(request.weights),
        "float_weights": float_weights,
        "mode": request.mode,
        "data": Path(dataset.root).resolve(),
        "version": dataset.version,
        "split": dataset.split,
        "frames": text_digest(" ".join(tokens)),
    }
    if is_quant_state(request.weights):
        return identity
    return identity | {
        "recipe": recipe_of(request),
        "method": request.method,
        "calibrate_batches": request.calibrate_batches,
        "batch_size": request.batch_size,
        "calibration_split": request.calibration_split,
    }


def recipe_of(request: SensitivityRequest) -> Recipe:
    """The recipe that float weights are quantized by."""
    return load_recipe(request.recipe or DEFAULT_RECIPE)
