import errno
import json
from pathlib import Path

import pytest
import torch

from voxelquant.detection.checkpoint import load_weights, save_weights
from voxelquant.detection.detector import CenterPoint
from voxelquant.errors import CheckpointError

SHARD_BYTES = 3_000_000


def make(seed: int) -> CenterPoint:
    torch.manual_seed(seed)
    return CenterPoint.from_config("centerpoint_tiny")


@pytest.fixture
def index(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.safetensors.index.json"
    save_weights(make(1), path, half=True, metadata={"seed": "1"}, shard_bytes=SHARD_BYTES)
    return path


def test_a_name_that_could_not_be_read_again_is_not_written(tmp_path: Path) -> None:
    path = tmp_path / "epoch=3.safetensors.index.json"
    with pytest.raises(CheckpointError, match="shards are named after their index"):
        save_weights(torch.nn.Linear(3, 3), path, shard_bytes=1000)
    assert not any(tmp_path.iterdir())


def test_shards_hold_what_one_file_holds(index: Path, tmp_path: Path) -> None:
    shards = sorted(index.parent.glob("*.safetensors"))
    assert [shard.name for shard in shards] == [
        f"tiny-{n:05d}-of-{len(shards):05d}.safetensors" for n in range(1, len(shards) + 1)
    ]
    assert len(shards) == 2
    assert all(shard.stat().st_size < SHARD_BYTES + 50_000 for shard in shards)
    one = tmp_path / "one" / "tiny.safetensors"
    one.parent.mkdir()
    save_weights(make(1), one, half=True)
    first, second = make(2), make(3)
    assert load_weights(first, index).metadata == {"seed": "1"}
    load_weights(second, one)
    for name, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[name]), name


def largest_tensor(model: CenterPoint) -> tuple[str, int]:
    sizes = {name: value.nbytes for name, value in model.state_dict().items()}
    return max(sizes.items(), key=lambda item: item[1])


def test_a_shard_may_be_as_small_as_the_largest_tensor(tmp_path: Path) -> None:
    path = tmp_path / "tiny.safetensors.index.json"
    name, size = largest_tensor(make(1))
    save_weights(make(1), path, shard_bytes=size)
    load_weights(make(2), path)
    with pytest.raises(CheckpointError, match=f"got shard_bytes {size - 1}, need .* {name} alone"):
        save_weights(make(1), path, shard_bytes=size - 1)


@pytest.mark.parametrize("nonsense", [0, -1, 3e6, float("nan"), "3 MB", True])
def test_a_size_that_is_none_is_refused(tmp_path: Path, nonsense: object) -> None:
    path = tmp_path / "tiny.safetensors.index.json"
    with pytest.raises(CheckpointError, match=r"got shard_bytes .*, need a whole number of at le"):
        save_weights(make(1), path, shard_bytes=nonsense)  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


def test_shards_of_an_older_index_do_not_stay(index: Path) -> None:
    foreign = index.parent / "tiny-00009-of-00009.safetensors"  # no index names it
    foreign.touch()
    small = largest_tensor(make(1))[1]
    save_weights(make(1), index, shard_bytes=small)
    assert len(list(index.parent.glob("tiny-*.safetensors"))) > 3
    save_weights(make(1), index, half=True, shard_bytes=SHARD_BYTES)
    assert set(index.parent.iterdir()) == {
        index, foreign, *(index.parent / f"tiny-0000{n}-of-00002.safetensors" for n in (1, 2))
    }  # fmt: skip
    load_weights(make(2), index)


def test_a_file_that_an_older_index_shared_with_others_stays(index: Path) -> None:
    shared = index.parent / "model.safetensors"
    save_weights(make(1), shared)
    places = dict.fromkeys(make(1).state_dict(), shared.name)
    index.write_text(json.dumps({"weight_map": places}))
    save_weights(make(1), index, half=True, shard_bytes=SHARD_BYTES)
    load_weights(make(2), shared)


def test_a_full_disk_leaves_the_older_weights(index: Path, monkeypatch) -> None:
    before = {path.name: path.read_bytes() for path in index.parent.iterdir()}
    write = Path.write_bytes

    def write_while_there_is_room(path: Path, content: bytes) -> int:
        if "00002-of" in path.name:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(path, content)

    monkeypatch.setattr(Path, "write_bytes", write_while_there_is_room)
    with pytest.raises(CheckpointError, match=r"00002\.safetensors: cannot be written"):
        save_weights(make(9), index, half=True, shard_bytes=SHARD_BYTES)
    assert {path.name: path.read_bytes() for path in index.parent.iterdir()} == before


def test_a_shard_that_was_exchanged_is_refused(index: Path) -> None:
    save_weights(make(9), index, half=True, shard_bytes=SHARD_BYTES)
    foreign = index.read_text()
    save_weights(make(1), index, half=True, shard_bytes=SHARD_BYTES)
    index.write_text(foreign)
    with pytest.raises(CheckpointError, match=r"00001-of-00002\.safetensors: not the file that"):
        load_weights(make(2), index)


def test_a_missing_shard_is_named(index: Path) -> None:
    (index.parent / "tiny-00002-of-00002.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"00002-of-00002\.safetensors: cannot be read"):
        load_weights(make(2), index)


def test_a_shard_alone_points_to_its_index(index: Path) -> None:
    shard = index.parent / "tiny-00001-of-00002.safetensors"
    with pytest.raises(CheckpointError, match="one shard of several, need all") as caught:
        load_weights(make(2), shard)
    assert str(caught.value).endswith(f"give their index {index}")
    index.unlink()
    with pytest.raises(CheckpointError, match=r"weights of another model: .* missing"):
        load_weights(make(2), shard)


def test_a_shard_that_lacks_a_tensor_is_named(index: Path) -> None:
    content = json.loads(index.read_text())
    content["weight_map"]["odd"] = "tiny-00001-of-00002.safetensors"
    index.write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match="lacks odd, which the index says it holds"):
        load_weights(make(2), index)


@pytest.mark.parametrize(
    ("text", "finding"),
    [
        ("[", "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
        ("[1]", "the file is a list, need an index: a JSON object whose weight_map names"),
        ("{}", "got no weight_map, need an index"),
        ('{"weight_map": {}}', "got an empty weight_map, which names no tensor"),
        ('{"weight_map": null}', "weight_map is null, need an index"),
        ('{"weight_map": {"a": "b.safetensors"}, "metadata": 3}', "metadata is a number"),
        ('{"weight_map": {"a": "b.safetensors"}, "metadata": {"sha256": ""}}', "sha256 is a text"),
        ('{"weight_map": {"a": "../elsewhere.safetensors"}}', "got shard '../elsewhere"),
        ('{"weight_map": {"a": 3}}', "got shard 3"),
    ],
)
def test_what_is_no_index_is_refused(index: Path, text: str, finding: str) -> None:
    index.write_text(text)
    model = make(2)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(CheckpointError, match=finding) as caught:
        load_weights(model, index)
    assert "Error" not in str(caught.value)  # the name of an exception tells a user nothing
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_shards_need_the_name_of_an_index(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"need a name that ends in \.safetensors\.index"):
        save_weights(make(1), tmp_path / "tiny.safetensors", shard_bytes=SHARD_BYTES)
