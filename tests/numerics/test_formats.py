import pytest
import torch

from voxelquant.numerics import FP8_E4M3, INT4, INT8, IntFormat, scale_from_amax


@pytest.mark.parametrize(("fmt", "qmin", "qmax"), [(INT8, -128, 127), (INT4, -8, 7)])
def test_code_range(fmt: IntFormat, qmin: int, qmax: int) -> None:
    assert (fmt.qmin, fmt.qmax, fmt.code_of_amax) == (qmin, qmax, qmax)


@pytest.mark.parametrize("bits", [1, 9, 0, -8])
def test_widths_that_int8_storage_cannot_hold_are_refused(bits: int) -> None:
    with pytest.raises(ValueError, match=r"need 2\.\.8"):
        IntFormat(bits)


def test_fp8_maps_amax_to_its_largest_value() -> None:
    assert FP8_E4M3.code_of_amax == 448
    assert scale_from_amax(torch.tensor(448.0), FP8_E4M3).item() == 1.0


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_scales_are_float32(dtype: torch.dtype) -> None:
    assert scale_from_amax(torch.ones(3, dtype=dtype)).dtype == torch.float32
