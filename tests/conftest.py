import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import settings

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
