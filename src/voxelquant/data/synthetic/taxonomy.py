"""What stands in the world: the ten nuScenes detection classes, then the scenery.

Sizes are the published class means of the nuScenes training set (Zhu et al. 2019, 1908.09492,
anchor table); the spread is a fraction of the mean.
"""

from dataclasses import dataclass

CLASS_NAMES = (
    "car",
    "truck",
    "construction_vehicle",
    "bus",
    "trailer",
    "barrier",
    "motorcycle",
    "bicycle",
    "pedestrian",
    "traffic_cone",
)  # nuScenes detection order; the index is the label


@dataclass(frozen=True)
class Kind:
    """Size statistics of one kind of object."""

    name: str
    mean_wlh_m: tuple[float, float, float]
    spread_wlh: tuple[float, float, float]
    category: str = ""  # nuScenes category; empty for scenery, which is never annotated
    range_m: float = 0.0  # the nuScenes metric ignores the class beyond this


KINDS = (
    Kind("car", (1.95, 4.62, 1.73), (0.05, 0.07, 0.09), "vehicle.car", 50),
    Kind("truck", (2.51, 6.93, 2.84), (0.08, 0.18, 0.14), "vehicle.truck", 50),
    Kind(
        "construction_vehicle",
        (2.85, 6.37, 3.19),
        (0.12, 0.18, 0.12),
        "vehicle.construction",
        50,
    ),
    Kind("bus", (2.94, 10.5, 3.47), (0.03, 0.10, 0.06), "vehicle.bus.rigid", 50),
    Kind("trailer", (2.90, 12.29, 3.87), (0.06, 0.13, 0.07), "vehicle.trailer", 50),
    Kind("barrier", (2.53, 0.50, 0.98), (0.12, 0.15, 0.08), "movable_object.barrier", 30),
    Kind("motorcycle", (0.77, 2.11, 1.47), (0.12, 0.08, 0.07), "vehicle.motorcycle", 40),
    Kind("bicycle", (0.60, 1.70, 1.28), (0.12, 0.07, 0.08), "vehicle.bicycle", 40),
    Kind("pedestrian", (0.67, 0.73, 1.77), (0.10, 0.14, 0.05), "human.pedestrian.adult", 40),
    Kind("traffic_cone", (0.41, 0.41, 1.07), (0.13, 0.13, 0.14), "movable_object.trafficcone", 30),
    Kind("building", (13.0, 16.0, 12.5), (0.15, 0.2, 0.33)),
    Kind("wall", (0.3, 9.0, 1.8), (0.2, 0.25, 0.25)),
    Kind("pole", (0.28, 0.28, 6.0), (0.2, 0.2, 0.2)),
    Kind("tree", (4.5, 4.5, 6.5), (0.22, 0.22, 0.2)),
    Kind("bush", (1.8, 2.4, 1.5), (0.25, 0.28, 0.25)),
    Kind("sign", (0.8, 0.12, 2.6), (0.15, 0.1, 0.1)),
    Kind("bin", (0.6, 0.6, 1.0), (0.2, 0.2, 0.15)),
    Kind("tower", (20.0, 24.0, 26.0), (0.15, 0.2, 0.25)),
    Kind("high_wall", (0.4, 12.0, 4.2), (0.2, 0.02, 0.25)),
    Kind("tall_tree", (8.0, 8.0, 13.0), (0.2, 0.2, 0.2)),
)

KIND_INDEX = {kind.name: index for index, kind in enumerate(KINDS)}
N_CLASSES = len(CLASS_NAMES)

CATEGORIES = (
    *(kind.category for kind in KINDS[:N_CLASSES]),
    "human.pedestrian.child",
    "human.pedestrian.construction_worker",
    "vehicle.bus.bendy",
)
CHILD, WORKER, BENDY_BUS = range(N_CLASSES, N_CLASSES + 3)

ATTRIBUTES = (
    "vehicle.moving",
    "vehicle.stopped",
    "vehicle.parked",
    "cycle.with_rider",
    "cycle.without_rider",
    "pedestrian.moving",
    "pedestrian.standing",
    "pedestrian.sitting_lying_down",
)


def attribute_of(label: int, speed_mps: float, *, in_traffic: bool, sitting: bool) -> str:
    """NuScenes attribute of an object; barriers and cones have none (empty)."""
    name = CLASS_NAMES[label]
    if name in ("barrier", "traffic_cone"):
        return ""
    moving = speed_mps > 0.2
    if name == "pedestrian" and sitting:
        return "pedestrian.sitting_lying_down"
    if name == "pedestrian":
        return "pedestrian.moving" if moving else "pedestrian.standing"
    if name in ("motorcycle", "bicycle"):
        return "cycle.with_rider" if in_traffic else "cycle.without_rider"
    if moving:
        return "vehicle.moving"
    return "vehicle.stopped" if in_traffic else "vehicle.parked"
