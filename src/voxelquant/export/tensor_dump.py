"""Tensors in the dump format of libspconv's tools, to compare its results with ours."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from torch import Tensor

from voxelquant.atomic_file import atomic_path
from voxelquant.errors import ExportError

_MAGIC = 0x33FF1101
# Of `tool/tensor.py` since libspconv 1.1; the reference's exporter still writes the codes before
# (fp32 0, fp16 1, int32 2), which today's tools take for other types.
_DTYPE_CODES = {"int32": 1, "float16": 2, "float32": 3, "int64": 4, "int8": 7, "uint8": 8}


def write_tensor_dump(path: str | Path, tensor: Tensor) -> None:
    """Write int32 magic, number of axes, type code and shape, then the values, little-endian.

    Args:
        path: any name; the tools go by the content.
        tensor: of one of the types int8, uint8, int32, int64, float16, float32.

    Raises:
        ExportError: another type, or the file cannot be written.
    """
    array = tensor.detach().cpu().contiguous().numpy()
    code = _DTYPE_CODES.get(array.dtype.name)
    if code is None:
        raise ExportError(f"{path}: got a tensor of {array.dtype}, need one of {[*_DTYPE_CODES]}")
    header = np.array([_MAGIC, array.ndim, code, *array.shape], dtype="<i4")
    with atomic_path(path, ExportError) as temporary:
        temporary.write_bytes(header.tobytes() + array.tobytes())
