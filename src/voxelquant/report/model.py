"""What a report is drawn from: plain values, measured elsewhere.

Accuracies are fractions, 0..1; the page prints them in percent and differences in points.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import numpy as np
from numpy.typing import NDArray


class Execution(str, Enum):
    """How the numbers of an engine came about."""

    FLOAT = "float"
    SIMULATED = "simulated"  # fake-quant: float arithmetic on quantized values
    EXECUTED = "executed"  # integer arithmetic


@dataclass(frozen=True)
class EngineScore:
    """The official metric of one engine on one data set."""

    name: str
    execution: Execution
    mean_ap: float
    nds: float
    class_ap: Mapping[str, float]  # in the order of the table
    mean_errors: Mapping[str, float] = field(default_factory=dict)  # mATE, mASE, ... by name
    seconds_per_frame: float | None = None


@dataclass(frozen=True)
class DatasetSummary:
    """What the metric was measured on."""

    name: str
    split: str
    synthetic: bool
    frames: int
    boxes: int
    note: str = ""


@dataclass(frozen=True)
class FramePicture:
    """One frame with its boxes, seen from above."""

    caption: str
    points: NDArray[np.float32]  # [p, >=3]: x_m, y_m, z_m, ...
    ground_truth: NDArray[np.float32]  # [n, 9] det3d boxes
    float_boxes: NDArray[np.float32]  # [n, 9] det3d boxes, already cut at the score to be shown
    int8_boxes: NDArray[np.float32]  # [n, 9] det3d boxes, already cut at the score to be shown


@dataclass(frozen=True)
class TensorHistogram:
    """Calibration statistics of one tensor and the range that was chosen from them."""

    name: str
    counts: NDArray[np.float64]  # [bins] occurrences of |x| in equal bins over 0..top
    top: float  # upper edge of the last bin
    amax: float
    method: str


@dataclass(frozen=True)
class LayerParity:
    """One layer of the sparse graph, compared between its executions."""

    path: str
    kind: str  # conv, add, ...
    precision: str  # int8, fp16, ...
    sqnr_db: float | None = None  # integer engine against float, both running from the points
    relative_l2: float | None = None  # of the same pair
    codes: int = 0  # output codes of fake-quant and engine compared, given equal inputs
    differing_codes: int = 0
    largest_code_difference: int = 0
    file_equals_engine: bool | None = None  # bit for bit; None where there is no exported file


@dataclass(frozen=True)
class RunReport:
    """Everything on the page. The first score is the baseline that the others are compared with."""

    title: str
    summary: str
    dataset: DatasetSummary
    scores: tuple[EngineScore, ...]
    calibration: Mapping[str, str] = field(default_factory=dict)  # recipe, method, frames, ...
    pictures: tuple[FramePicture, ...] = ()
    histograms: tuple[TensorHistogram, ...] = ()
    layers: tuple[LayerParity, ...] = ()
    seconds: Mapping[str, float] = field(default_factory=dict)
    files_bytes: Mapping[str, int] = field(default_factory=dict)  # path -> size
    provenance: Mapping[str, Any] = field(default_factory=dict)
