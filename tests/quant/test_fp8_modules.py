"""fp8 layers against loops in Python and numpy, and against the fake-quant model."""

import math

import numpy as np
import pytest
import torch
from torch import nn

import voxelquant as vq
from oracles.e4m3 import nearest
from voxelquant.errors import ConfigError, GraphError
from voxelquant.numerics import sqnr_db
from voxelquant.quant import Fp8SparseAdd, Fp8SparseConv3d, Int8SparseConv3d
from voxelquant.quant.compare import capture_nodes, layer_parity
from voxelquant.quant.insert import quantization_of
from voxelquant.quant.int8_modules import LoweredModule
from voxelquant.sparse import SparseSequential, SparseTensor, SubMConv3d

E4M3 = torch.float8_e4m3fn
MAX = {"method": "max"}
EVERY_LAYER = vq.Recipe(name="every", precision="fp8", raw_input="fp8", activations=MAX)


def finish(layer: LoweredModule, y: np.ndarray) -> np.ndarray:
    assert y.dtype == np.float32
    if layer.relu:
        y = np.maximum(y, np.float32(0))
    if layer.output_scale is None:
        return y.astype(np.float16).astype(np.float32)
    return nearest(y / layer.output_scale.numpy())


def oracle_conv(layer: Fp8SparseConv3d, x: SparseTensor, out: SparseTensor) -> np.ndarray:
    """Submanifold sites by dictionary, exact sums of doubles, epilogue in numpy's float32."""
    if x.scale is None:
        half = x.features.to(torch.float16).float().numpy()
        codes = nearest(half / layer.input_scale.numpy()).astype(np.float64)
    else:
        codes = x.features.double().numpy()
    weight = layer.weight_q.double().numpy()
    rows = {tuple(site): row for row, site in enumerate(x.coords_bzyx.tolist())}
    radius = [size // 2 for size in weight.shape[1:4]]
    acc = np.zeros((len(out.sites), weight.shape[0]))
    for row, (b, *target) in enumerate(out.coords_bzyx.tolist()):
        for tap in np.ndindex(*weight.shape[1:4]):
            source = [t + i - r for t, i, r in zip(target, tap, radius, strict=True)]
            found = rows.get((b, *source))
            if found is not None:
                acc[row] += weight[:, tap[0], tap[1], tap[2], :] @ codes[found]
    y = acc.astype(np.float32) * layer.multiplier.numpy() + layer.bias.numpy()
    return finish(layer, y)


@pytest.fixture
def engine_and_records(calibrated, frames_of):
    def build(name: str, recipe="fp8"):
        qmodel = calibrated(name, recipe)
        engine = vq.lower(qmodel)
        plan = quantization_of(qmodel).require_plan()
        return engine, plan, capture_nodes(engine, plan, frames_of(name)[1])

    return build


def test_every_fp8_layer_is_the_plain_loop_bit_for_bit(engine_and_records) -> None:
    engine, plan, records = engine_and_records("residual")
    kinds = set()
    for node in plan.graph.nodes:
        layer = engine.get_submodule(node.path) if node.name in records else None
        if isinstance(layer, Fp8SparseConv3d) and layer.site.geometry.subm:
            record = records[node.name]
            expected = oracle_conv(layer, record.inputs[0], record.output)
        elif isinstance(layer, Fp8SparseAdd):
            a, b = (x.features.float().numpy() for x in records[node.name].inputs)
            expected = finish(layer, a * layer.scale_a.numpy() + b * layer.scale_b.numpy())
        else:
            continue
        assert np.array_equal(records[node.name].output.features.float().numpy(), expected)
        kinds.add(type(layer))
    assert kinds == {Fp8SparseConv3d, Fp8SparseAdd}


def test_an_fp16_tensor_is_quantized_on_entry(engine_and_records) -> None:
    engine, _, records = engine_and_records("plain", EVERY_LAYER)
    assert isinstance(engine.stem, Fp8SparseConv3d)
    record = records["stem"]
    expected = oracle_conv(engine.stem, record.inputs[0], record.output)
    assert np.array_equal(record.output.features.float().numpy(), expected)


def test_tensors_between_layers_are_codes_with_their_step(engine_and_records, network_name) -> None:
    _, plan, records = engine_and_records(network_name)
    coded = [name for name in records if plan.tensor_precision[name] == "fp8"]
    assert len(coded) > 1
    for name in coded:
        features, step = records[name].output.features, records[name].output.scale
        assert features.dtype == E4M3
        assert step is not None
        assert not features.float().isnan().any()
    for name in set(records) - set(coded):
        assert records[name].output.scale is None
        assert records[name].output.features.dtype in (torch.float16, torch.float32)


def test_no_float_copy_of_a_weight_is_left(engine_and_records, network_name) -> None:
    engine, plan, _ = engine_and_records(network_name)
    for node in plan.quantized_convs:
        layer = engine.get_submodule(node.path)
        assert isinstance(layer, Fp8SparseConv3d)
        weights = [v for v in layer.state_dict().values() if v.ndim == 5]
        assert [v.dtype for v in weights] == [E4M3]
        assert "output fp8, step" in repr(layer) or "output fp16" in repr(layer)


def test_the_engine_follows_the_float_model(calibrated, make_network, make_frame) -> None:
    """About 31 dB a tensor, whatever its range (three bits of mantissa)."""
    network, qmodel = make_network("residual"), calibrated("residual", "fp8")
    engine, frame = vq.lower(qmodel), make_frame(77)
    with torch.no_grad():
        reference, fake, executed = (m(frame) for m in (network, qmodel, engine))
    assert sqnr_db(reference, fake) > 25.0
    assert sqnr_db(reference, executed) > 25.0
    assert sqnr_db(fake, executed) > 60.0


@pytest.mark.parametrize("sites", [0, 1, 2])
def test_hardly_any_sites(calibrated, make_frame, network_name, sites) -> None:
    qmodel = calibrated(network_name, "fp8")
    engine = vq.lower(qmodel)
    frame = make_frame(5, sites=sites, channels=3 if network_name == "plain" else 5)
    with torch.no_grad():
        engine(frame)
    assert all(layer.unexplained == 0 for layer in layer_parity(qmodel, engine, frame))


def test_values_beyond_every_range_saturate_and_are_no_nan(calibrated, make_frame) -> None:
    engine = vq.lower(calibrated("residual", "fp8"))
    frame = make_frame(4)
    huge = frame.replace_features(frame.features.sign() * 60000.0)
    plan = quantization_of(calibrated("residual", "fp8")).require_plan()
    records = capture_nodes(engine, plan, huge)
    codes = records["conv_input.0"].output.features.float()
    assert codes.max() == 448
    for record in records.values():
        assert record.output.features.float().isfinite().all()


def wide_layer(seed: int) -> tuple[nn.Module, SparseTensor]:
    """27 taps of 64 channels, so that roundings of the fake-quant sum pile up."""
    torch.manual_seed(seed)
    network = SparseSequential(SubMConv3d(64, 64, 3), SubMConv3d(64, 64, 3))
    coords = torch.stack(torch.meshgrid(*[torch.arange(10)] * 3, indexing="ij"), -1).view(-1, 3)
    coords = torch.cat([torch.zeros(1000, 1, dtype=torch.int64), coords], 1)
    return network, SparseTensor.from_coords(torch.randn(1000, 64), coords, (10, 10, 10), 1)


def test_codes_flip_rarely_and_only_at_ties() -> None:
    elements = flips = 0
    for seed in range(4):
        network, x = wide_layer(seed)
        qmodel = vq.quantize(network, EVERY_LAYER)
        vq.calibrate(qmodel, [x])
        layer = layer_parity(qmodel, vq.lower(qmodel), x)[0]
        assert layer.unexplained == 0
        assert layer.largest <= 1
        elements += layer.elements
        flips += layer.differing
    # Measured over 12 seeds: 7 of 768,000 codes, where 1,728 float32 products are summed.
    assert flips <= 3e-5 * elements


def test_parity_sees_a_wrong_weight_and_a_wrong_range(calibrated, frames_of) -> None:
    qmodel = calibrated("residual", "fp8")
    frame = frames_of("residual")[0]
    engine = vq.lower(qmodel)
    weight_q = engine.conv1[1].conv1.weight_q.view(torch.uint8)
    weight_q[2, 1, 1, 1, 0] ^= 0x80  # its sign
    assert {p.name for p in layer_parity(qmodel, engine, frame) if p.unexplained} == {
        "conv1.1.conv1"
    }
    engine = vq.lower(qmodel)
    quantizer = quantization_of(qmodel).tensor_quantizers["conv1.1.conv2"]
    quantizer.set_amax(quantizer.amax * 1.03)
    assert {p.name for p in layer_parity(qmodel, engine, frame) if p.unexplained} == {"conv1.1.add"}


def test_a_difference_counts_codes_not_their_values(calibrated, frames_of) -> None:
    """The neighbours of these are 16 or 32 away; the gap that is reported is 1."""
    qmodel = calibrated("plain", "fp8")
    engine = vq.lower(qmodel)
    made = engine.stem.finish

    def one_code_up(y: torch.Tensor) -> tuple[torch.Tensor, float | None]:
        codes, step = made(y)
        bits = codes.view(torch.uint8).clone()
        bits[(bits > 0x70) & (bits < 0x7E)] += 1
        return bits.view(E4M3), step

    engine.stem.finish = one_code_up
    parity = next(
        p for p in layer_parity(qmodel, engine, frames_of("plain")[0]) if p.name == "stem"
    )
    assert parity.differing > 0
    assert parity.largest == 1.0


def test_int8_and_fp8_layers_stand_in_one_network(calibrated, frames_of) -> None:
    """A branch: one tensor is read in int8 and in fp8, each with a range of its own."""
    torch.manual_seed(1)

    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.left, self.right, self.last = (
                SubMConv3d(c, 6, 3) for c in (5, 6, 6, 6)
            )

        def forward(self, x: SparseTensor) -> tuple[SparseTensor, SparseTensor]:
            x = self.stem(x)
            return self.last(self.left(x)), self.right(x)

    rules = [{"match": "left", "precision": "fp8"}]
    frames = frames_of("residual")
    qmodel = vq.quantize(Branches(), vq.Recipe(name="mixed", rules=rules))
    vq.calibrate(qmodel, frames)
    quantization = quantization_of(qmodel)
    assert list(quantization.tensor_quantizers) == ["stem/int8", "stem/fp8", "left"]
    state = vq.QuantState.of(qmodel)
    assert state.plan.tensor_precision == {
        "@input": "fp16",
        "stem": "fp16",
        "left": "int8",
        "last": "fp16",
        "right": "fp16",
    }
    engine = vq.lower(state.apply(Branches()))
    assert isinstance(engine.left, Fp8SparseConv3d)
    assert isinstance(engine.right, Int8SparseConv3d)
    for layer in layer_parity(qmodel, engine, frames[0]):
        assert layer.unexplained == 0, layer


def test_codes_of_another_format_or_step_are_refused(calibrated, make_frame) -> None:
    engine = vq.lower(calibrated("residual", "fp8"))
    sites = make_frame(0).sites
    conv, step = engine.conv1[0].conv1, engine.conv1[0].conv1.operand.first_step
    int8 = SparseTensor(torch.zeros(300, 8, dtype=torch.int8), sites, scale=step)
    with pytest.raises(GraphError, match=r"conv1\.0\.conv1: got int8 features of step .* need fp8"):
        conv(int8)
    fp8 = SparseTensor(torch.zeros(300, 8).to(E4M3), sites, scale=0.123)
    with pytest.raises(GraphError, match=r"got fp8 features of step 0\.123, need fp8 of step"):
        conv(fp8)
    with pytest.raises(GraphError, match=r"conv_input\.0: got fp8 codes, need an fp16 tensor"):
        engine.conv_input[0](fp8)


def test_ranges_are_the_largest_magnitudes(calibrated, make_network, frames_of) -> None:
    qmodel = calibrated("residual", "fp8")
    by_max = vq.quantize(make_network("residual"), "fp8")
    statistics = vq.calibrate(by_max, frames_of("residual"), method="max")
    for name, quantizer in quantization_of(qmodel).tensor_quantizers.items():
        assert float(quantizer.amax) == statistics[name].histogram.largest
        assert quantizer.spec.fmt.name == "fp8"
        assert math.isclose(float(quantizer.scale) * 448, float(quantizer.amax), rel_tol=1e-6)
    with pytest.raises(ConfigError, match="got method 'entropy' for an fp8 tensor"):
        vq.calibrate(qmodel, frames_of("residual"), method="entropy")
    vq.calibrate(qmodel, frames_of("residual"), method="mse")
    assert float(quantization_of(qmodel).tensor_quantizers["conv1.0.add"].amax) > 0.0
