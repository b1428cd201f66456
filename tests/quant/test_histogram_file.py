from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from voxelquant.errors import CalibrationError
from voxelquant.quant.histogram import MagnitudeHistogram
from voxelquant.quant.histogram_file import read_histograms, write_histograms


def some_histograms() -> dict[str, MagnitudeHistogram]:
    full, zeros, empty = (MagnitudeHistogram(name) for name in ("full", "zeros", "empty"))
    full.add(torch.randn(999, generator=torch.Generator().manual_seed(0)) / 3)
    full.counts[7] += 2.0**40 + 1  # more than float32 could count
    zeros.add(torch.zeros(5))
    return {"a.b": full, "@input": zeros, "c": empty}


def test_what_is_read_is_what_was_written(tmp_path: Path) -> None:
    written = some_histograms()
    path = tmp_path / "seen.safetensors"
    write_histograms(path, written, {"batches": 3, "request": {"é": [1, None]}})
    read, facts = read_histograms(path)
    assert facts == {"batches": 3, "request": {"é": [1, None]}}
    assert read.keys() == written.keys()
    for name, histogram in written.items():
        assert torch.equal(read[name].counts, histogram.counts)
        for field in ("name", "exponent", "zeros", "largest"):
            assert getattr(read[name], field) == getattr(histogram, field), field


def test_a_damaged_or_foreign_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "seen.safetensors"
    write_histograms(path, some_histograms(), {})
    path.write_bytes(path.read_bytes()[:-8])
    foreign, older = tmp_path / "weights.safetensors", tmp_path / "older.safetensors"
    save_file({"weight": torch.zeros(2)}, foreign)
    save_file({"weight": torch.zeros(2)}, older, metadata={"format": "voxelquant.histograms 0"})
    for unusable in (path, foreign, older, tmp_path / "nowhere"):
        with pytest.raises(CalibrationError, match=f"{unusable}: got no usable histograms"):
            read_histograms(unusable)
