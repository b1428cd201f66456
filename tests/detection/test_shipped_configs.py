"""The configs of the reference workflow describe the detectors that are bundled."""

from pathlib import Path

import pytest

from voxelquant.detection.config import load_config

FOLDER = Path(__file__).resolve().parents[2] / "configs" / "nusc" / "voxelnet"
BUNDLED = {
    "nusc_centerpoint_voxelnet_0075voxel_fix_bn_z": "centerpoint_voxel0075",
    "nusc_centerpoint_voxelnet_01voxel": "centerpoint_voxel01",
}


def test_every_config_of_the_folder_is_held() -> None:
    assert {path.stem for path in FOLDER.iterdir()} == set(BUNDLED)


@pytest.mark.parametrize("name", BUNDLED)
def test_config_equals_the_bundled_one(name) -> None:
    config = load_config(FOLDER / f"{name}.py").model_dump()
    bundled = load_config(BUNDLED[name]).model_dump()
    assert config.pop("name") == name
    assert bundled.pop("name") == BUNDLED[name]
    assert config == bundled
