"""`import voxelquant` is light: whoever only wants the integers does not pay for the rest."""

import subprocess
import sys

import pytest

HEAVY = ("triton", "nuscenes", "matplotlib", "plotly", "onnxruntime", "spconv")


def modules_after(statement: str) -> set[str]:
    """Top-level modules loaded by a fresh interpreter that ran the statement, plus CUDA's state."""
    program = f"""
import sys
{statement}
torch = sys.modules.get("torch")
print(*sorted(set(name.split(".")[0] for name in sys.modules)))
print("CUDA" if torch is not None and torch.cuda.is_initialized() else "")
"""
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    return set(result.stdout.split())


def test_import_voxelquant_is_light() -> None:
    loaded = modules_after("import voxelquant")
    assert "voxelquant" in loaded
    assert loaded.isdisjoint({*HEAVY, "CUDA"})


@pytest.mark.parametrize("statement", ["import voxelquant.cli"])
def test_command_line_starts_without_torch(statement: str) -> None:
    assert modules_after(statement).isdisjoint({*HEAVY, "CUDA", "torch", "numpy", "rich"})
