"""The tile benchmark on few voxels, in Triton's interpreter where there is no GPU."""

import importlib
import json
from pathlib import Path

import pytest

from voxelquant.sparse.backends.triton import conv, conv_tiles

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


def test_every_product_of_some_layers_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.setattr(conv_tiles, "_tuned", {})
    device = "cpu" if conv.INTERPRETED else "cuda"
    out = tmp_path / "tiles.json"
    arguments = ["--device", device, "--voxels", "60", "--batch", "1", "--dtypes", "fp16"]
    arguments += ["--channels", "16", "--frame", str(tmp_path / "absent.npz"), "--out", str(out)]
    importlib.import_module("conv_tiles_gpu").main(arguments)
    found = {(p["kind"], p["c_in"], p["c_out"]) for p in json.loads(out.read_text())["products"]}
    assert found == {
        (kind, c_in, c_out)
        for kind, c_in, c_out in [
            ("conv", 5, 16),
            ("conv", 16, 5),
            ("conv", 16, 16),
            ("weight_grad", 5, 16),
            ("weight_grad", 16, 16),
        ]
    }
    assert len(conv_tiles._tuned) == 5
