"""Who walks, stands and sits on the side walk, in groups and alone."""

import math
from dataclasses import replace

import torch

from voxelquant.data.synthetic.setting import Setting, sign_of
from voxelquant.data.synthetic.slots import Slots, make_slots

_MEMBERS = 4  # of a group, at most


def pedestrians(setting: Setting) -> Slots:
    """Groups that walk in two bands of each side walk, one a direction, and groups that stay.

    Those who walk cross the other street where their side walk meets it, if they have green.
    """
    dice, street = setting.dice, setting.street
    places = setting.places(10.0)
    groups = 2 * places.shape[1]
    group, place = setting.in_groups(groups, _MEMBERS)
    count, side = len(group), group % 2
    outward = dice.choice("people.direction", groups, [0.5, 0.5])[:, group]
    stays = dice.chance("people.stands", groups, 0.22)[:, group]
    pace = dice.uniform("people.pace", 4, 0.8, 1.7).gather(1, (side * 2 + outward))
    speed = torch.where(stays, 0.0, pace * (2.0 * outward - 1.0))
    band = torch.where(stays, 0.85, 0.35 + 0.3 * outward) * street.walk_m[:, side]
    centre = places.repeat_interleave(2, 1) + dice.uniform("people.s", groups, -5.0, 5.0)
    any_turn = dice.uniform("people.turn", count, -math.pi, math.pi)
    along = torch.where(speed < 0, math.pi, 0.0) + dice.bell("people.veer", count) * 0.1
    crowd = setting.traits.people * setting.traits.people * setting.mix.people
    here = (dice.uniform("people.group", groups) < crowd)[:, group]
    slots = make_slots(
        "pedestrian",
        centre[:, group] + (place - 1.5) * 1.0 + dice.bell("people.jitter", count) * 0.15,
        sign_of(side) * (street.walk_start_m[:, side] + band)
        + dice.bell("people.offset", count) * 0.12,
        turn_rad=torch.where(stays, any_turn, along),
        speed_mps=speed,
        present=here & dice.chance("people.member", count, 0.58),
    )
    return replace(slots, sitting=stays & dice.chance("people.sits", groups, 0.2)[:, group])
