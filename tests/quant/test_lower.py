"""The integer engine against loops over Python integers and numpy's float32."""

import numpy as np
import pytest
import torch
from torch import nn

import voxelquant as vq
from voxelquant.errors import ConfigError, GeometryError, GraphError
from voxelquant.numerics import sqnr_db
from voxelquant.quant.compare import capture_nodes, layer_parity
from voxelquant.quant.insert import is_quantized, quantization_of
from voxelquant.quant.int8_modules import (
    Fp16SparseAdd,
    Fp16SparseConv3d,
    Int8SparseAdd,
    Int8SparseConv3d,
    LoweredModule,
)
from voxelquant.quant.modules import QuantSparseAdd, QuantSparseConvBase
from voxelquant.quant.quantizer import TensorQuantizer
from voxelquant.sparse import SparseConvBase, SparseTensor


def features(output: object) -> torch.Tensor:
    return output if isinstance(output, torch.Tensor) else output.features


def oracle_conv(layer: Int8SparseConv3d, x: SparseTensor, out: SparseTensor) -> np.ndarray:
    """Sites found by dictionary, products summed as Python integers, epilogue in numpy float32."""
    codes = x.features.numpy().astype(np.int64)
    if x.scale is None:
        half = x.features.to(torch.float16).float().numpy()
        codes = np.clip(np.rint(half / layer.input_scale.numpy()), -128, 127).astype(np.int64)
    weight = layer.weight_q.numpy().astype(np.int64)
    geometry, rows = layer.site.geometry, {}
    for row, site in enumerate(x.coords_bzyx.tolist()):
        rows[tuple(site)] = row
    acc = np.zeros((len(out.sites), weight.shape[0]), np.int64)
    for row, (b, *target) in enumerate(out.coords_bzyx.tolist()):
        for tap in geometry.tap_offsets:
            source = []
            for axis in range(3):
                s, p = geometry.stride[axis], geometry.effective_padding[axis]
                d = geometry.dilation[axis] * tap[axis]
                if layer.site.inverse:  # the equation with inputs and outputs exchanged
                    s, p = 2, 1  # of the only coupled convolution in these networks
                    quotient, rest = divmod(target[axis] + p - d, s)
                    source.append(-1 if rest else quotient)
                else:
                    source.append(s * target[axis] - p + d)
            found = rows.get((b, *source))
            if found is not None:
                acc[row] += weight[:, tap[0], tap[1], tap[2], :] @ codes[found]
    y = acc.astype(np.float32) * layer.multiplier.numpy() + layer.bias.numpy()
    return finish(layer, y)


def finish(layer: LoweredModule, y: np.ndarray) -> np.ndarray:
    assert y.dtype == np.float32
    if layer.relu:
        y = np.maximum(y, np.float32(0))
    if layer.output_scale is None:
        return y.astype(np.float16).astype(np.float32)
    return np.clip(np.rint(y / layer.output_scale.numpy()), -128, 127)


@pytest.fixture
def engine_records(calibrated, frames_of):
    def build(name: str, recipe="int8"):
        qmodel = calibrated(name, recipe)
        engine = vq.lower(qmodel)
        plan = quantization_of(qmodel).require_plan()
        return engine, plan, capture_nodes(engine, plan, frames_of(name)[1])

    return build


def test_every_integer_layer_is_the_plain_loop_bit_for_bit(engine_records, network_name) -> None:
    engine, plan, records = engine_records(network_name)
    compared = 0
    for node in plan.graph.nodes:
        layer = engine.get_submodule(node.path) if node.name in records else None
        if isinstance(layer, Int8SparseConv3d):
            record = records[node.name]
            expected = oracle_conv(layer, record.inputs[0], record.output)
        elif isinstance(layer, Int8SparseAdd):
            a, b = records[node.name].inputs
            y = a.features.numpy() * layer.scale_a.numpy() + b.features.numpy() * (
                layer.scale_b.numpy()
            )
            expected = finish(layer, y)
        else:
            continue
        assert np.array_equal(records[node.name].output.features.float().numpy(), expected)
        compared += 1
    assert compared == sum(value == "int8" for value in plan.precision.values())


@pytest.mark.parametrize("recipe", ["int8", "fp16"])
def test_tensors_between_layers_are_of_the_planned_type(
    engine_records, network_name, recipe
) -> None:
    _, plan, records = engine_records(network_name, recipe)
    for name, record in records.items():
        consumers = {node.kind for node in plan.graph.consumers(name)}
        if plan.tensor_precision[name] == "int8":
            assert record.output.features.dtype == torch.int8
            assert record.output.scale is not None
        elif name in plan.graph.outputs or "to_dense" in consumers:
            # The dense part and the user's code read float32, of values that fp16 holds.
            values = record.output.features
            assert values.dtype == torch.float32
            assert torch.equal(values.half().float(), values)
            assert record.output.scale is None
        else:
            assert record.output.features.dtype == torch.float16


def test_no_float_copy_of_a_quantized_weight_and_no_quantizer_is_left(
    calibrated, network_name
) -> None:
    qmodel = calibrated(network_name)
    engine = vq.lower(qmodel)
    assert not is_quantized(engine)
    forbidden = (SparseConvBase, QuantSparseConvBase, QuantSparseAdd, TensorQuantizer)
    assert not any(isinstance(module, forbidden) for module in engine.modules())
    quantized = {node.path for node in quantization_of(qmodel).require_plan().quantized_convs}
    sizes = {tuple(qmodel.get_submodule(path).weight.shape) for path in quantized}
    for path in quantized:
        layer = engine.get_submodule(path)
        assert isinstance(layer, Int8SparseConv3d)
        assert layer.weight_q.dtype == torch.int8
        held = [v for v in vars(layer).values() if isinstance(v, torch.Tensor)]
        assert held == []  # buffers only
    for key, value in engine.state_dict().items():
        if tuple(value.shape) in sizes and key.rpartition(".")[0] in quantized:
            assert value.dtype == torch.int8
    floats = sum(
        value.numel()
        for key, value in engine.state_dict().items()
        if value.is_floating_point() and key.rpartition(".")[0] in quantized
    )
    # Two vectors per layer (multiplier, bias) and at most two steps.
    channels = sum(qmodel.get_submodule(path).out_channels for path in quantized)
    assert floats <= 2 * channels + 2 * len(quantized)


def test_relus_become_identities_and_shared_ones_stay(make_frame, calibrated) -> None:
    engine = vq.lower(calibrated("residual"))
    relus = [path for path, m in engine.named_modules() if isinstance(m, nn.ReLU)]
    assert relus == ["head.2"]
    assert isinstance(engine.conv1[0].relu, nn.Identity)

    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = vq_conv(5, 6), vq_conv(6, 6)
            self.relu = nn.ReLU()

        def forward(self, x: SparseTensor) -> torch.Tensor:
            x = self.first(x)
            x = self.second(x.replace_features(self.relu(x.features)))
            return self.relu(x.features.sum(0) - 1.0)

    torch.manual_seed(0)
    qmodel = vq.quantize(Shared())
    vq.calibrate(qmodel, [make_frame(0)])
    engine = vq.lower(qmodel)
    assert isinstance(engine.relu, nn.ReLU)
    assert bool((engine(make_frame(1)) >= 0).all())
    assert sqnr_db(qmodel(make_frame(1)), engine(make_frame(1))) > 60


def vq_conv(c_in: int, c_out: int) -> nn.Module:
    from voxelquant.sparse import SubMConv3d

    return SubMConv3d(c_in, c_out, 3)


@pytest.mark.parametrize("recipe", ["int8", "fp16", "reference"])
def test_the_engine_follows_the_float_model(calibrated, make_network, make_frame, recipe) -> None:
    network, qmodel = make_network("residual"), calibrated("residual", recipe)
    engine = vq.lower(qmodel)
    frame = make_frame(77)
    with torch.no_grad():
        reference, fake, integer = (m(frame) for m in (network, qmodel, engine))
    least = 60.0 if recipe == "fp16" else 30.0
    assert sqnr_db(reference, fake) > least
    assert sqnr_db(reference, integer) > least
    if recipe == "fp16":  # the same operations in the same order
        assert torch.equal(fake, integer)


def test_reference_recipe_builds_fp16_layers(calibrated) -> None:
    engine = vq.lower(calibrated("residual", "reference"))
    assert isinstance(engine.conv_input[0], Fp16SparseConv3d)
    assert engine.conv_input[0].weight.dtype == torch.float16
    assert isinstance(engine.conv1[0].add, Fp16SparseAdd)
    assert engine.conv1[0].add.output_scale is not None
    assert isinstance(engine.conv1[1].add, Int8SparseAdd)


def test_forced_raw_input_is_rounded_to_fp16_and_quantized_on_entry(
    make_network, frames_of, make_frame
) -> None:
    qmodel = vq.quantize(make_network("plain"), vq.Recipe(name="raw", raw_input="int8"))
    vq.calibrate(qmodel, frames_of("plain"))
    engine = vq.lower(qmodel)
    assert isinstance(engine.stem, Int8SparseConv3d)
    frame = make_frame(50, channels=3)
    half = frame.replace_features(frame.features.half())
    with torch.no_grad():
        assert torch.equal(engine(half).features, engine(frame).features)
        assert torch.equal(qmodel(half).features, qmodel(frame).features)
        assert sqnr_db(qmodel(frame).features, engine(frame).features) > 50


@pytest.mark.parametrize("sites", [0, 1, 2])
@pytest.mark.parametrize("batch", [1, 3])
def test_hardly_any_sites(calibrated, make_frame, network_name, sites, batch) -> None:
    qmodel = calibrated(network_name)
    engine = vq.lower(qmodel)
    channels = 3 if network_name == "plain" else 5
    frame = make_frame(5, sites=sites, channels=channels, batch=batch)
    with torch.no_grad():
        fake, integer = features(qmodel(frame)), features(engine(frame))
    assert fake.shape == integer.shape
    assert fake.dtype == integer.dtype == torch.float32
    assert all(layer.unexplained == 0 for layer in layer_parity(qmodel, engine, frame))


def test_batches_are_samples_side_by_side(calibrated, make_frame) -> None:
    engine = vq.lower(calibrated("plain"))
    frame = make_frame(9, sites=900, channels=3, batch=3)
    with torch.no_grad():
        together = engine(frame)
        for sample in range(3):
            rows = frame.coords_bzyx[:, 0] == sample
            coords = frame.coords_bzyx[rows].clone()
            coords[:, 0] = 0
            alone = engine(
                SparseTensor.from_coords(frame.features[rows], coords, frame.spatial_shape, 1)
            )
            part = together.features[together.coords_bzyx[:, 0] == sample]
            assert torch.equal(part, alone.features)


def test_inputs_are_not_written(calibrated, make_frame) -> None:
    engine = vq.lower(calibrated("residual"))
    frame = make_frame(4)
    before = frame.features.clone()
    engine(frame)
    assert torch.equal(frame.features, before)


def test_codes_of_another_step_are_refused(calibrated, make_frame) -> None:
    engine = vq.lower(calibrated("residual"))
    codes = torch.zeros(300, 8, dtype=torch.int8)
    x = SparseTensor(codes, make_frame(0).sites, scale=0.123)
    with pytest.raises(GraphError, match=r"conv1\.0\.conv1: got int8 features of step 0\.123"):
        engine.conv1[0].conv1(x)
    with pytest.raises(GraphError, match=r"conv1\.0\.add: got int8 features of step 0\.123"):
        engine.conv1[0].add(x, x)
    with pytest.raises(GraphError, match=r"conv_input\.0: got int8 codes, need an fp16"):
        engine.conv_input[0](x)
    with pytest.raises(GeometryError):
        engine(make_frame(0, channels=4))


def test_backends_are_named(calibrated) -> None:
    qmodel = calibrated("plain")
    assert isinstance(vq.lower(qmodel, backend="reference").stem, Fp16SparseConv3d)
    with pytest.raises(ConfigError, match="got backend 'cuda', need one of"):
        vq.lower(qmodel, backend="cuda")


def test_lowering_leaves_the_fake_quant_model_alone(calibrated, make_frame) -> None:
    qmodel = calibrated("residual")
    with torch.no_grad():
        before = qmodel(make_frame(0))
        vq.lower(qmodel)
        assert torch.equal(qmodel(make_frame(0)), before)
