"""How frequent the classes are: as in nuScenes, or balanced.

Rates of "nuscenes" were set so that the boxes of a key frame with at least one point, within 75 m,
number as nuScenes' training annotations do: car 14.7, pedestrian 6.6, barrier 4.4, traffic cone
2.9, truck 2.6, trailer 0.74, bus 0.47, construction vehicle 0.43, motorcycle 0.36, bicycle 0.34.
"""

from dataclasses import dataclass

from voxelquant.data.synthetic.config import ClassMix

VEHICLES = ("car", "truck", "bus", "motorcycle", "trailer", "bicycle", "construction_vehicle")


@dataclass(frozen=True)
class Mix:
    """Weights are in the order of VEHICLES; chances are of a stretch of about 140 m of street."""

    lane_weights: tuple[float, ...]
    parked_weights: tuple[float, ...]
    depot_weights: tuple[float, ...]
    riders: float  # share of the places in the cycle lanes
    stands: float  # chance of bicycles and motorcycles on the side walk
    work_zone: float  # chance
    barrier_row: tuple[int, int]  # barriers of a work zone
    cone_row: float  # chance of cones without a work zone
    machines: float  # share of the three places in a work zone
    depot: float  # least chance of a yard of large vehicles, whatever the kind of scene
    people: float  # factor on the groups of pedestrians


MIXES: dict[ClassMix, Mix] = {
    "nuscenes": Mix(
        lane_weights=(0.766, 0.175, 0.034, 0.006, 0.025, 0.005, 0.003),
        parked_weights=(0.90, 0.085, 0.006, 0.009, 0.0, 0.0, 0.0),
        depot_weights=(0.14, 0.28, 0.13, 0.02, 0.40, 0.0, 0.03),
        riders=0.015,
        stands=0.065,
        work_zone=0.265,
        barrier_row=(6, 50),
        cone_row=0.3,
        machines=0.48,
        depot=0.0,
        people=0.5,
    ),
    "balanced": Mix(
        lane_weights=(0.68, 0.13, 0.06, 0.05, 0.04, 0.02, 0.02),
        parked_weights=(0.84, 0.07, 0.04, 0.05, 0.0, 0.0, 0.0),
        depot_weights=(0.08, 0.19, 0.29, 0.07, 0.28, 0.0, 0.09),
        riders=0.40,
        stands=1.0,
        work_zone=1.0,
        barrier_row=(6, 10),
        cone_row=0.0,
        machines=0.8,
        depot=1.0,
        people=1.0,
    ),
}
