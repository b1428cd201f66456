"""How far the synthetic world is from nuScenes, computed from a result of world.py alone."""

from dataclasses import dataclass
from typing import Any

Result = dict[str, Any]
FEWEST_BOXES = 20  # of the synthetic ones in a ring of distance, to rank a real one among them


@dataclass(frozen=True)
class Gap:
    """One histogram of one real frame beside the same of the synthetic world."""

    measure: str
    title: str
    frame: str  # which real frame
    distance: float  # total variation: the share that lies in other bins
    usual: float  # the same for single synthetic frames, median
    rare: float  # and exceeded by one synthetic frame in twenty
    too_few: str  # where the synthetic world lacks most
    too_many: str

    @property
    def ratio(self) -> float:
        """Above 1: farther from the synthetic mean than 19 of 20 synthetic frames."""
        return self.distance / self.rare

    @property
    def differs(self) -> bool:
        """Whether the real frame would be a rare one in the synthetic world, as printed."""
        return round(self.ratio, 2) > 1


@dataclass(frozen=True)
class Outlier:
    """One figure of a real frame beside its spread over the synthetic frames."""

    name: str
    frame: str
    real: float
    spread: dict[str, float]  # mean, p5, p25, p50, p75, p95

    @property
    def outside(self) -> bool:
        """Whether it lies below p5 or above p95 of the synthetic frames, as printed."""
        low, real, high = (
            as_printed(self.name, value)
            for value in (self.spread["p5"], self.real, self.spread["p95"])
        )
        return not low <= real <= high


def as_printed(name: str, value: float) -> float:
    """A single figure with the decimals of the page, shares of intensities in percent."""
    if name.startswith("intensity"):
        return round(100 * value, 3)
    return round(value, 2 if name.startswith("neighbours") else 0)


def histogram_gaps(result: Result) -> list[Gap]:
    """All histograms of all real frames, the worst first."""
    gaps = [
        _gap(result, measure, frame)
        for frame, real in result["nuscenes"]["frames"].items()
        for measure in real["histograms"]
    ]
    return sorted(gaps, key=lambda gap: -gap.ratio)


def _gap(result: Result, measure: str, frame: str) -> Gap:
    what = result["measures"]["histograms"][measure]
    ours = result["synthetic"]["histograms"][measure]
    real = result["nuscenes"]["frames"][frame]["histograms"][measure]
    lack = [r - s for r, s in zip(real, ours["share"], strict=True)]
    return Gap(
        measure=measure,
        title=measure.replace("_", " "),
        frame=frame,
        distance=sum(map(abs, lack)) / 2,
        usual=ours["distance"]["p50"],
        rare=ours["distance"]["p95"],
        too_few=_where(heaviest_run(lack), what["edges"]),
        too_many=_where(heaviest_run([-part for part in lack]), what["edges"]),
    )


def heaviest_run(weights: list[float]) -> tuple[int, int, float]:
    """First bin, last bin and weight of the contiguous run whose sum is largest (Kadane)."""
    best, begin, total = (0, 0, weights[0]), 0, 0.0
    for place, weight in enumerate(weights):
        if total <= 0:
            begin, total = place, 0.0
        total += weight
        if total > best[2]:
            best = (begin, place, total)
    return best


def _where(run: tuple[int, int, float], edges: list[float]) -> str:
    first, last, weight = run
    low, high = edges[first], edges[last + 1]
    if all(edge % 1 == 0.5 for edge in edges):  # bins of whole numbers
        low, high = low + 0.5, high - 0.5
    place = f"{low:g}" if low == high else f"{low:g} to {high:g}"
    return f"{place}: {100 * weight:.1f} %"


def single_figures(result: Result) -> list[Outlier]:
    """All single figures of all real frames, those outside of the synthetic spread first."""
    figures = [
        Outlier(name, frame, value, result["synthetic"]["scalars"][name])
        for frame, real in result["nuscenes"]["frames"].items()
        for name, value in real["scalars"].items()
    ]
    return sorted(figures, key=lambda figure: not figure.outside)


def mean_rank(result: Result, name: str) -> tuple[int, float] | None:
    """Real boxes of a class among synthetic ones at their distance, by points in the box.

    Boxes without a point are left out on both sides: nuScenes' annotators label few of them.

    Returns:
        How many real boxes could be ranked, and their mean rank: 0 where all synthetic boxes of
        the class at that distance hold more points, 0.5 where worlds are alike. None: no box.
    """
    ours = result["synthetic"]["boxes"][name]["points_by_distance"]
    real = result["nuscenes"]["boxes"][name]["points_by_distance"]
    ranked, total = 0, 0.0
    for here, there in zip(ours, real, strict=True):
        seen = sum(here[1:])
        if seen < FEWEST_BOXES:
            continue
        for points, count in enumerate(there[1:], start=1):
            below = sum(here[1:points]) + here[points] / 2
            ranked, total = ranked + count, total + count * below / seen
    return (ranked, total / ranked) if ranked else None


def real_answers(result: Result, frame: Result) -> list[float]:
    """Share of each beam's firings that come back in a real frame, the ego vehicle's left out."""
    scale = frame["scalars"]["returns"] / result["firings"]
    return [share * scale for share in frame["histograms"]["returns_over_beam"]]
