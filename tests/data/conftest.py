from pathlib import Path

import pytest

from nuscenes_world import TinyNuScenes, write_tiny_nuscenes


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyNuScenes:
    """Read-only; a test that damages the dataset takes `broken`."""
    return write_tiny_nuscenes(tmp_path_factory.mktemp("nuscenes"), tilt_rad=0.05)


@pytest.fixture
def broken(tmp_path: Path) -> TinyNuScenes:
    return write_tiny_nuscenes(tmp_path)
