"""Where two streets meet: who has green, and what may be inside the junction.

The light does not change within a scene. The street with a red light stands still before the
junction; along the other one traffic drives and people walk across. Nothing else is ever inside.
"""

import math
from dataclasses import replace

import torch
from torch import Tensor

from voxelquant.data.hashing import Dice
from voxelquant.data.synthetic.road import Road, SideStreet, place_on_arc
from voxelquant.data.synthetic.scene_kinds import Traits
from voxelquant.data.synthetic.slots import Slots

BEFORE_FIRST_S = -0.45  # the oldest sweep of the first key frame
_EGO_FRONT_M = 6.5  # from the rear axle, with some distance to the side walk that it waits at
_HILLY_M = 150.0  # length of street up to which the ground bends as drawn
_CLEAR_M = 0.3  # kept free beside the junction


def draw_roads(dice: Dice, traits: Traits[Tensor], span_m: tuple[float, float]) -> Road:
    """The main street of each scene with the one across, if the scene has one."""
    curvature = dice.uniform("road.curvature", 1, -1 / 220, 1 / 220)
    # A parabola gets too steep where a long scene ends.
    gentler = min(1.0, (_HILLY_M / span_m[1]) ** 2)
    return Road(
        lanes=traits.lanes.to(torch.int64).expand(-1, 2),
        walk_m=traits.walk_m * dice.uniform("road.walk", 2, 0.85, 1.15),
        curvature_per_m=curvature,
        slope_x=dice.uniform("road.slope_x", 1, -0.04, 0.04),
        slope_y=dice.uniform("road.slope_y", 1, -0.015, 0.015),
        bend_x_per_m=dice.uniform("road.bend_x", 1, -1 / 1200, 1 / 1000) * gentler,
        bend_y_per_m=traits.valley_per_m * gentler,
        side_street=_draw_side_streets(dice, traits, curvature, span_m),
    )


def _draw_side_streets(
    dice: Dice, traits: Traits[Tensor], curvature: Tensor, span_m: tuple[float, float]
) -> SideStreet:
    lanes = 1 + dice.choice("crossing.lanes", 1, [0.6, 0.4]).expand(-1, 2)
    street = SideStreet(
        lanes=lanes,
        walk_m=dice.uniform("crossing.walk", 2, 2.0, 4.0),
        here=dice.uniform("crossing.here", 1) < traits.crossing,
        main_waits=dice.chance("crossing.main_waits", 1, 0.25),
        junction_m=curvature,
        x_m=curvature,
        y_m=curvature,
        heading_rad=curvature,
    )
    ahead = street.walk_end_m.amax(1, keepdim=True) + _EGO_FRONT_M
    ahead = ahead + dice.uniform("crossing.ahead", 1, 0.0, 38.0)
    anywhere = dice.uniform("crossing.s", 1, span_m[0] + 20.0, span_m[1] - 20.0)
    junction = torch.where(street.main_waits, ahead, anywhere)
    x, y, heading = place_on_arc(curvature, junction, torch.zeros_like(junction))
    return replace(street, junction_m=junction, x_m=x, y_m=y, heading_rad=heading + math.pi / 2)


def locate(road: Road, slots: Slots, time_s: Tensor | float) -> tuple[Tensor, Tensor, Tensor]:
    """World x, y and heading of all candidates at a time, [b, n] float64 each."""
    s_m = slots.s_m + slots.speed_mps * time_s
    x, y, heading = road.place(s_m, slots.d_m)
    x_across, y_across = road.side_street.place(s_m, slots.d_m)
    heading = torch.where(slots.across, road.side_street.heading_rad, heading)
    x = torch.where(slots.across, x_across, x)
    return x, torch.where(slots.across, y_across, y), heading + slots.turn_rad


def allowed_by_the_light(slots: Slots, road: Road, size_wlh_m: Tensor, duration_s: float) -> Tensor:
    """Candidates that stay out of the other street, or have green and move, [b, n] bool."""
    side_street = road.side_street
    main_waits = side_street.main_waits
    green = torch.where(slots.across, main_waits, ~main_waits) & (slots.speed_mps != 0)
    first, reach = _place_along(slots, road, size_wlh_m, BEFORE_FIRST_S)
    last, reach_last = _place_along(slots, road, size_wlh_m, duration_s)
    reach = torch.maximum(reach, reach_last)
    # The side street's right side lies ahead on the main street, as its left does on the other's.
    ahead_m = torch.where(slots.across, road.walk_end_m[:, 1:], side_street.walk_end_m[:, :1])
    behind_m = torch.where(slots.across, road.walk_end_m[:, :1], side_street.walk_end_m[:, 1:])
    inside = torch.minimum(first, last) - reach < ahead_m
    inside = inside & (torch.maximum(first, last) + reach > -behind_m)
    return green | ~inside | ~side_street.here


def _place_along(
    slots: Slots, road: Road, size_wlh_m: Tensor, time_s: float
) -> tuple[Tensor, Tensor]:
    """Distance past the other street's centre line, and half extent in that direction, [b, n]."""
    side_street = road.side_street
    x, y, heading = locate(road, slots, time_s)
    own_s = slots.s_m + slots.speed_mps * time_s
    along = torch.where(slots.across, own_s, -side_street.offset(x, y))
    turn = heading - side_street.heading_rad + math.pi / 2
    turn = torch.where(slots.across, slots.turn_rad, turn)
    width, length = size_wlh_m[..., 0] / 2, size_wlh_m[..., 1] / 2
    reach = length * torch.cos(turn).abs() + width * torch.sin(turn).abs() + _CLEAR_M
    # The main street bends away from its tangent, along which the side street measures.
    bent = slots.d_m * slots.d_m * road.curvature_per_m.abs() / 2
    return along, reach + torch.where(slots.across, bent, 0.0)
