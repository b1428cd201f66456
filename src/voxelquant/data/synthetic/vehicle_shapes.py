"""Shapes of cars, trucks, construction vehicles, buses and trailers; each row is a variant."""

from voxelquant.data.synthetic.parts import ALL, INNER, Part, Span, box, disc, rounded, upright

_PLATES = (
    box((0.94, 1.0), (-0.14, 0.14), (0.24, 0.31), "retro"),
    box((-1.0, -0.96), (-0.14, 0.14), (0.30, 0.37), "retro"),
)
_TAIL_LIGHTS = (
    box((-0.99, -0.8), (0.58, 0.84), (0.40, 0.48), "reflector"),
    box((-0.99, -0.8), (-0.84, -0.58), (0.40, 0.48), "reflector"),
)


def _wheels(front: Span, rear: Span, top: float) -> tuple[Part, ...]:
    return tuple(
        disc(axle, side, (0.0, top), "dark")
        for axle in (front, rear)
        for side in ((-1.0, -0.8), (0.8, 1.0))
    )


def _car(hood: float, waist: float, cabin: Span, taper: Span) -> tuple[Part, ...]:
    body = rounded(INNER, (-0.99, 0.99), (0.08, waist + 0.04), "paint", (0.03, 0.06))
    nose = rounded((0.0, 0.99), (-0.97, 0.97), (0.13, hood), "paint", (0.04, 0.1))
    glass = rounded(cabin, (-0.92, 0.92), (waist - 0.08, 0.97), "glass", taper)
    roof_x = (cabin[0] * 0.72 - 0.05, cabin[1] * 0.62 - 0.05)
    roof = rounded(roof_x, (-0.8, 0.8), (0.88, 1.0), "paint", (0.1, 0.1))
    wheels = _wheels((0.5, 0.79), (-0.76, -0.47), 0.38)
    return (body, nose, glass, roof, *wheels, *_PLATES, *_TAIL_LIGHTS)


CARS = (
    _car(0.52, 0.56, (-0.72, 0.40), (0.34, 0.2)),
    _car(0.55, 0.55, (-0.95, 0.42), (0.22, 0.2)),
    _car(0.58, 0.60, (-0.97, 0.50), (0.14, 0.12)),
    _car(0.50, 0.52, (-0.97, 0.66), (0.12, 0.1)),
    (
        box(INNER, (-0.99, 0.99), (0.16, 0.52), "paint"),  # a pick-up
        rounded((-0.12, 0.5), (-0.9, 0.9), (0.44, 1.0), "glass", (0.28, 0.15)),
        rounded((-0.2, 0.3), (-0.75, 0.75), (0.9, 1.0), "paint"),
        *_wheels((0.48, 0.76), (-0.76, -0.48), 0.38),
        *_PLATES,
        *_TAIL_LIGHTS,
    ),
)


def _truck(cab: Span, cargo: Span, cab_top: float, cargo_z: Span, load: str) -> tuple[Part, ...]:
    return (
        rounded(cab, (-0.97, 0.97), (0.1, cab_top), "paint", (0.08, 0.0)),
        box((cab[1] - 0.16, cab[1]), (-0.85, 0.85), (cab_top * 0.55, cab_top * 0.9), "glass"),
        box(cargo, ALL, cargo_z, load),
        box((-0.98, cab[0]), (-0.4, 0.4), (0.16, 0.30), "dark"),
        *_wheels((0.6, 0.82), (-0.8, -0.45), 0.28),
        box((-1.0, -0.97), (-0.9, 0.9), (0.22, 0.27), "retro"),
    )


TRUCKS = (
    _truck((0.55, 1.0), (-1.0, 0.5), 0.78, (0.30, 1.0), "canvas"),
    _truck((0.62, 1.0), (-1.0, 0.6), 0.95, (0.26, 1.0), "paint"),
    _truck((0.48, 1.0), (-1.0, 0.44), 1.0, (0.30, 0.52), "metal"),
    _truck((0.50, 1.0), (-1.0, 0.45), 0.82, (0.30, 0.86), "metal"),
    _truck((0.1, 1.0), (-1.0, 0.0), 1.0, (0.35, 0.42), "dark"),
)


def _digger(cabin: Span, boom: Span, boom_z: Span, bucket_z: Span) -> tuple[Part, ...]:
    return (
        box((-0.85, 0.3), (-1.0, -0.62), (0.0, 0.26), "dark", (0.12, 0.0)),
        box((-0.85, 0.3), (0.62, 1.0), (0.0, 0.26), "dark", (0.12, 0.0)),
        box((-1.0, 0.2), (-0.85, 0.85), (0.28, 0.58), "plastic"),
        box(cabin, (0.1, 0.85), (0.5, 0.94), "glass", (0.1, 0.1)),
        box(boom, (-0.25, 0.08), boom_z, "plastic"),
        box((0.72, 0.86), (-0.2, 0.04), (0.2, boom_z[1]), "plastic"),
        box((0.6, 1.0), (-0.42, 0.3), bucket_z, "metal", (0.3, 0.0)),
        box((-1.0, -0.97), (-0.7, 0.7), (0.4, 0.44), "retro"),
    )


DIGGERS = (
    _digger((-0.45, 0.2), (0.0, 0.86), (0.86, 1.0), (0.02, 0.24)),
    _digger((-0.3, 0.2), (0.05, 0.8), (0.62, 0.8), (0.1, 0.36)),
    (
        box((-0.75, -0.3), ALL, (0.0, 0.44), "dark"),
        box((0.15, 0.55), ALL, (0.0, 0.44), "dark"),
        box((-1.0, -0.2), (-0.8, 0.8), (0.28, 0.64), "plastic", (0.1, 0.0)),
        box((-0.3, 0.15), (-0.6, 0.6), (0.5, 1.0), "glass", (0.15, 0.1)),
        box((0.1, 0.75), (-0.5, 0.5), (0.3, 0.42), "plastic"),
        box((0.72, 1.0), ALL, (0.04, 0.34), "metal", (0.4, 0.0)),
    ),
    (
        box((-1.0, 0.05), (-0.9, 0.9), (0.12, 0.62), "plastic", (0.06, 0.0)),
        box((-0.55, 0.0), (-0.8, 0.8), (0.62, 1.0), "glass", (0.1, 0.1)),
        upright((0.3, 1.0), ALL, (0.0, 0.5), "metal"),
        box((-0.8, -0.4), ALL, (0.0, 0.4), "dark"),
        box((0.0, 0.6), (-0.5, 0.5), (0.26, 0.4), "plastic"),
    ),
)


def _bus(windows: Span, nose: float) -> tuple[Part, ...]:
    return (
        box((-0.99, nose), (-0.99, 0.99), (0.08, windows[0]), "paint"),
        box(INNER, INNER, windows, "glass"),
        box((-0.99, nose), (-0.99, 0.99), (windows[1], 1.0), "paint"),
        box((-0.99, -0.90), (-1.0, 1.0), (0.1, 0.99), "paint"),
        box((-0.35, -0.3), (-1.0, 1.0), (0.3, 0.95), "paint"),
        box((0.3, 0.35), (-1.0, 1.0), (0.3, 0.95), "paint"),
        *_wheels((0.52, 0.66), (-0.62, -0.44), 0.25),
        box((0.98, 1.0), (-0.14, 0.14), (0.12, 0.16), "retro"),
        box((-1.0, -0.98), (-0.14, 0.14), (0.2, 0.24), "retro"),
    )


BUSES = (_bus((0.42, 0.78), 0.99), _bus((0.36, 0.84), 0.97), _bus((0.55, 0.8), 0.99))


def _trailer(cargo_z: Span, load: str, end_wall: float) -> tuple[Part, ...]:
    return (
        box((-1.0, 1.0), ALL, cargo_z, load),
        box((0.94, 1.0), ALL, (cargo_z[0], end_wall), load),
        box((-0.9, 0.9), (-0.35, 0.35), (0.22, cargo_z[0]), "dark"),
        box((-0.82, -0.42), (-0.98, -0.72), (0.0, 0.26), "dark"),
        box((-0.82, -0.42), (0.72, 0.98), (0.0, 0.26), "dark"),
        box((0.5, 0.54), (-0.7, 0.7), (0.0, 0.3), "metal"),
        box((-1.0, -0.99), (-0.9, 0.9), (cargo_z[0] - 0.04, cargo_z[0]), "retro"),
    )


TRAILERS = (
    _trailer((0.31, 1.0), "canvas", 1.0),
    _trailer((0.34, 1.0), "metal", 1.0),
    _trailer((0.30, 0.38), "metal", 1.0),
    _trailer((0.30, 0.75), "plastic", 1.0),
)
