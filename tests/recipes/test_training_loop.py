"""What a training knows of its model once and for all."""

from pathlib import Path

import pytest

from small_detector import make_detector, write_config
from voxelquant.detection.config import load_config
from voxelquant.recipes.train import DetectorTrainee


@pytest.fixture
def trainee(tmp_path: Path) -> DetectorTrainee:
    path = write_config(tmp_path / "small.yaml")
    return DetectorTrainee(make_detector(path), load_config(str(path)))


def test_every_module_comes_back_into_training(trainee: DetectorTrainee) -> None:
    for evaluated in (trainee.model, trainee.detector.neck, trainee.detector.backbone.conv_input):
        evaluated.eval()
        trainee.set_mode()
        assert all(module.training for module in trainee.model.modules())


def test_all_parameters_are_clipped_and_updated(trainee: DetectorTrainee) -> None:
    expected = list(map(id, trainee.model.parameters()))
    assert list(map(id, trainee.parameters)) == expected
    groups = trainee.optimizer.param_groups
    assert [id(parameter) for group in groups for parameter in group["params"]] == expected
