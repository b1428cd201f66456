from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from voxelquant.export.ir import (
    Add,
    Graph,
    Node,
    Relu,
    Reshape,
    ScatterDense,
    SparseConvolution,
    TensorInfo,
    Transpose,
)

GRID = (9, 24, 24)
HALF = (5, 12, 12)
Frame = tuple[Tensor, Tensor, tuple[int, int, int]]
Initializers = dict[str, np.ndarray]


def float32(value: float) -> float:
    return float(np.float32(value))


def make_conv(
    initializers: Initializers, index: int, source: str, output: str, c_in: int, c_out: int, **more
) -> SparseConvolution:
    """Submanifold 3x3x3 fp16 conv on GRID with random weights; `more` overrides attributes."""
    generator = np.random.default_rng(index)
    kernel = more.get("kernel_size", (3, 3, 3))
    weight = generator.normal(0, 0.15, (c_out, *kernel, c_in)).astype(np.float16)
    names = (f"spconv{index}.weight", f"spconv{index}.bias")
    initializers[names[0]] = weight
    initializers[names[1]] = generator.normal(0, 0.1, c_out).astype(np.float16)
    fields = {
        "kernel_size": kernel,
        "stride": (1, 1, 1),
        "padding": (1, 1, 1),
        "dilation": (1, 1, 1),
        "subm": True,
        "activation": "ReLU",
        "rulebook": "res0",
        "output_bound": 200000,
        "precision": "fp16",
        "output_precision": "fp16",
        "in_channels": c_in,
        "out_channels": c_out,
        "input_spatial_shape": GRID,
        "output_spatial_shape": GRID,
        "input_shape": (300, c_in),
        "output_shape": (300, c_out),
    } | more
    if fields["precision"] == "int8" and "weight_dynamic_ranges" not in more:
        amax = np.abs(weight.astype(np.float32)).reshape(c_out, -1).max(1)
        fields["weight_dynamic_ranges"] = tuple(float(a) for a in amax)
    return SparseConvolution(
        name=f"conv{index}",
        inputs=(source, *names),
        output=output,
        module_path=f"net.{index}",
        **fields,
    )


@pytest.fixture
def conv_factory() -> Callable[..., SparseConvolution]:
    return make_conv


@pytest.fixture
def residual_graph() -> Graph:
    """fp16 stem into int8, an int8 residual block, an int8 strided conv, the dense tail."""
    values: Initializers = {}
    one, two, three = float32(2.7), float32(1.9), float32(2.2)
    both = {"precision": "int8", "output_precision": "int8"}
    down = {
        "subm": False,
        "rulebook": "",
        "stride": (2, 2, 2),
        "output_spatial_shape": HALF,
        "output_shape": (280, 32),
    }
    nodes: list[Node] = [
        make_conv(values, 0, "0", "1", 5, 16, output_precision="int8"),
        make_conv(values, 1, "1", "2", 16, 16, input_dynamic_range=one, **both),
        make_conv(values, 2, "2", "3", 16, 16, input_dynamic_range=two, activation="None", **both),
        Add(
            name="add0",
            inputs=("3", "1"),
            output="4",
            input0_dynamic_range=three,
            input1_dynamic_range=one,
            **both,
        ),
        Relu(name="relu0", inputs=("4",), output="5"),
        make_conv(values, 3, "5", "6", 16, 32, precision="int8", input_dynamic_range=two, **down),
        ScatterDense(
            name="scatter0",
            inputs=("6",),
            output="7",
            format="zyx",
            input_spatial_shape=HALF,
            output_shape=(1, 32, *HALF),
        ),
        Reshape(name="reshape0", inputs=("7",), output="8", dims=(1, 32 * 5, 12, 12)),
    ]
    return Graph(
        tuple(nodes), (TensorInfo("0", (1, 5)),), (TensorInfo("8", (1, 160, 12, 12)),), values
    )


@pytest.fixture
def inverse_graph() -> Graph:
    """fp16: a stem, down, up by the inverse conv, a residual sum; sparse and dense outputs."""
    values: Initializers = {}
    nodes: list[Node] = [
        make_conv(values, 0, "0", "1", 5, 16),
        make_conv(
            values,
            1,
            "1",
            "2",
            16,
            16,
            subm=False,
            rulebook="down",
            stride=(2, 2, 2),
            output_spatial_shape=HALF,
        ),
        make_conv(
            values,
            2,
            "2",
            "3",
            16,
            16,
            subm=False,
            inverse=True,
            rulebook="down",
            padding=(0, 0, 0),
            input_spatial_shape=HALF,
            activation="None",
        ),
        Add(name="add0", inputs=("3", "1"), output="4", precision="fp16", output_precision="fp16"),
        Relu(name="relu0", inputs=("4",), output="5"),
        ScatterDense(
            name="scatter0",
            inputs=("2",),
            output="6",
            format="zyx",
            input_spatial_shape=HALF,
            output_shape=(1, 16, *HALF),
        ),
        Transpose(name="transpose0", inputs=("6",), output="7", dims=(0, 1, 2, 4, 3)),
    ]
    outputs = (TensorInfo("5", (300, 16)), TensorInfo("7", (1, 16, *HALF)))
    return Graph(tuple(nodes), (TensorInfo("0", (1, 5)),), outputs, values)


@pytest.fixture
def frame() -> Frame:
    """300 voxels on GRID with 5 channels."""
    generator = torch.Generator().manual_seed(7)
    cells = torch.randperm(GRID[0] * GRID[1] * GRID[2], generator=generator)[:300]
    z, rest = cells // (24 * 24), cells % (24 * 24)
    coords = torch.stack([torch.zeros_like(z), z, rest // 24, rest % 24], 1).int()
    return torch.randn((300, 5), generator=generator), coords, GRID
