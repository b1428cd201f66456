"""Frames of a benchmark: what cutting, growing and batching leave as it was."""

from pathlib import Path

import numpy as np
import pytest
import torch

from voxelquant.errors import BadInputError, DatasetError, GeometryError
from voxelquant.recipes.bench_frames import (
    BenchFrame,
    batch_of,
    read_voxel_counts,
    read_voxel_frame,
    resize_frame,
)
from voxelquant.sparse import ConvGeometry

SHAPE = (9, 40, 40)
SUBM = ConvGeometry((3, 3, 3), subm=True)


def made_frame(voxels: int = 300, shape: tuple[int, int, int] = SHAPE) -> BenchFrame:
    """Voxels whose features name their row."""
    generator = torch.Generator().manual_seed(3)
    cells = torch.randperm(shape[0] * shape[1] * shape[2] // 4, generator=generator)[:voxels]
    z, rest = cells // (shape[1] * shape[2]), cells % (shape[1] * shape[2])
    coords = torch.stack([torch.zeros_like(z), z, rest // shape[2], rest % shape[2]], 1).int()
    features = torch.arange(voxels).float()[:, None].repeat(1, 2)
    return BenchFrame("made", features, coords, shape)


def neighbours(frame: BenchFrame) -> int:
    kernel_map, _ = frame.sparse().sites.kernel_map(SUBM)
    return sum(len(kernel_map.pairs_of_tap(tap)[0]) for tap in range(27))


def test_a_cut_keeps_rows_in_order_and_most_neighbours() -> None:
    frame = made_frame(2000)
    cut = resize_frame(frame, 1000)
    rows = cut.features[:, 0].long()
    assert len(cut) == 1000
    assert bool((rows[1:] > rows[:-1]).all())
    assert torch.equal(cut.coords_bzyx, frame.coords_bzyx[rows])
    thinned = BenchFrame("thinned", frame.features[::2], frame.coords_bzyx[::2], SHAPE)
    assert neighbours(cut) > 1.3 * neighbours(thinned)


@pytest.mark.parametrize("shape", [SHAPE, (9, 40, 36)])
def test_growth_keeps_the_frame_and_adds_mirrored_rows(shape: tuple[int, int, int]) -> None:
    frame = made_frame(300, shape)
    grown = resize_frame(frame, 700)
    assert len(grown.sparse().sites) == 700  # distinct and inside, or it raises
    kept = grown.coords_bzyx[:300]
    assert torch.equal(kept, frame.coords_bzyx)
    for row in range(300, 700, 37):
        source = frame.coords_bzyx[int(grown.features[row, 0])]
        place = grown.coords_bzyx[row]
        assert place[1] == source[1]
        radius = [(place[axis] - (shape[axis - 1] - 1) / 2).abs() for axis in (2, 3)]
        before = [(source[axis] - (shape[axis - 1] - 1) / 2).abs() for axis in (2, 3)]
        assert sorted(radius) == sorted(before)
    assert torch.equal(resize_frame(frame, 300).coords_bzyx, frame.coords_bzyx)


def test_growth_ends_with_the_mirrored_copies() -> None:
    with pytest.raises(BadInputError, match=r"300 voxels to grow to 5000, but .* ask for fewer"):
        resize_frame(made_frame(300), 5000)


def test_a_batch_has_other_sites_and_the_same_neighbourhoods() -> None:
    frame = made_frame(400)
    batch = batch_of(frame, 8)
    assert batch.batch_size == 8
    assert neighbours(batch) == 8 * neighbours(frame)
    samples = [
        {tuple(row) for row in batch.coords_bzyx[batch.coords_bzyx[:, 0] == index, 1:].tolist()}
        for index in range(8)
    ]
    assert all(len(sample) == 400 for sample in samples)
    assert len({frozenset(sample) for sample in samples}) == 8


def test_counts_have_named_quantiles(tmp_path: Path) -> None:
    path = tmp_path / "counts.csv"
    path.write_text("frame,num_voxels\n" + "".join(f"{i},{100 * i}\n" for i in range(1, 102)))
    counts = read_voxel_counts(path)
    assert counts == {
        "smallest": 100, "p5": 600, "p25": 2600, "p50": 5100, "p75": 7600, "p95": 9600,
        "largest": 10100,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("frame,voxels\n1,2\n", "got no column num_voxels"),
        ("num_voxels\nmany\n", "damaged column num_voxels"),
        ("num_voxels\n", "got 0 counts"),
        ("num_voxels\n3\n0\n", "got 2 counts, need some, all positive"),
    ],
)
def test_bad_counts_are_named(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "counts.csv"
    path.write_text(text)
    with pytest.raises(DatasetError, match=message):
        read_voxel_counts(path)


def stored(path: Path, **changes: np.ndarray | None) -> Path:
    frame = made_frame()
    arrays: dict[str, np.ndarray | None] = {
        "features": frame.features.numpy().astype(np.float16),
        "coords_bzyx": frame.coords_bzyx.numpy().astype(np.int16),
    }
    arrays |= changes
    np.savez(path, **{name: array for name, array in arrays.items() if array is not None})
    return path


def test_a_stored_frame_is_read_back(tmp_path: Path) -> None:
    frame = read_voxel_frame(stored(tmp_path / "frame.npz"), 2, SHAPE)
    assert torch.equal(frame.coords_bzyx, made_frame().coords_bzyx)
    assert torch.equal(frame.features, made_frame().features)
    assert frame.name == "frame.npz"


ONES = np.ones((300, 2), np.float32)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"features": None}, DatasetError, r"no array `features`, need one of \[n, 2\]"),
        ({"coords_bzyx": None}, DatasetError, "no array `coords_bzyx`"),
        ({"features": ONES[:, :1]}, DatasetError, r"got features \(300, 1\) of float32"),
        ({"features": ONES[:7]}, DatasetError, r"got features \(7, 2\)"),
        ({"features": ONES * np.nan}, DatasetError, "NaN or infinite"),
        ({"coords_bzyx": np.ones((300, 4), np.float32)}, DatasetError, "of float32, need floats"),
        ({"coords_bzyx": np.full((300, 4), 1, np.int32)}, DatasetError, "a batch of 2 frames"),
        ({"coords_bzyx": np.zeros((300, 4), np.int32)}, GeometryError, "repeated"),
    ],
)
def test_a_bad_frame_is_named(
    tmp_path: Path, changes: dict, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        read_voxel_frame(stored(tmp_path / "frame.npz", **changes), 2, SHAPE)
