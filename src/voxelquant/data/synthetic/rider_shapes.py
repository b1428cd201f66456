"""Shapes of people and of two-wheelers, with and without riders; each row is a variant."""

from voxelquant.data.synthetic.parts import Part, blob, box, swinging, upright


def _two_wheels(tyre: float, seat: float, width: float, bars: float) -> tuple[Part, ...]:
    return (
        box((-1.0, -1.0 + tyre), (-width, width), (0.0, 0.45), "dark"),
        box((1.0 - tyre, 1.0), (-width, width), (0.0, 0.45), "dark"),
        box((-0.65, 0.65), (-width * 1.6, width * 1.6), (0.25, seat), "paint", (0.25, 0.0)),
        box((0.42, 0.58), (-bars, bars), (seat + 0.02, seat + 0.12), "metal"),
    )


def _rider(seat: float, lean: float) -> tuple[Part, ...]:
    return (
        box((-0.3, 0.2), (-0.8, 0.8), (0.2, seat + 0.08), "cloth"),
        box((-0.28, 0.12 + lean), (-1.0, 1.0), (seat, 0.86), "cloth", (0.25, 0.15)),
        blob((-0.12 + lean, 0.16 + lean), (-0.36, 0.36), (0.83, 1.0), "plastic"),
    )


MOTORCYCLES = (
    (
        *_two_wheels(0.6, 0.72, 0.28, 1.0),
        box((-0.5, 0.1), (-0.5, 0.5), (0.6, 0.8), "dark"),
        box((0.3, 0.5), (-0.4, 0.4), (0.7, 1.0), "glass", (0.5, 0.2)),
    ),
    (*_two_wheels(0.5, 0.78, 0.42, 0.9), box((-0.9, -0.5), (-0.5, 0.5), (0.62, 1.0), "plastic")),
)
MOTORCYCLES_RIDDEN = (
    (*_two_wheels(0.6, 0.48, 0.28, 0.95), *_rider(0.45, 0.2)),
    (*_two_wheels(0.5, 0.5, 0.45, 0.8), *_rider(0.46, 0.05)),
)


def _bicycle(top: float, seat: float) -> tuple[Part, ...]:
    return (
        box((-1.0, -0.24), (-0.1, 0.1), (0.0, 0.52 * top), "metal"),
        box((0.24, 1.0), (-0.1, 0.1), (0.0, 0.52 * top), "metal"),
        box((-0.5, 0.5), (-0.08, 0.08), (0.35 * top, 0.72 * top), "paint"),
        box((-0.4, -0.18), (-0.25, 0.25), (0.72 * top, seat), "dark"),
        box((0.42, 0.55), (-1.0, 1.0), (0.86 * top, 1.0 * top), "metal"),
    )


BICYCLES = (_bicycle(1.0, 0.84), _bicycle(0.97, 1.0))
BICYCLES_RIDDEN = (
    (*_bicycle(0.6, 0.55), *_rider(0.5, 0.1)),
    (*_bicycle(0.58, 0.55), *_rider(0.48, 0.25)),
)


def _person(stride: float, belly: float, vest: str) -> tuple[Part, ...]:
    return (
        swinging(upright((-0.32, 0.28), (-0.5, -0.05), (0.0, 0.5), "cloth"), stride),
        swinging(upright((-0.32, 0.28), (0.05, 0.5), (0.0, 0.5), "cloth"), -stride),
        upright((-belly, belly), (-0.75, 0.75), (0.45, 0.84), vest, -0.1),
        swinging(box((-0.25, 0.25), (0.7, 1.0), (0.42, 0.8), "cloth"), stride),
        swinging(box((-0.25, 0.25), (-1.0, -0.7), (0.42, 0.8), "cloth"), -stride),
        blob((-0.32, 0.32), (-0.33, 0.33), (0.85, 1.0), "skin"),
    )


PEOPLE = (
    _person(0.3, 0.42, "cloth"),
    _person(0.5, 0.5, "cloth"),
    _person(0.65, 0.45, "cloth"),
    _person(0.4, 0.7, "cloth"),
)
WORKERS = (_person(0.35, 0.5, "retro"),)
SITTING = (
    (
        upright((-0.6, 0.0), (-0.7, 0.7), (0.3, 0.8), "cloth", -0.1),
        box((-0.6, 0.5), (-0.55, 0.55), (0.3, 0.45), "cloth"),
        box((0.35, 0.75), (-0.5, 0.5), (0.0, 0.4), "cloth"),
        box((-0.8, 0.1), (-1.0, 1.0), (0.24, 0.3), "metal"),
        box((-0.7, -0.2), (-0.9, 0.9), (0.0, 0.24), "dark"),
        blob((-0.55, 0.05), (-0.33, 0.33), (0.8, 1.0), "skin"),
    ),
)
