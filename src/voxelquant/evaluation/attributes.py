"""nuScenes attributes of detections, guessed from class and speed as CenterPoint does.

The detector does not predict attributes; the metric scores them (mAAE), so the reference fills
them in by rule.
"""

MOVING_MPS = 0.2  # faster than this is moving

# Class -> attribute when moving, attribute when not. Barriers and cones have none in nuScenes and
# the metric ignores them there; the reference writes this one, so do we.
_ATTRIBUTES = {
    "car": ("vehicle.moving", "vehicle.parked"),
    "truck": ("vehicle.moving", "vehicle.parked"),
    "construction_vehicle": ("vehicle.moving", "vehicle.parked"),
    "bus": ("vehicle.moving", "vehicle.stopped"),
    "trailer": ("vehicle.moving", "vehicle.parked"),
    "barrier": ("cycle.with_rider", "cycle.with_rider"),
    "motorcycle": ("cycle.with_rider", "cycle.without_rider"),
    "bicycle": ("cycle.with_rider", "cycle.without_rider"),
    "pedestrian": ("pedestrian.moving", "pedestrian.standing"),
    "traffic_cone": ("cycle.with_rider", "cycle.with_rider"),
}
DETECTION_CLASSES = tuple(_ATTRIBUTES)


def attribute_name(class_name: str, speed_mps: float) -> str:
    """Attribute of a detection.

    Args:
        class_name: One of the ten nuScenes detection classes.
        speed_mps: Speed over ground, in the global frame.

    Example:
        >>> attribute_name("bus", 0.1), attribute_name("car", 3.0)
        ('vehicle.stopped', 'vehicle.moving')
    """
    moving, still = _ATTRIBUTES[class_name]
    return moving if speed_mps > MOVING_MPS else still
