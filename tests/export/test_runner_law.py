"""The runner against loops: dictionaries of coordinates, float32 numpy operation by operation."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch

from voxelquant.export.ir import Add, Graph, Relu, SparseConvolution, TensorInfo
from voxelquant.export.libspconv_writer import serialize
from voxelquant.export.runner import FileRunner

GRID = (4, 6, 6)
Sites = list[tuple[int, int, int]]


def loop_conv(
    sites: Sites, x: np.ndarray, weight: np.ndarray, out_sites: Sites, stride: int, pad: int
) -> np.ndarray:
    """Exact sums in int64 or float64 of `in = stride * out - pad + tap`."""
    row = {site: i for i, site in enumerate(sites)}
    out = np.zeros((len(out_sites), weight.shape[0]), dtype=weight.dtype)
    for m, site in enumerate(out_sites):
        for tap in itertools.product(*(range(k) for k in weight.shape[1:4])):
            source = tuple(stride * s - pad + t for s, t in zip(site, tap, strict=True))
            if source in row:
                out[m] += weight[:, tap[0], tap[1], tap[2]] @ x[row[source]].astype(weight.dtype)
    return out


def loop_inverse(
    sites: Sites, x: np.ndarray, weight: np.ndarray, fine: Sites, stride: int, pad: int
) -> np.ndarray:
    """Each fine site gathers the coarse sites that the downsampling conv took it to, by tap."""
    row = {site: i for i, site in enumerate(sites)}
    out = np.zeros((len(fine), weight.shape[0]), dtype=weight.dtype)
    for m, site in enumerate(fine):
        for tap in itertools.product(*(range(k) for k in weight.shape[1:4])):
            shifted = [s + pad - t for s, t in zip(site, tap, strict=True)]
            coarse = tuple(s // stride for s in shifted)
            if all(s % stride == 0 for s in shifted) and coarse in row:
                out[m] += weight[:, tap[0], tap[1], tap[2]] @ x[row[coarse]].astype(weight.dtype)
    return out


def codes_of(y: np.ndarray, scale: np.float32) -> np.ndarray:
    return np.clip(np.rint(y.astype(np.float32) / scale), -128, 127).astype(np.int8)


def to_bytes(nodes, values, c_in: int, output: str) -> bytes:
    return serialize(
        Graph(tuple(nodes), (TensorInfo("0", (1, c_in)),), (TensorInfo(output, (1, 1)),), values)
    )


@pytest.fixture
def small_frame():
    """40 voxels with integer features in eighths, so that every sum is exact in float32."""
    generator = torch.Generator().manual_seed(3)
    cells = torch.randperm(4 * 6 * 6, generator=generator)[:40]
    coords = torch.stack([cells * 0, cells // 36, cells // 6 % 6, cells % 6], 1).int()
    features = torch.randint(-16, 17, (40, 4), generator=generator) / 8
    return features, coords


def sites_of(coords: torch.Tensor) -> Sites:
    return [tuple(row) for row in coords[:, 1:].tolist()]


def exact_values(values: dict, index: int, denominator: float) -> None:
    """Replace random weights by multiples of 1 / denominator: sums are then exact."""
    generator = np.random.default_rng(100 + index)
    name = f"spconv{index}.weight"
    weight = generator.integers(-7, 8, values[name].shape) / denominator
    values[name] = weight.astype(np.float16)
    bias = generator.integers(-8, 9, values[f"spconv{index}.bias"].shape) / denominator
    values[f"spconv{index}.bias"] = bias.astype(np.float16)


@pytest.fixture
def small_conv(conv_factory):
    def build(values, index, source, output, c_in, c_out, **more) -> SparseConvolution:
        grids = {"input_spatial_shape": GRID, "output_spatial_shape": GRID}
        conv = conv_factory(values, index, source, output, c_in, c_out, **(grids | more))
        exact_values(values, index, 8.0)
        if conv.precision == "int8":
            # amax = 127 / 8: the scale is exactly 1/8 and the codes are the stored eighths.
            conv = replace(conv, weight_dynamic_ranges=(127 / 8,) * c_out)
        return conv

    return build


def test_int8_conv_with_saturation_and_ties(small_conv, small_frame) -> None:
    features, coords = small_frame
    values = {}
    # Steps are powers of two, so many outputs lie exactly half-way between codes.
    s_mid, s_out = np.float32(1 / 4), np.float32(1 / 8)
    precision = {"precision": "int8", "output_precision": "int8"}
    nodes = [
        small_conv(values, 0, "0", "1", 4, 16, output_precision="int8", activation="None"),
        small_conv(
            values, 1, "1", "2", 16, 8, input_dynamic_range=127 / 4, activation="None", **precision
        ),
        small_conv(values, 2, "2", "3", 8, 8, precision="int8", input_dynamic_range=127 / 8),
    ]
    run = FileRunner(to_bytes(nodes, values, 4, "3"))(features, coords, GRID)

    sites = sites_of(coords)
    weights = {i: values[f"spconv{i}.weight"].astype(np.float64) for i in range(3)}
    biases = {i: values[f"spconv{i}.bias"].astype(np.float32) for i in range(3)}
    y0 = loop_conv(sites, features.numpy(), weights[0], sites, 1, 1) + biases[0]
    q1 = codes_of(y0, s_mid)
    assert np.array_equal(run.nodes["conv0"].features.numpy(), q1)
    acc = loop_conv(sites, q1, (weights[1] * 8).astype(np.int64), sites, 1, 1)
    m1 = np.float32(s_mid * np.float32(1 / 8))
    y1 = np.float32(np.float32(acc.astype(np.float32) * m1) + biases[1])
    q2 = codes_of(y1, s_out)
    got = run.nodes["conv1"]
    assert np.array_equal(got.features.numpy(), q2)
    assert (q2 == 127).any()
    assert (q2 == -128).any()
    ratio = y1 / s_out
    assert (np.abs(ratio - np.floor(ratio)) == 0.5).any()
    assert torch.equal(got.values, torch.from_numpy(q2.astype(np.float32) * s_out))
    acc = loop_conv(sites, q2, (weights[2] * 8).astype(np.int64), sites, 1, 1)
    m2 = np.float32(s_out * np.float32(1 / 8))
    y2 = np.maximum(np.float32(np.float32(acc.astype(np.float32) * m2) + biases[2]), 0)
    assert np.array_equal(run.nodes["conv2"].features.numpy(), y2.astype(np.float16))
    assert run.outputs["3"] is run.nodes["conv2"]


@pytest.mark.parametrize("precision", ["int8", "fp16"])
def test_residual_sum_by_the_law(precision, small_conv, small_frame) -> None:
    features, coords = small_frame
    values = {}
    # Scales that are no powers of two: each product and the sum round by themselves.
    amaxes = [float(np.float32(a)) for a in (3.3, 1.7, 2.9)]
    s_a, s_b, s_y = (np.float32(np.float32(a) / np.float32(127)) for a in amaxes)
    is_int8 = precision == "int8"
    into = {"output_precision": precision, "activation": "None"}
    more = {"precision": precision, "output_precision": precision}
    ranges = dict(zip(("input0_dynamic_range", "input1_dynamic_range"), amaxes, strict=False))
    last = {"precision": precision, "kernel_size": (1, 1, 1), "rulebook": "res1"}
    nodes = [
        small_conv(values, 0, "0", "1", 4, 8, **into),
        small_conv(values, 1, "0", "2", 4, 8, **into),
        Add(name="add0", inputs=("1", "2"), output="3", **more, **(ranges if is_int8 else {})),
        Relu(name="relu0", inputs=("3",), output="4"),
        small_conv(values, 2, "4", "5", 8, 8, input_dynamic_range=amaxes[2], **last),
    ]
    run = FileRunner(to_bytes(nodes, values, 4, "5"))(features, coords, GRID)

    sites = sites_of(coords)
    a, b = (
        loop_conv(
            sites, features.numpy(), values[f"spconv{i}.weight"].astype(np.float64), sites, 1, 1
        )
        + values[f"spconv{i}.bias"].astype(np.float64)
        for i in (0, 1)
    )
    if is_int8:
        q_a, q_b = codes_of(a, s_a), codes_of(b, s_b)
        y = np.float32(q_a.astype(np.float32) * s_a) + np.float32(q_b.astype(np.float32) * s_b)
        wanted = codes_of(np.maximum(y, 0), s_y)
    else:
        y = a.astype(np.float16).astype(np.float32) + b.astype(np.float16).astype(np.float32)
        wanted = np.maximum(y, 0).astype(np.float16)
    for name in ("add0", "relu0"):
        assert np.array_equal(run.nodes[name].features.numpy(), wanted)


def test_fp16_conv_rounds_once_half_to_even(small_conv, small_frame) -> None:
    features, coords = small_frame
    values = {}
    nodes = [small_conv(values, 0, "0", "1", 4, 8, activation="None")]
    values["spconv0.weight"] = (values["spconv0.weight"].astype(np.float32) * 512).astype(
        np.float16
    )
    run = FileRunner(to_bytes(nodes, values, 4, "1"))(features, coords, GRID)
    sites = sites_of(coords)
    weight = values["spconv0.weight"].astype(np.float64)
    y = loop_conv(sites, features.numpy(), weight, sites, 1, 1)
    y += values["spconv0.bias"].astype(np.float64)
    rounded = y.astype(np.float16)
    assert np.array_equal(run.nodes["conv0"].features.numpy(), rounded)
    assert (rounded.astype(np.float64) != y).any()  # sums above 2048 leave bits behind


@pytest.mark.parametrize("precision", ["int8", "fp16"])
def test_strided_and_inverse_convs(precision, small_conv, small_frame) -> None:
    features, coords = small_frame
    values = {}
    step = np.float32(1 / 4)
    coarse_grid = (2, 3, 3)
    down = {
        "subm": False,
        "rulebook": "down",
        "stride": (2, 2, 2),
        "output_spatial_shape": coarse_grid,
        "output_precision": precision,
    }
    up = {
        "subm": False,
        "inverse": True,
        "rulebook": "down",
        "input_spatial_shape": coarse_grid,
        "precision": precision,
        "input_dynamic_range": 127 / 4,
        "activation": "None",
    }
    nodes = [
        small_conv(values, 0, "0", "1", 4, 8, **down),
        small_conv(values, 1, "1", "2", 8, 8, **up),
    ]
    run = FileRunner(to_bytes(nodes, values, 4, "2"))(features, coords, GRID)

    sites = sites_of(coords)
    coarse = sites_of(run.nodes["conv0"].coords_bzyx)
    reached = {
        tuple((s + 1 - t) // 2 for s, t in zip(site, tap, strict=True))
        for site in sites
        for tap in itertools.product(range(3), repeat=3)
        if all((s + 1 - t) % 2 == 0 for s, t in zip(site, tap, strict=True))
    }
    inside = {s for s in reached if all(0 <= v < n for v, n in zip(s, coarse_grid, strict=True))}
    assert coarse == sorted(inside)
    weights = [values[f"spconv{i}.weight"].astype(np.float64) for i in range(2)]
    biases = [values[f"spconv{i}.bias"].astype(np.float64) for i in range(2)]
    y = np.maximum(loop_conv(sites, features.numpy(), weights[0], coarse, 2, 1) + biases[0], 0)
    mid = codes_of(y, step) * float(step) if precision == "int8" else y.astype(np.float16)
    assert np.array_equal(run.nodes["conv0"].values.numpy(), mid.astype(np.float32))
    z = loop_inverse(coarse, mid, weights[1], sites, 2, 1) + biases[1]
    assert np.array_equal(run.nodes["conv1"].features.numpy(), z.astype(np.float16))
    assert torch.equal(run.nodes["conv1"].coords_bzyx, coords)


def test_a_conv_quantizes_an_fp16_tensor_on_entry(residual_graph, frame) -> None:
    nodes = tuple(
        replace(n, output_precision="fp16") if n.name == "conv1" else n
        for n in residual_graph.nodes
    )
    runner = FileRunner(serialize(replace(residual_graph, nodes=nodes)))
    assert [d.rule for d in runner.warnings] == ["fp16-into-int8"]
    run = runner(*frame)
    conv = residual_graph.convs[2]
    s_in = np.float32(conv.input_dynamic_range) / np.float32(127)
    s_w = np.asarray(conv.weight_dynamic_ranges, np.float32) / np.float32(127)
    weight = residual_graph.initializers["spconv2.weight"]
    weight_q = codes_of(weight, s_w.reshape(-1, 1, 1, 1, 1)).astype(np.int64)
    entered = codes_of(run.nodes["conv1"].features.numpy(), s_in)
    sites = sites_of(frame[1])
    acc = loop_conv(sites, entered, weight_q, sites, 1, 1).astype(np.float32)
    y = (acc * (s_in * s_w)) + residual_graph.initializers["spconv2.bias"].astype(np.float32)
    s_out = np.float32(node_named(nodes, "add0").input0_dynamic_range) / np.float32(127)
    assert np.array_equal(run.nodes["conv2"].features.numpy(), codes_of(y, s_out))


def node_named(nodes, name: str):
    return next(node for node in nodes if node.name == name)
