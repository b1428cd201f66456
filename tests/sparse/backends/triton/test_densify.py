"""Both ends of the sparse part against plain torch; without a GPU in Triton's interpreter."""

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

from planned_index import DEVICE, GuardedIndex, decode_sites
from site_levels import BATCH, CHAINS, frame_of, grids
from voxelquant.sparse.backends.triton.densify import densify, order_features


def _dense(guarded: GuardedIndex, name: str, level: int, channels: int) -> tuple[Tensor, Tensor]:
    """Found and expected map of random features; rows past the count are NaN."""
    index = guarded.index
    sites = decode_sites(index, level)
    generator = torch.Generator().manual_seed(channels)
    rows = torch.randn(len(sites), channels, generator=generator).half()
    features = torch.full((index.levels[level].capacity, channels), torch.nan).half().to(DEVICE)
    features[: len(rows)] = rows
    size_z, size_y, size_x = grids(name)[level]
    shape = (BATCH, channels, size_z, size_y, size_x)
    expected = torch.zeros(shape, dtype=torch.float16)
    for (b, z, y, x), row in zip(sites, rows, strict=True):
        expected[b, :, z, y, x] = row
    folded = expected.flatten(1, 2)
    out = guarded.guard("dense", torch.full(folded.shape, torch.nan, dtype=torch.float16))
    densify(index, level, features, out)
    guarded.require_untouched_guards()
    return out.cpu(), folded


@pytest.mark.parametrize(
    ("name", "level", "channels"),
    [
        ("centerpoint", 4, 33),
        ("centerpoint", 3, 5),
        ("one level", 0, 16),
        ("flat", 2, 1),
        ("two words", 1, 24),
    ],
)
def test_rows_on_the_dense_grid(name: str, level: int, channels: int) -> None:
    shape = CHAINS[name][0]
    guarded = GuardedIndex(name, 80)
    for seed, n in enumerate((min(79, 2 * shape[0] * shape[1] * shape[2]), 0)):
        guarded.run(frame_of(name, n, seed))
        found, expected = _dense(guarded, name, level, channels)
        assert torch.equal(found, expected)


@pytest.mark.parametrize("flag", ["outside", "repeated", "overflow"])
def test_a_frame_that_raised_a_flag_leaves_nan_everywhere(flag: str) -> None:
    name = "flat"
    guarded = GuardedIndex(name, 40, [40, 5, 40] if flag == "overflow" else None)
    coords = frame_of(name, 33)
    if flag == "outside":
        coords[3, 2] = 8
    elif flag == "repeated":
        coords[3] = coords[4]
    guarded.run(coords)
    rows = torch.zeros(guarded.index.levels[2].capacity, 4, dtype=torch.float16, device=DEVICE)
    out = torch.zeros(BATCH, 4, *grids(name)[2][1:], dtype=torch.float16, device=DEVICE)
    densify(guarded.index, 2, rows, out)
    assert out.isnan().all()


@pytest.mark.parametrize(("channels", "width"), [(5, 8), (3, 3), (16, 24), (1, 16)])
def test_features_in_the_order_of_rows(channels: int, width: int) -> None:
    name = "one level"
    guarded = GuardedIndex(name, 70)
    coords = frame_of(name, 61)
    index = guarded.index
    features = torch.full((70, channels), torch.nan, dtype=torch.float16)
    features[:61] = torch.randn(61, channels, generator=torch.Generator().manual_seed(1))
    out = guarded.guard("out", torch.full((70, width), -3.0, dtype=torch.float16))
    out.fill_(-3.0)
    guarded.hand_over(features[:61], coords)
    index.launch()
    order_features(index, channels, out)
    guarded.require_untouched_guards()
    place = {tuple(site): i for i, site in enumerate(coords.tolist())}
    rows = [place[site] for site in decode_sites(index, 0)]
    assert torch.equal(out[:61, :channels].cpu(), features[rows])
    assert (out[:61, channels:] == 0).all()
    assert (out[61:] == -3.0).all()
