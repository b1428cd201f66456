"""Pickles of numpy arrays and builtin containers, read without running anything they name.

A pickle is a program: it may call whatever it can import. This reader imports nothing. Each name on
a closed list stands for a small class of ours, and any other name is refused. numpy's own
unpickling is not on the list either: it trusts the dtype flags in the file, which is enough to make
an array out of arbitrary memory.
"""

import io
import pickle
import re
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from voxelquant.errors import DatasetError

# Booleans, integers, floats, bytes, strings and lists of Python objects.
_DTYPE = re.compile(r"[biufSUO]\d+")


class PickledDtype:
    """Stands in for `numpy.dtype`."""

    def __init__(self, code: str, align: bool = False, copy: bool = False) -> None:
        if not isinstance(code, str) or not _DTYPE.fullmatch(code):
            raise DatasetError(f"array of dtype {code!r}, need numbers, strings or objects")
        self.dtype: np.dtype[Any] = np.dtype(code)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        byte_order, fields = state[1], state[3]
        if byte_order not in ("<", ">", "|", "=") or fields is not None:
            raise DatasetError("array with fields, need plain numbers, strings or objects")
        self.dtype = self.dtype.newbyteorder(byte_order)

    def elements(self, buffer: bytes) -> npt.NDArray[Any]:
        """Flat array of the elements that raw bytes encode."""
        if self.dtype.hasobject:
            raise DatasetError("array of objects given as raw bytes; the file is damaged")
        return np.frombuffer(buffer, dtype=self.dtype)


class PickledArray:
    """Stands in for `numpy.ndarray`; `array` holds the value once its state has been read."""

    def __init__(self) -> None:
        self.array: npt.NDArray[Any] = np.empty(0)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, dtype, is_fortran, content = state
        if isinstance(content, list):
            flat = np.empty(len(content), dtype=object)
            flat[:] = content
        else:
            flat = dtype.elements(content)
        self.array = flat.reshape(shape, order="F" if is_fortran else "C")


def _reconstruct(subtype: type, shape: tuple[int, ...], code: bytes) -> PickledArray:
    if subtype is not PickledArray:
        raise DatasetError(f"array of type {subtype!r}, need numpy.ndarray")
    return PickledArray()


def _from_buffer(
    buffer: bytes, dtype: PickledDtype, shape: tuple[int, ...], order: str
) -> PickledArray:
    array = PickledArray()
    array.array = dtype.elements(bytes(buffer)).reshape(shape, order="F" if order == "F" else "C")
    return array


def _scalar(dtype: PickledDtype, content: bytes) -> Any:
    return dtype.elements(content)[0].item()


def _encode(text: str, encoding: str) -> bytes:
    """How Python 3 writes bytes in old protocols."""
    if encoding != "latin1":
        raise DatasetError(f"bytes in encoding {encoding!r}, need latin1")
    return text.encode("latin1")


_KNOWN: dict[tuple[str, str], Callable[..., Any]] = {
    ("numpy", "ndarray"): PickledArray,
    ("numpy", "dtype"): PickledDtype,
    ("_codecs", "encode"): _encode,
    ("collections", "OrderedDict"): OrderedDict,
}
for _builtins in ("builtins", "__builtin__"):  # protocols 0 to 2 use the name of Python 2
    for _container in (set, frozenset, bytes, bytearray):
        _KNOWN[_builtins, _container.__name__] = _container
for _core in ("numpy.core", "numpy._core"):  # numpy 1 and numpy 2
    _KNOWN[f"{_core}.multiarray", "_reconstruct"] = _reconstruct
    _KNOWN[f"{_core}.multiarray", "scalar"] = _scalar
    _KNOWN[f"{_core}.numeric", "_frombuffer"] = _from_buffer


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Callable[..., Any]:
        try:
            return _KNOWN[module, name]
        except KeyError:
            raise DatasetError(
                f"names {module}.{name}, which is neither a numpy array nor a builtin container; "
                "it was not executed"
            ) from None


def load_array_pickle(path: str | Path) -> Any:
    """Content of a pickle file; its arrays are `PickledArray` objects.

    Raises:
        DatasetError: The file is missing, damaged, or names anything but arrays and containers.
    """
    path = Path(path)
    try:
        return _Unpickler(io.BytesIO(path.read_bytes())).load()
    except OSError as error:
        raise DatasetError(f"{path}: cannot be read ({error.strerror})") from error
    except DatasetError as error:
        raise DatasetError(f"{path}: {error}") from error
    except Exception as error:  # a damaged pickle raises nearly anything
        raise DatasetError(
            f"{path}: not a complete pickle ({type(error).__name__}: {error}); the file is "
            "truncated or damaged, fetch or create it again"
        ) from error
