import os
from pathlib import Path

import pytest
from hypothesis import settings

# A test run leaves no file behind, and a slow machine is not a failure.
settings.register_profile("voxelquant", database=None, deadline=None)
settings.load_profile("voxelquant")


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder of real nuScenes LiDAR, never part of the project; absent on most machines."""
    default = Path(__file__).resolve().parents[1].parent / "shared" / "data"
    folder = Path(os.environ.get("VOXELQUANT_REAL_DATA", default))
    if not (folder / "nuscenes_voxels_79745.npz").exists():
        pytest.skip(f"no real nuScenes LiDAR at {folder} (set VOXELQUANT_REAL_DATA)")
    return folder
