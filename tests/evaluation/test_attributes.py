import pytest

from nuscenes_world import CLASS_NAMES
from voxelquant.evaluation.attributes import DETECTION_CLASSES, attribute_name

# The specification's three rules, written down the way it states them.
VEHICLES = ("car", "construction_vehicle", "bus", "truck", "trailer")
CYCLES = ("bicycle", "motorcycle")
DEFAULTS = {
    "car": "vehicle.parked",
    "truck": "vehicle.parked",
    "trailer": "vehicle.parked",
    "construction_vehicle": "vehicle.parked",
    "bus": "vehicle.moving",
    "bicycle": "cycle.without_rider",
    "motorcycle": "cycle.without_rider",
    "pedestrian": "pedestrian.moving",
    "barrier": "cycle.with_rider",
    "traffic_cone": "cycle.with_rider",
}


def rule(name: str, speed_mps: float) -> str:
    if speed_mps > 0.2:
        if name in VEHICLES:
            return "vehicle.moving"
        if name in CYCLES:
            return "cycle.with_rider"
    elif name == "pedestrian":
        return "pedestrian.standing"
    elif name == "bus":
        return "vehicle.stopped"
    return DEFAULTS[name]


@pytest.mark.parametrize("speed_mps", [0.0, 0.2, 0.2000001, 15.0])
@pytest.mark.parametrize("name", CLASS_NAMES)
def test_every_class_and_both_sides_of_the_threshold(name: str, speed_mps: float) -> None:
    assert attribute_name(name, speed_mps) == rule(name, speed_mps)


def test_classes_stand_in_the_order_of_the_tasks() -> None:
    assert DETECTION_CLASSES == CLASS_NAMES
