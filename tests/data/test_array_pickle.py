import io
import os
import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from voxelquant.data.array_pickle import PickledArray, load_array_pickle
from voxelquant.errors import DatasetError

ARRAYS = [
    np.arange(6, dtype=np.float64).reshape(2, 3),
    np.asfortranarray(np.arange(6, dtype=np.float32).reshape(2, 3)),
    np.arange(6, dtype=np.int16)[::2],
    np.array(3.5),
    np.zeros((0, 9)),
    np.array([True, False]),
    np.array(["car", "traffic_cone"]),
    np.array([b"x", b"yz"]),
    np.array(["car", None, 3], dtype=object),
    np.arange(3, dtype=">i4"),
]


def roundtrip(value: Any, tmp_path: Path, protocol: int) -> Any:
    """Write with the real pickle, read with ours."""
    path = tmp_path / "infos.pkl"
    path.write_bytes(pickle.dumps(value, protocol=protocol))
    return load_array_pickle(path)


def rename_numpy(data: bytes, numpy2: bool) -> bytes:
    """The same pickle as the other numpy would write it (module names have other lengths)."""
    old, new = (b"numpy.core.", b"numpy._core.") if numpy2 else (b"numpy._core.", b"numpy.core.")
    for module in (b"multiarray", b"numeric"):
        before, after = old + module, new + module
        data = data.replace(b"c" + before + b"\n", b"c" + after + b"\n")  # GLOBAL
        data = data.replace(  # SHORT_BINUNICODE
            b"\x8c" + bytes([len(before)]) + before, b"\x8c" + bytes([len(after)]) + after
        )
    return data


def unframed(value: Any, protocol: int) -> bytes:
    """A pickle without frames, whose lengths renaming would break."""
    buffer = io.BytesIO()
    pickler = pickle._Pickler(buffer, protocol)  # type: ignore[attr-defined]
    pickler.framer.start_framing = lambda: None
    pickler.dump(value)
    return buffer.getvalue()


@pytest.mark.parametrize("numpy2", [False, True])
@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
@pytest.mark.parametrize("array", ARRAYS, ids=lambda a: f"{a.dtype.str}{a.shape}")
def test_arrays_of_every_protocol_and_both_numpys(
    tmp_path: Path, array: np.ndarray, protocol: int, numpy2: bool
) -> None:
    path = tmp_path / "infos.pkl"
    path.write_bytes(rename_numpy(unframed([array, array.dtype.str], protocol), numpy2))
    name = b"numpy._core" if numpy2 else b"numpy.core"
    assert name in path.read_bytes()
    read, _ = load_array_pickle(path)
    assert isinstance(read, PickledArray)
    assert read.array.dtype == array.dtype
    assert read.array.shape == array.shape
    assert np.array_equal(read.array, array)


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_scalars_and_containers(tmp_path: Path, protocol: int) -> None:
    value = {
        "f": np.float64(1.5), "i": np.int64(7), "b": np.bool_(True), "s": np.str_("bus"),
        "none": None, "set": {1, 2}, "frozen": frozenset("a"), "raw": b"\x00\xff",
        "tuple": (1, [2.0, "three"]), "ordered": OrderedDict(a=1), "bytes": bytearray(b"xy"),
    }  # fmt: skip
    assert roundtrip(value, tmp_path, protocol) == value


class Malice:
    """Runs a command when an ordinary unpickler meets it."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
@pytest.mark.parametrize(
    ("function", "argument", "name"),
    [
        (os.system, "touch {}", rf"{os.system.__module__}\.system"),
        (eval, "open('{}', 'w')", "_*builtins?_*.eval"),
        (exec, "open('{}', 'w')", "_*builtins?_*.exec"),
        (Path, "{}", "pathlib"),
        (np.load, "{}", "numpy.load"),
        (getattr, "{}", "_*builtins?_*.getattr"),
    ],
)
def test_nothing_is_executed(
    tmp_path: Path, function: Any, argument: str, name: str, protocol: int
) -> None:
    mark = tmp_path / "executed"
    hidden = [{"token": "a", "gt_boxes": np.zeros(3), "x": Malice(function, argument.format(mark))}]
    with pytest.raises(DatasetError, match=rf"infos\.pkl: names {name}.*not executed"):
        roundtrip(hidden, tmp_path, protocol)
    assert not mark.exists()


def test_the_attack_works_on_an_ordinary_unpickler(tmp_path: Path) -> None:
    """Otherwise the test above would prove nothing."""
    mark = tmp_path / "executed"
    pickle.loads(pickle.dumps(Malice(os.system, f"touch {mark}")))
    assert mark.exists()


def crafted(*opcodes: bytes) -> bytes:
    return b"\x80\x02" + b"".join(opcodes) + b"."


@pytest.mark.parametrize(
    ("data", "match"),
    [
        # numpy.dtype('O8') with raw bytes as content: pointers out of a file.
        (
            crafted(
                b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\n(K\x00tU\x01b\x87R",
                b"(K\x01K\x01\x85cnumpy\ndtype\nX\x02\x00\x00\x00O8\x89\x88\x87R",
                b"\x89C\x08\x01\x02\x03\x04\x05\x06\x07\x08tb",
            ),
            "objects given as raw bytes",
        ),
        (crafted(b"cnumpy\ndtype\nX\x03\x00\x00\x00V16\x89\x88\x87R"), "dtype 'V16'"),
        (crafted(b"cnumpy\ndtype\n]\x89\x88\x87R"), r"dtype \[\]"),
        (
            crafted(b"c_codecs\nencode\nX\x01\x00\x00\x00aX\x05\x00\x00\x00rot13\x86R"),
            "encoding 'rot13'",
        ),
        (
            crafted(
                b"cnumpy.core.multiarray\n_reconstruct\ncbuiltins\nset\n(K\x00tX\x01\x00\x00\x00b",
                b"\x87R",
            ),
            "array of type",
        ),
        (crafted(b"X\x01\x00\x00\x00aQ"), "not a complete pickle"),  # a persistent id
    ],
)
def test_crafted_pickles(tmp_path: Path, data: bytes, match: str) -> None:
    (tmp_path / "infos.pkl").write_bytes(data)
    with pytest.raises(DatasetError, match=match):
        load_array_pickle(tmp_path / "infos.pkl")


def test_every_truncation_is_one_clear_error(tmp_path: Path) -> None:
    data = pickle.dumps([{"a": np.arange(4.0), "names": np.array(["car"])}], protocol=4)
    path = tmp_path / "infos.pkl"
    for length in range(len(data)):
        path.write_bytes(data[:length])
        with pytest.raises(DatasetError, match=r"infos\.pkl: not a complete pickle"):
            load_array_pickle(path)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"none\.pkl: cannot be read \(No such file"):
        load_array_pickle(tmp_path / "none.pkl")
