"""From the figures of many frames to what the result file holds of them."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from world_measures import INTENSITY_RANGES_M, MEASURES, FrameFigures

PERCENT = tuple(range(101))
OUTER = (0.05, 0.95)  # nine of ten frames are between
INTENSITY_QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95, 0.99)
FEW_POINTS = 50  # fewer say nothing about a distribution
VOXEL_BIN = 2_500  # width of the bins of the histogram of voxel counts


def summarize_world(frames: Sequence[FrameFigures], firings: int) -> dict[str, Any]:
    """Mean histogram of each measure, how far single frames are from it, and single figures.

    `answers` is the share of the `firings` of each beam that come back, mean and quantiles.
    """
    returns = torch.stack([frame.histograms["returns_over_beam"] for frame in frames])
    low, high = quantiles(returns / firings, OUTER)
    mean = returns.mean(0) / firings
    return {
        "answers": {"mean": mean.tolist(), "p5": low.tolist(), "p95": high.tolist()},
        "histograms": {
            name: summarize_histograms(torch.stack([frame.histograms[name] for frame in frames]))
            for name in MEASURES
        },
        "scalars": {
            name: spread_of(torch.tensor([frame.scalars[name] for frame in frames]).double())
            for name in frames[0].scalars
        },
    }


def summarize_histograms(counts: Tensor) -> dict[str, Any]:
    """Of counts [frames, bins]: shares of all that was counted, and between single frames.

    Returns:
        `share` of each bin; `p5` and `p95`, between which nine of ten frames are, bin by bin; and
        `distance` of a single frame from `share`, median and 95th percentile.
    """
    share = shares_of(counts.sum(0))
    single = shares_of(counts)
    low, high = quantiles(single, OUTER)
    away = torch.tensor([distance_between(frame, share) for frame in single]).double()
    median, far = quantiles(away, (0.5, 0.95)).tolist()
    return {
        "share": share.tolist(),
        "p5": low.tolist(),
        "p95": high.tolist(),
        "distance": {"p50": median, "p95": far},
    }


def summarize_real(frames: dict[str, FrameFigures]) -> dict[str, Any]:
    """Histograms, as shares, and single figures of real frames, by name of the frame."""
    return {
        name: {
            "histograms": {
                measure: shares_of(counts).tolist() for measure, counts in frame.histograms.items()
            },
            "scalars": frame.scalars,
        }
        for name, frame in frames.items()
    }


def shares_of(counts: Tensor) -> Tensor:
    """Counts [..., bins] as shares of their sum."""
    return counts / counts.sum(-1, keepdim=True).clamp_min(1)


def distance_between(one: Tensor, other: Tensor) -> float:
    """Total variation distance of two histograms of shares: the share in other bins, 0..1."""
    return float((one - other).abs().sum() / 2)


def largest_gap(one: Tensor, other: Tensor) -> float:
    """Largest difference of two cumulative distributions on the same bins (Kolmogorov-Smirnov)."""
    return float((one.cumsum(0) - other.cumsum(0)).abs().max())


def spread_of(values: Tensor) -> dict[str, float]:
    """Mean and quantiles of one figure over the frames."""
    levels = (0.05, 0.25, 0.5, 0.75, 0.95)
    picks = quantiles(values, levels).tolist()
    named = {f"p{round(100 * level)}": pick for level, pick in zip(levels, picks, strict=True)}
    return {"mean": float(values.mean()), **named}


def describe_voxel_counts(ours: Tensor, real: Tensor) -> dict[str, Any]:
    """Voxels a frame, ours beside all validation frames: every percentile, and how far apart."""
    levels = [place / 100 for place in PERCENT]
    bins = int(max(ours.max(), real.max())) // VOXEL_BIN + 1
    one, other = (
        shares_of(torch.bincount((v / VOXEL_BIN).long(), minlength=bins).double())
        for v in (ours, real)
    )
    return {
        "synthetic": {"mean": float(ours.mean()), "percentiles": quantiles(ours, levels).tolist()},
        "nuscenes": {
            "mean": float(real.mean()),
            "percentiles": quantiles(real, levels).tolist(),
            "frames": len(real),
        },
        "largest_gap": largest_gap(one, other),
        "largest_gap_at": VOXEL_BIN * (1 + int((one.cumsum(0) - other.cumsum(0)).abs().argmax())),
        "gap_of_chance": 1.36 * len(ours) ** -0.5,  # exceeded once in twenty by equal worlds
    }


def quantiles(values: Tensor, levels: Sequence[float]) -> Tensor:
    """Quantiles that occur, along the first axis, [levels, ...] float64.

    Of n sorted values that of rank (n - 1) · level, rounded half to even; every quantile of a
    result is one of these.
    """
    wanted = torch.tensor(levels, dtype=torch.float64)
    return torch.quantile(values.double(), wanted, dim=0, interpolation="nearest")


def describe_brightness(counts: Tensor, levels: Sequence[float]) -> dict[str, Any]:
    """Of counts [256]: how many points, and quantiles of their intensity; None for too few."""
    total = float(counts.sum())
    return {
        "points": total,
        "quantiles": levels_of(counts, levels) if total >= FEW_POINTS else None,
    }


def levels_of(counts: Tensor, levels: Sequence[float]) -> list[int]:
    """The same of whole numbers 0, 1, ... that were counted."""
    below = counts.double().cumsum(0)
    ranks = (torch.tensor(levels, dtype=torch.float64) * (below[-1] - 1)).round().clamp_min(0)
    found = torch.searchsorted(below, ranks, right=True)
    return found.clamp(max=len(counts) - 1).tolist()


def summarize_intensity(counts: Tensor) -> dict[str, Any]:
    """Of counts [ranges, 256]: quantiles of the intensity in each range."""
    edges = INTENSITY_RANGES_M
    rows = [
        {"returns": float(row.sum()), "quantiles": levels_of(row, INTENSITY_QUANTILES)}
        for row in counts
    ]
    return {"edges_m": list(edges), "levels": list(INTENSITY_QUANTILES), "ranges": rows}
