"""Shapes of barriers, cones and of the scenery; each row is a variant."""

from voxelquant.data.synthetic.parts import ALL, INNER, blob, box, upright

# A barrier's long side is its width; it faces along x.
BARRIERS = (
    (
        box(ALL, ALL, (0.0, 0.35), "concrete", (0.45, 0.0)),
        box((-0.5, 0.5), ALL, (0.3, 1.0), "concrete", (0.25, 0.0)),
    ),
    (
        box((-0.25, 0.25), ALL, (0.45, 1.0), "plastic"),
        box(ALL, (-0.9, -0.75), (0.0, 0.12), "dark"),
        box(ALL, (0.75, 0.9), (0.0, 0.12), "dark"),
        box((-0.2, 0.2), (-0.86, -0.78), (0.0, 0.5), "metal"),
        box((-0.2, 0.2), (0.78, 0.86), (0.0, 0.5), "metal"),
        box((-0.3, 0.3), (-0.3, 0.3), (0.75, 0.85), "retro"),
    ),
    (
        box(ALL, ALL, (0.06, 0.9), "plastic", (0.5, 0.0)),
        box((-0.4, 0.4), (-0.2, 0.2), (0.9, 1.0), "plastic"),
    ),
)


CONES = (
    (
        box(ALL, ALL, (0.0, 0.07), "dark"),
        upright((-0.75, 0.75), (-0.75, 0.75), (0.06, 1.0), "plastic", 0.8),
        upright((-0.46, 0.46), (-0.46, 0.46), (0.5, 0.68), "retro", 0.2),
    ),
    (
        box(ALL, ALL, (0.0, 0.1), "dark"),
        upright((-0.55, 0.55), (-0.55, 0.55), (0.1, 1.0), "plastic", 0.25),
        upright((-0.57, 0.57), (-0.57, 0.57), (0.6, 0.8), "retro"),
    ),
    (
        box(ALL, ALL, (0.0, 0.06), "plastic"),
        upright((-0.85, 0.85), (-0.85, 0.85), (0.06, 0.95), "plastic", 0.9),
    ),
)

BUILDINGS = (
    (
        box(INNER, (-0.96, 0.96), (-0.12, 1.0), "facade"),
        box((-0.8, -0.5), ALL, (0.1, 0.95), "facade"),
        box((0.3, 0.75), ALL, (-0.1, 0.3), "glass"),
        box(ALL, ALL, (0.36, 0.4), "facade"),
    ),
    (
        box(ALL, INNER, (-0.12, 0.4), "glass"),
        box(ALL, ALL, (0.4, 1.0), "facade"),
        box((-1.0, -0.85), ALL, (-0.12, 0.4), "facade"),
        box((0.0, 0.12), ALL, (-0.12, 0.4), "facade"),
        box((0.88, 1.0), ALL, (-0.12, 0.4), "facade"),
    ),
    (
        box((-1.0, 0.1), ALL, (-0.12, 1.0), "facade"),
        box((0.1, 1.0), (-0.8, 0.8), (-0.12, 0.6), "facade"),
        box((0.3, 0.8), (-0.9, 0.9), (-0.12, 0.22), "glass"),
    ),
)
TOWERS = (
    (box(ALL, ALL, (-0.2, 1.0), "facade"),),
    (
        box(ALL, ALL, (-0.2, 0.35), "facade"),
        box((-0.7, 0.7), (-0.8, 0.8), (0.35, 1.0), "facade"),
    ),
    (
        box((-1.0, 0.2), ALL, (-0.2, 1.0), "facade"),
        box((0.2, 1.0), (-0.9, 0.7), (-0.2, 0.55), "facade"),
    ),
)
HIGH_WALLS = (
    (box(ALL, ALL, (-0.2, 1.0), "facade"),),
    (
        box(ALL, (-0.6, 0.6), (-0.2, 1.0), "facade"),
        box((-0.05, 0.05), ALL, (-0.2, 1.0), "facade"),
    ),
)
WALLS = (
    (box(ALL, ALL, (-0.2, 1.0), "facade"),),
    (
        box((-1.0, -0.98), ALL, (0.0, 1.0), "metal"),
        box((-0.34, -0.32), ALL, (0.0, 1.0), "metal"),
        box((0.32, 0.34), ALL, (0.0, 1.0), "metal"),
        box((0.98, 1.0), ALL, (0.0, 1.0), "metal"),
        box(ALL, (-0.2, 0.2), (0.4, 0.5), "metal"),
        box(ALL, (-0.2, 0.2), (0.85, 0.95), "metal"),
    ),
    (
        box(ALL, (-0.6, 0.6), (-0.2, 0.5), "facade"),
        box((-1.0, -0.95), ALL, (0.0, 1.0), "facade"),
        box((0.95, 1.0), ALL, (0.0, 1.0), "facade"),
    ),
)
POLES = (
    (upright(ALL, ALL, (-0.02, 1.0), "metal", 0.4),),
    (
        upright((-0.6, 0.6), (-0.6, 0.6), (-0.02, 1.0), "metal"),
        box(ALL, ALL, (0.0, 0.12), "metal"),
    ),
)
TREES = (
    (
        upright((-0.09, 0.09), (-0.09, 0.09), (-0.02, 0.5), "bark"),
        blob(ALL, ALL, (0.3, 1.0), "leaves"),
    ),
    (
        upright((-0.07, 0.07), (-0.07, 0.07), (-0.02, 0.6), "bark"),
        blob((-0.9, 0.3), (-0.8, 0.6), (0.42, 0.9), "leaves"),
        blob((-0.3, 0.95), (-0.5, 0.9), (0.5, 1.0), "leaves"),
    ),
    (
        upright((-0.08, 0.08), (-0.08, 0.08), (-0.02, 0.3), "bark"),
        upright((-0.7, 0.7), (-0.7, 0.7), (0.15, 1.0), "leaves", 0.9),
    ),
)
BUSHES = (
    (blob(ALL, ALL, (-0.25, 1.0), "leaves"),),
    (
        blob((-1.0, 0.4), (-1.0, 0.2), (-0.2, 0.85), "leaves"),
        blob((-0.4, 1.0), (-0.3, 1.0), (-0.2, 1.0), "leaves"),
    ),
    (box(ALL, ALL, (-0.1, 0.9), "leaves"),),
)
SIGNS = (
    (box((-0.1, 0.1), (-0.5, 0.5), (0.0, 0.75), "metal"), box(ALL, ALL, (0.72, 1.0), "retro")),
    (
        box(ALL, ALL, (0.25, 1.0), "plastic"),
        box((-0.9, 0.9), (-0.5, 0.5), (0.0, 0.25), "metal"),
    ),
)
BINS = (
    (box(ALL, ALL, (0.0, 1.0), "plastic", (-0.15, -0.15)),),
    (upright((-0.8, 0.8), (-0.8, 0.8), (0.0, 1.0), "metal"),),
    (upright((-0.35, 0.35), (-0.35, 0.35), (0.0, 0.9), "metal"),),
)
