from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from voxelquant.detection.decode import Detections
from voxelquant.detection.head_change import HeadChange
from voxelquant.errors import BadInputError
from voxelquant.recipes.sensitivity_frames import FrameOutcome
from voxelquant.recipes.sensitivity_store import ProfileStore

REQUEST = {"weights": "abc", "recipe": {"name": "int8"}, "frames": None}


def outcome(seed: int, variants: int = 3) -> FrameOutcome:
    generator = torch.Generator().manual_seed(seed)
    found = []
    for variant in range(variants):
        count = (seed + variant) % 4  # no box at all among them
        boxes = torch.randn(count, 9, generator=generator)
        scores = torch.rand(count, generator=generator)
        found.append(Detections(boxes, scores, torch.arange(count)))
    changes = tuple(HeadChange(0.1 * seed + v, seed, v, 2 * v) for v in range(variants))
    return FrameOutcome(tuple(found), changes)


def assert_same(one: FrameOutcome, other: FrameOutcome) -> None:
    assert one.changes == other.changes
    for a, b in zip(one.detections, other.detections, strict=True):
        for x, y in zip(asdict(a).values(), asdict(b).values(), strict=True):
            assert torch.equal(x, y)
            assert x.dtype == y.dtype


def test_frames_come_back_as_they_were(tmp_path: Path) -> None:
    store = ProfileStore(tmp_path)
    outcomes = {frame: outcome(frame) for frame in (7, 0, 3, 4)}
    store.save({4: outcomes[4], 7: outcomes[7]})
    store.save({0: outcomes[0], 3: outcomes[3]})
    assert store.done() == {0, 3, 4, 7}
    loaded = store.load(3)
    assert list(loaded) == [0, 3, 4, 7]
    for frame, own in loaded.items():
        assert_same(own, outcomes[frame])


def test_the_same_request_goes_on_and_another_is_refused(tmp_path: Path) -> None:
    store = ProfileStore(tmp_path)
    store.open(REQUEST)
    before = (tmp_path / "profile.json").read_bytes()
    store.open(REQUEST)
    assert (tmp_path / "profile.json").read_bytes() == before
    with pytest.raises(BadInputError, match=r"another request \(recipe, weights differ\)"):
        store.open({**REQUEST, "weights": "abd", "recipe": {"name": "fp16"}})
    (tmp_path / "profile.json").write_text("[1")
    with pytest.raises(BadInputError, match=r"profile\.json: not a profile's request"):
        store.open(REQUEST)


def test_unfinished_files_are_swept_and_never_read(tmp_path: Path) -> None:
    store = ProfileStore(tmp_path)
    store.save({0: outcome(0)})
    unfinished = tmp_path / "frames" / ".chunk_000001.123.safetensors"
    unfinished.write_bytes(b"half")
    assert store.done() == {0}
    store.sweep()
    assert not unfinished.exists()
    assert store.done() == {0}


@pytest.mark.parametrize("damage", ["cut", "foreign", "variants"])
def test_damaged_chunks_are_named(tmp_path: Path, damage: str) -> None:
    store = ProfileStore(tmp_path)
    store.save({0: outcome(0), 1: outcome(1)})
    (path,) = (tmp_path / "frames").iterdir()
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-9])
    elif damage == "foreign":
        path.write_bytes(b"no tensors at all")
    variants = 4 if damage == "variants" else 3
    with pytest.raises(BadInputError, match=r"chunk_000000\.safetensors: not a chunk"):
        store.load(variants)
