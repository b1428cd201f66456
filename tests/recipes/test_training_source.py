import pytest

from voxelquant.data.frame import Frame
from voxelquant.recipes import training_source
from voxelquant.recipes.training_source import SyntheticSource


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Scene numbers generated so far; frames are stood in for by their numbers."""
    numbers: list[int] = []

    def generate(seed: int, scenes: list[int], **_: object) -> list[int]:
        numbers.extend(scenes)
        return scenes

    monkeypatch.setattr(training_source, "generate_frames", generate)
    monkeypatch.setattr(training_source, "keep_seen_boxes", lambda frame: frame)
    return numbers


def source(turnover: int) -> SyntheticSource:
    return SyntheticSource(seed=5, pool_size=40, turnover=turnover, device="cpu")


def test_every_frame_is_made_once_and_in_order(made: list[int]) -> None:
    pool = source(turnover=2)
    for step in range(33):
        pool.draw(step, 4)
    assert made == list(range(40 + 64))


def test_the_pool_holds_the_newest_frames(made: list[int]) -> None:
    pool = source(turnover=2)
    drawn: set[int] = set()
    for step in range(100):
        pool.draw(step, 4)
    for step in range(100, 104):  # no launch is due before step 104
        drawn |= {int(str(frame)) for frame in pool.draw(step, 400)}
    assert drawn == set(range(192, 232))


def test_a_resumed_run_draws_what_an_unbroken_one_draws(made: list[int]) -> None:
    unbroken = source(turnover=3)
    batches: list[list[Frame]] = [unbroken.draw(step, 8) for step in range(50)]
    resumed = source(turnover=3)
    assert [resumed.draw(step, 8) for step in range(30, 50)] == batches[30:]


def test_without_turnover_the_pool_stays(made: list[int]) -> None:
    pool = source(turnover=0)
    for step in range(10):
        pool.draw(step, 4)
    assert made == list(range(40))
