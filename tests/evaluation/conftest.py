from pathlib import Path

import pytest

from nuscenes_world import CLASS_NAMES, VERSION, TinyNuScenes, write_tiny_nuscenes
from voxelquant.data.nuscenes import NuScenesDataset


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyNuScenes:
    return write_tiny_nuscenes(tmp_path_factory.mktemp("nuscenes"))


@pytest.fixture(scope="session")
def dataset(tiny: TinyNuScenes) -> NuScenesDataset:
    return NuScenesDataset(tiny.root, VERSION, "check", CLASS_NAMES, nsweeps=1)


@pytest.fixture(scope="session")
def tilted(tmp_path_factory: pytest.TempPathFactory) -> NuScenesDataset:
    """The same scenes, seen by a LiDAR whose mount leans."""
    tiny = write_tiny_nuscenes(Path(tmp_path_factory.mktemp("tilted")), tilt_rad=0.05)
    return NuScenesDataset(tiny.root, VERSION, "check", CLASS_NAMES, nsweeps=1)
