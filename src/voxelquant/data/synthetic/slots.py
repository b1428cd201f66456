"""Candidates for objects: where something may stand, before overlaps are removed."""

from dataclasses import dataclass

import torch
from torch import Tensor

from voxelquant.data.synthetic.taxonomy import KIND_INDEX


@dataclass(frozen=True)
class Slots:
    """Candidates of a batch of scenes in road coordinates, [b, n] each."""

    kind: Tensor  # int64, index into taxonomy.KINDS
    s_m: Tensor  # float64 along the street when the first key frame is taken
    d_m: Tensor  # float64 to the left of its centre line
    turn_rad: Tensor  # float64 heading relative to the street's direction
    speed_mps: Tensor  # float64 along the street, signed
    present: Tensor  # bool
    in_traffic: Tensor  # bool: ridden, stopped rather than parked
    worker: Tensor  # bool: construction workers among the pedestrians


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
    )


def join_slots(groups: list[Slots]) -> Slots:
    """All candidates side by side; earlier groups have the right of way where two overlap."""
    names = Slots.__dataclass_fields__
    return Slots(**{name: torch.cat([getattr(g, name) for g in groups], dim=1) for name in names})


def spaced(count: int, reach_m: float, device: torch.device) -> Tensor:
    """Centres of `count` equal pieces of [-reach, reach], [1, count] float64."""
    steps = torch.arange(count, dtype=torch.float64, device=device)
    return ((steps + 0.5) * (2 * reach_m / count) - reach_m)[None]


def pick_kind(indices: Tensor, names: list[str]) -> Tensor:
    """Kind numbers for indices into a list of names."""
    numbers = torch.tensor([KIND_INDEX[name] for name in names], device=indices.device)
    return numbers[indices]
