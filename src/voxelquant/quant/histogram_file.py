"""Histograms in a file: safetensors, with everything that is not a count as JSON in its header."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch

from voxelquant.atomic_file import atomic_path
from voxelquant.errors import CalibrationError
from voxelquant.quant.histogram import BINS, MagnitudeHistogram

_FORMAT = "voxelquant.histograms 1"


def write_histograms(
    path: Path, histograms: Mapping[str, MagnitudeHistogram], facts: Mapping[str, Any]
) -> None:
    """Write histograms by tensor, whole or not at all; they are read back exactly.

    Args:
        path: final name.
        histograms: of each tensor.
        facts: plain JSON that is kept beside them.

    Raises:
        CalibrationError: the file cannot be written.
    """
    rest = {name: (h.name, h.exponent, h.zeros, h.largest) for name, h in histograms.items()}
    header = {"format": _FORMAT, "facts": json.dumps(facts), "rest": json.dumps(rest)}
    counts = {name: histogram.counts for name, histogram in histograms.items()}
    with atomic_path(path, CalibrationError) as unfinished:
        unfinished.write_bytes(safetensors.torch.save(counts, metadata=header))


def read_histograms(path: Path) -> tuple[dict[str, MagnitudeHistogram], dict[str, Any]]:
    """Histograms by tensor, and the facts beside them.

    Raises:
        CalibrationError: missing, damaged, or no file of histograms.
    """
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            counts = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if header["format"] != _FORMAT:
            raise ValueError(f"format {header['format']!r}, need {_FORMAT!r}")
        rest = json.loads(header["rest"])
        histograms = {
            name: MagnitudeHistogram(known, exponent, counts[name], zeros, largest)
            for name, (known, exponent, zeros, largest) in rest.items()
        }
        if any(histogram.counts.shape != (BINS,) for histogram in histograms.values()):
            raise ValueError(f"histograms of another size, need {BINS} bins")
        return histograms, json.loads(header["facts"])
    except (safetensors.SafetensorError, OSError, KeyError, ValueError, TypeError) as error:
        reason = str(error).split("\n", 1)[0]
        raise CalibrationError(f"{path}: got no usable histograms ({reason}); remove it") from error
