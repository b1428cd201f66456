import pytest
import torch

from voxelquant.data.synthetic import GeneratedFrames, generate_frames
from voxelquant.errors import DatasetError


def test_frame_i_is_the_first_key_frame_of_scene_i() -> None:
    frames = GeneratedFrames(seed=9, count=3)
    assert len(frames) == 3
    expected = generate_frames(9, range(3), key_frames=1)
    for index in (2, 0, 1, 1):
        assert frames[index].token == expected[index].token
        assert torch.equal(frames[index].points, expected[index].points)
    with pytest.raises(IndexError):
        frames[3]


def test_of_two_seeds_neither_is_the_other() -> None:
    first, longer, other = (GeneratedFrames(seed, n) for seed, n in ((9, 3), (9, 8), (10, 3)))
    assert first.identity == longer.identity
    assert first.identity != other.identity


@pytest.mark.parametrize(("seed", "count"), [(-1, 2), (0, 0)])
def test_no_frames_are_refused(seed: int, count: int) -> None:
    with pytest.raises(DatasetError, match=f"got seed {seed} and {count} frames"):
        GeneratedFrames(seed, count)
