"""Candidates for objects: where something may stand, before overlaps are removed."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from voxelquant.data.synthetic.taxonomy import KIND_INDEX


@dataclass(frozen=True)
class Slots:
    """Candidates of a batch of scenes in the coordinates of their street, [b, n] each."""

    kind: Tensor  # int64, index into taxonomy.KINDS
    s_m: Tensor  # float64 along the street when the first key frame is taken
    d_m: Tensor  # float64 to the left of its centre line
    turn_rad: Tensor  # float64 heading relative to the street's direction
    speed_mps: Tensor  # float64 along the street, signed
    present: Tensor  # bool
    in_traffic: Tensor  # bool: ridden, stopped rather than parked
    worker: Tensor  # bool: construction workers among the pedestrians
    sitting: Tensor  # bool: pedestrians who sit
    across: Tensor  # bool: the street is the side street

    def at(self, rows: Tensor) -> "Slots":
        """The candidates of the given scenes."""
        return Slots(**{name: value[rows] for name, value in vars(self).items()})


def make_slots(
    kind: Tensor | str,
    s_m: Tensor,
    d_m: Tensor,
    *,
    turn_rad: Tensor | float = 0.0,
    speed_mps: Tensor | float = 0.0,
    present: Tensor | bool = True,
    in_traffic: bool = False,
) -> Slots:
    """Candidates with everything broadcast to [b, n] of `s_m` and `d_m`."""
    s_m, d_m = torch.broadcast_tensors(s_m, d_m)

    def spread(value: Tensor | float | bool, dtype: torch.dtype) -> Tensor:
        return torch.as_tensor(value, dtype=dtype, device=s_m.device).expand_as(s_m)

    number = KIND_INDEX[kind] if isinstance(kind, str) else kind
    return Slots(
        kind=spread(number, torch.int64),
        s_m=s_m,
        d_m=d_m,
        turn_rad=spread(turn_rad, torch.float64),
        speed_mps=spread(speed_mps, torch.float64),
        present=spread(present, torch.bool),
        in_traffic=spread(in_traffic, torch.bool),
        worker=spread(False, torch.bool),
        sitting=spread(False, torch.bool),
        across=spread(False, torch.bool),
    )


def join_slots(groups: list[Slots]) -> Slots:
    """All candidates side by side; earlier groups have the right of way where two overlap."""
    names = Slots.__dataclass_fields__
    return Slots(**{name: torch.cat([getattr(g, name) for g in groups], dim=1) for name in names})


def on_side_street(slots: Slots, here: Tensor) -> Slots:
    """The same candidates along the side street, in scenes that have one, [b, 1] bool."""
    across = torch.ones_like(slots.across)
    return replace(slots, across=across, present=slots.present & here)


def keep_present(slots: Slots) -> Slots:
    """Only what is present, in order; scenes with fewer are filled up with absent candidates.

    The place of a candidate among those of its scene does not depend on the rest of the batch.
    """
    order = torch.argsort((~slots.present).to(torch.uint8), dim=1, stable=True)
    order = order[:, : int(slots.present.sum(1).max())]
    return Slots(**{name: value.gather(1, order) for name, value in vars(slots).items()})


def pick_kind(indices: Tensor, names: tuple[str, ...]) -> Tensor:
    """Kind numbers for indices into a list of names."""
    numbers = torch.tensor([KIND_INDEX[name] for name in names], device=indices.device)
    return numbers[indices]
