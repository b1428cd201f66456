import struct

import pytest
import torch

from voxelquant.errors import ExportError
from voxelquant.export.tensor_dump import write_tensor_dump


@pytest.mark.parametrize(
    ("dtype", "code", "letter"),
    [
        (torch.int32, 1, "i"),
        (torch.float16, 2, "e"),
        (torch.float32, 3, "f"),
        (torch.int64, 4, "q"),
    ],
)
def test_dump_reads_back_field_by_field(tmp_path, dtype, code, letter) -> None:
    tensor = torch.tensor([[1, -2, 3], [4, 5, 6]]).to(dtype)
    write_tensor_dump(tmp_path / "x.voxels", tensor.t())  # not contiguous: values in reading order
    content = (tmp_path / "x.voxels").read_bytes()
    assert struct.unpack_from("<5i", content) == (0x33FF1101, 2, code, 3, 2)
    assert struct.unpack_from(f"<6{letter}", content, 20) == (1, 4, -2, 5, 3, 6)
    assert len(content) == 20 + 6 * struct.calcsize(letter)


def test_other_types_are_refused_and_nothing_is_left(tmp_path) -> None:
    with pytest.raises(ExportError, match="got a tensor of bool, need one of"):
        write_tensor_dump(tmp_path / "x", torch.ones(2, dtype=torch.bool))
    assert list(tmp_path.iterdir()) == []
