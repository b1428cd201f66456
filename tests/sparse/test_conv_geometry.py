import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional

from voxelquant.errors import GeometryError
from voxelquant.sparse import ConvGeometry

triple = st.tuples(*[st.integers(1, 4)] * 3)


@given(
    triple, triple, st.tuples(*[st.integers(0, 3)] * 3), triple, st.tuples(*[st.integers(1, 9)] * 3)
)
def test_output_shape_is_that_of_a_dense_convolution(
    kernel, stride, padding, dilation, shape
) -> None:
    geometry = ConvGeometry(kernel, stride, padding, dilation)
    grid, weight = torch.zeros(1, 1, *shape), torch.zeros(1, 1, *kernel)
    try:
        expected = functional.conv3d(grid, weight, None, stride, padding, dilation).shape[2:]
    except RuntimeError:
        with pytest.raises(GeometryError, match="no output is left"):
            geometry.output_shape(shape)
    else:
        assert geometry.output_shape(shape) == tuple(expected)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kernel_size": (0, 1, 1)}, "at least 1"),
        ({"kernel_size": (1, 1, 1), "stride": (1, 0, 1)}, "at least 1"),
        ({"kernel_size": (1, 1, 1), "dilation": (1, 1, 0)}, "at least 1"),
        ({"kernel_size": (1, 1, 1), "padding": (0, -1, 0)}, "padding of at least 0"),
        ({"kernel_size": (3, 2, 3), "subm": True}, "odd sizes"),
        ({"kernel_size": (3, 3, 3), "stride": (2, 1, 1), "subm": True}, "stride 2|stride \\(2"),
    ],
)
def test_impossible_kernels_are_refused(arguments, message) -> None:
    with pytest.raises(GeometryError, match=message):
        ConvGeometry(**arguments)


def test_submanifold_ignores_padding_and_keeps_the_grid() -> None:
    geometry = ConvGeometry((3, 1, 5), padding=(7, 7, 7), dilation=(2, 1, 1), subm=True)
    assert geometry.effective_padding == (2, 0, 2)
    assert geometry.output_shape((4, 5, 6)) == (4, 5, 6)


def test_taps_are_in_row_major_order() -> None:
    geometry = ConvGeometry((2, 1, 3))
    assert geometry.taps == 6
    assert geometry.tap_offsets == [(z, 0, x) for z in range(2) for x in range(3)]
