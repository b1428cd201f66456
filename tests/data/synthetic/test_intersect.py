import pytest
import torch
from torch import Tensor

from voxelquant.data.synthetic.intersect import (
    ROUNDING,
    enter_boxes,
    enter_round_solids,
    enter_rounded_boxes,
)

COUNT = 400
STEP = 0.002


def random_rays() -> tuple[Tensor, Tensor]:
    """Origins outside the unit solid and directions roughly towards it."""
    generator = torch.Generator().manual_seed(0)
    origin = torch.randn(COUNT, 3, generator=generator)
    origin = 3.0 * origin / origin.norm(dim=1, keepdim=True)
    aim = torch.rand(COUNT, 3, generator=generator) * 2.4 - 1.2
    direction = aim - origin
    return origin, direction / direction.norm(dim=1, keepdim=True)


def first_and_last_inside(origin: Tensor, direction: Tensor, inside: object) -> tuple[Tensor, ...]:
    """Oracle: walk along the ray and ask at each step whether the point is inside."""
    steps = torch.arange(0, 6, STEP)
    points = origin[:, None] + steps[:, None] * direction[:, None]
    mask = inside(*points.unbind(-1))  # type: ignore[operator]
    hit = mask.any(1)
    first = steps[mask.int().argmax(1)]
    last = steps[len(steps) - 1 - mask.flip(1).int().argmax(1)]
    return hit, first, last


def compare(enter: Tensor, leave: Tensor, oracle: tuple[Tensor, ...]) -> None:
    hit, first, last = oracle
    clear = hit & (last - first > 5 * STEP)  # grazing rays fall between the oracle's steps
    assert clear.sum() > 60
    assert (enter < leave)[clear].all()
    assert ((leave - enter)[~hit] < 2 * STEP).all()
    assert (enter - first)[clear].abs().max() <= STEP + 1e-5
    assert (leave - last)[clear].abs().max() <= STEP + 1e-5


@pytest.mark.parametrize("taper", [(0.0, 0.0), (0.4, 0.1), (0.9, 0.9), (-0.3, 0.2)])
def test_tapered_boxes_against_walking_along_the_ray(taper: tuple[float, float]) -> None:
    origin, direction = random_rays()

    def inside(x: Tensor, y: Tensor, z: Tensor) -> Tensor:
        # Linear from bottom to top; a negative taper narrows the bottom.
        up = (z + 1) / 2
        widths = [1 - t * up if t >= 0 else 1 + t * (1 - up) for t in taper]
        return (z.abs() <= 1) & (x.abs() <= widths[0]) & (y.abs() <= widths[1])

    tapers = tuple(torch.full((COUNT,), t) for t in taper)
    enter, leave = enter_boxes(origin.unbind(1), direction.unbind(1), tapers)
    compare(enter, leave, first_and_last_inside(origin, direction, inside))


@pytest.mark.parametrize("taper", [(0.0, 0.0), (0.3, 0.2)])
def test_rounded_boxes_against_walking_along_the_ray(taper: tuple[float, float]) -> None:
    origin, direction = random_rays()

    def inside(x: Tensor, y: Tensor, z: Tensor) -> Tensor:
        up = (z + 1) / 2
        within = (z.abs() <= 1) & (x.abs() <= 1 - taper[0] * up) & (y.abs() <= 1 - taper[1] * up)
        return within & (x * x + y * y + z * z <= ROUNDING)

    tapers = (torch.full((COUNT,), taper[0]), torch.full((COUNT,), taper[1]))
    enter, leave = enter_rounded_boxes(origin.unbind(1), direction.unbind(1), tapers)
    compare(enter, leave, first_and_last_inside(origin, direction, inside))


@pytest.mark.parametrize("taper", [0.0, 0.5, -0.2])
def test_cylinders_and_cones_against_walking_along_the_ray(taper: float) -> None:
    origin, direction = random_rays()

    def inside(x: Tensor, y: Tensor, z: Tensor) -> Tensor:
        up = (z + 1) / 2
        width = 1 - taper * up if taper >= 0 else 1 + taper * (1 - up)
        return (z.abs() <= 1) & (x * x + y * y <= width * width)

    flat = direction[:, 2].abs() < 0.8  # rays steeper than a cone's side are outside the contract
    origin, direction = origin[flat], direction[flat]
    tapers = torch.full((len(origin),), taper)
    no = torch.zeros(len(origin), dtype=torch.bool)
    enter, leave = enter_round_solids(origin.unbind(1), direction.unbind(1), tapers, no)
    compare(enter, leave, first_and_last_inside(origin, direction, inside))


def test_ellipsoids_against_walking_along_the_ray() -> None:
    origin, direction = random_rays()
    yes = torch.ones(COUNT, dtype=torch.bool)
    enter, leave = enter_round_solids(
        origin.unbind(1), direction.unbind(1), torch.zeros(COUNT), yes
    )
    oracle = first_and_last_inside(origin, direction, lambda x, y, z: x * x + y * y + z * z <= 1)
    compare(enter, leave, oracle)
