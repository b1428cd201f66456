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


def test_a_tensor_larger_than_a_shard_has_one_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "tiny.safetensors.index.json"
    save_weights(make(1), path, shard_bytes=1)
    assert len(list(tmp_path.glob("*.safetensors"))) == len(make(1).state_dict())
    load_weights(make(2), path)


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


def test_a_shard_that_lacks_a_tensor_is_named(index: Path) -> None:
    content = json.loads(index.read_text())
    content["weight_map"]["odd"] = "tiny-00001-of-00002.safetensors"
    index.write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match="lacks odd, which the index says it holds"):
        load_weights(make(2), index)


@pytest.mark.parametrize(
    ("text", "finding"),
    [
        ("[", "got no index of shards"),
        ("[1]", "got no index of shards"),
        ("{}", "need a JSON object with a weight_map"),
        ('{"weight_map": {"a": "../elsewhere.safetensors"}}', "got shard '../elsewhere"),
        ('{"weight_map": {"a": 3}}', "got shard 3"),
    ],
)
def test_what_is_no_index_is_refused(index: Path, text: str, finding: str) -> None:
    index.write_text(text)
    model = make(2)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(CheckpointError, match=finding):
        load_weights(model, index)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_shards_need_the_name_of_an_index(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"need a name that ends in \.safetensors\.index"):
        save_weights(make(1), tmp_path / "tiny.safetensors", shard_bytes=SHARD_BYTES)
