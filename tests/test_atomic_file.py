import errno
from pathlib import Path

import pytest

from voxelquant.atomic_file import atomic_path, open_sibling, remove_unfinished
from voxelquant.errors import BadInputError, ExportError


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    target = tmp_path / "result.json"
    target.write_text("old")

    def write_half() -> None:
        with atomic_path(target) as temporary:
            temporary.write_text("half")
            raise RuntimeError("interrupted")

    with pytest.raises(RuntimeError, match="interrupted"):
        write_half()
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_the_temporary_sibling_keeps_the_suffix(tmp_path: Path) -> None:
    """Some writers choose the format, or append an ending, by the suffix."""
    with atomic_path(tmp_path / "deep" / "scn.onnx") as temporary:
        assert temporary.suffix == ".onnx"
        assert temporary.parent == tmp_path / "deep"
        temporary.write_bytes(b"x")
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["scn.onnx"]


def test_what_killed_processes_left_of_one_file_is_removed(tmp_path: Path) -> None:
    target, other = tmp_path / "checkpoint.safetensors", tmp_path / "checkpoint.old.safetensors"
    target.write_text("whole")
    kept = {target, open_sibling(other), tmp_path / ".checkpoint.mine.safetensors"}
    (tmp_path / ".checkpoint.mine.safetensors").touch()
    open_sibling(target)
    (tmp_path / ".checkpoint.4711.safetensors").touch()
    remove_unfinished(target)
    assert set(tmp_path.iterdir()) == kept


def test_a_folder_that_is_a_file_is_bad_input(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    with (
        pytest.raises(BadInputError, match=r"taken/result\.json: cannot be written"),
        atomic_path(tmp_path / "taken" / "result.json"),
    ):
        pass


def test_a_full_disk_is_bad_input(tmp_path: Path) -> None:
    with (
        pytest.raises(BadInputError, match="No space left on device"),
        atomic_path(tmp_path / "ptq.safetensors"),
    ):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert list(tmp_path.iterdir()) == []


def test_a_room_gets_its_own_error(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    with (
        pytest.raises(ExportError, match="cannot be written"),
        atomic_path(tmp_path / "taken" / "scn.onnx", ExportError),
    ):
        pass


@pytest.mark.parametrize("name", ["", ".", "/"])
def test_a_path_without_a_file_name_is_bad_input(name: str) -> None:
    with pytest.raises(BadInputError, match="need the name of a file"), atomic_path(name):
        pass
