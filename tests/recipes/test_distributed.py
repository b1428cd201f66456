import pytest
import torch.distributed as dist

from voxelquant.data.sampling import Shard
from voxelquant.errors import AnotherProcessFailedError, BadInputError
from voxelquant.recipes import distributed as module
from voxelquant.recipes.distributed import World, join_world
from voxelquant.recipes.signals import Signals


def test_alone_everything_is_the_identity() -> None:
    with join_world("cpu") as world:
        assert world == World(Shard(0, 1), "cpu")
        assert world.is_main
        assert world.in_words == ""
        assert world.gather(5) == world.gather_to_main(5) == [5]
        assert world.in_main(lambda: 6) == 6
        assert list(world.while_none_failed("ab")) == ["a", "b"]
        world.barrier()


@pytest.mark.parametrize(
    ("device", "local_rank", "chosen"), [("auto", "1", "cuda:1"), ("cpu", "7", "cpu")]
)
def test_each_process_takes_the_gpu_of_its_local_rank(
    monkeypatch: pytest.MonkeyPatch, device: str, local_rank: str, chosen: str
) -> None:
    monkeypatch.setenv("LOCAL_RANK", local_rank)
    monkeypatch.setattr(module.torch.cuda, "device_count", lambda: 2)
    assert module._device_of_local_rank(device) == chosen


def test_a_gpu_too_few_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_RANK", "2")
    monkeypatch.setattr(module.torch.cuda, "device_count", lambda: 2)
    with pytest.raises(BadInputError, match="process 2 of this machine and 2 GPUs"):
        module._device_of_local_rank("cuda")
    with pytest.raises(BadInputError, match="'cuda:1' for several processes"):
        module._device_of_local_rank("cuda:1")


def test_processes_on_different_kinds_of_device_are_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def gather(self: World, value: str) -> list[str]:
        return [value, "cpu"]

    monkeypatch.setattr(World, "gather", gather)
    module._require_one_kind_of_device(World(Shard(0, 2), "cpu"))
    with pytest.raises(BadInputError, match="got processes on cuda, cpu, need one kind"):
        module._require_one_kind_of_device(World(Shard(0, 2), "cuda:0"))


def test_work_stops_where_another_process_has_failed() -> None:
    store = dist.HashStore()  # type: ignore[attr-defined]
    items = World(Shard(0, 2), "cpu", signals=Signals(store, 2)).while_none_failed("ab")
    assert next(items) == "a"
    store.add("failed", 1)
    with pytest.raises(AnotherProcessFailedError):
        next(items)
