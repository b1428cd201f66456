import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import settings

# Without a GPU the kernels run in Triton's interpreter, which must be chosen before Triton is
# imported; importing torch does not import it.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

# A slow machine is not a failure.
settings.register_profile("voxelquant", database=None, deadline=None)
settings.load_profile("voxelquant")


def pytest_configure(config: pytest.Config) -> None:
    """Hypothesis keeps notes in the working directory; a test run leaves no file behind."""
    notes = tempfile.TemporaryDirectory(prefix="voxelquant-hypothesis-")
    config.add_cleanup(notes.cleanup)
    os.environ["HYPOTHESIS_STORAGE_DIRECTORY"] = notes.name


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder of real nuScenes LiDAR, never part of the project; absent on most machines."""
    default = Path(__file__).resolve().parents[1].parent / "shared" / "data"
    folder = Path(os.environ.get("VOXELQUANT_REAL_DATA", default))
    if not (folder / "nuscenes_voxels_79745.npz").exists():
        pytest.skip(f"no real nuScenes LiDAR at {folder} (set VOXELQUANT_REAL_DATA)")
    return folder


@pytest.fixture(scope="module")
def single_thread() -> Iterator[None]:
    """As many threads as the processes of `torchrun.py` have: more would sum in another order."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
