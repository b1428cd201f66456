import copy

import pytest
import torch
from torch import nn

import voxelquant as vq
from voxelquant.errors import CalibrationError, GraphError, QuantStateError
from voxelquant.quant.calibrate import observe, set_ranges
from voxelquant.quant.compare import capture_nodes
from voxelquant.quant.fold import fold_batchnorm
from voxelquant.quant.histogram import MagnitudeHistogram, merge_histograms
from voxelquant.quant.insert import quantization_of, trace_fused_graph
from voxelquant.quant.modules import QuantSparseConvBase
from voxelquant.quant.quantizer import QuantizerMode, TensorQuantizer, weight_amax
from voxelquant.sparse import SparseTensor, SubMConv3d


def test_ranges_are_those_of_the_folded_float_model(make_network, frames_of, network_name) -> None:
    """Max calibration against an independent pass over the tensors of the float model."""
    network, frames = make_network(network_name), frames_of(network_name)
    qmodel = vq.quantize(network, "int8")
    vq.calibrate(qmodel, frames, method="max")
    plan = quantization_of(qmodel).require_plan()
    folded = copy.deepcopy(network)
    fold_batchnorm(folded, trace_fused_graph(folded, (frames[0],)))
    largest: dict[str, float] = {}
    for frame in frames:
        for name, record in capture_nodes(folded, plan, frame).items():
            value = float(record.output.features.abs().max())
            largest[name] = max(largest.get(name, 0.0), value)
    assert plan.quantized_tensors
    for name in plan.quantized_tensors:
        quantizer = quantization_of(qmodel).tensor_quantizers[name]
        assert float(quantizer.amax) == pytest.approx(largest[name], rel=5e-3)
    for node in plan.quantized_convs:
        conv = qmodel.get_submodule(node.path)
        assert torch.equal(
            conv.weight_quantizer.amax, weight_amax(conv.weight, conv.weight_quantizer.spec.fmt)
        )


def test_one_quantizer_for_each_tensor_whoever_reads_it(calibrated) -> None:
    qmodel = calibrated("residual")
    block = qmodel.conv1[1]
    first_sum = quantization_of(qmodel).tensor_quantizers["conv1.0.add"]
    assert block.conv1.input_quantizer is first_sum
    assert block.add.input1_quantizer is first_sum
    assert block.add.input0_quantizer is not first_sum
    second_sum = quantization_of(qmodel).tensor_quantizers["conv1.1.add"]
    assert qmodel.conv2[0].input_quantizer is second_sum


def test_the_residual_input_is_not_touched(calibrated, make_frame) -> None:
    qmodel = calibrated("residual")
    block = qmodel.conv1[0]
    x = make_frame(3, channels=8)
    before = x.features.clone()
    with torch.no_grad():
        block(x)
        block.conv1(x)
    assert torch.equal(x.features, before)


def test_exactly_max_batches_are_drawn_and_progress_counts_them(make_network, make_frame) -> None:
    drawn, seen = [], []

    def frames():
        for seed in range(10):
            drawn.append(seed)
            yield make_frame(seed)

    qmodel = vq.quantize(make_network("residual"), "int8")
    statistics = vq.calibrate(
        qmodel, frames(), max_batches=3, progress=lambda done, total: seen.append((done, total))
    )
    assert drawn == [0, 1, 2]
    assert seen == [(1, 3), (2, 3), (3, 3)]
    assert statistics["conv1.0.conv1"].histogram.total == 3 * 300 * 8


def test_calibration_does_not_depend_on_earlier_ranges_or_on_modes(calibrated, frames_of) -> None:
    qmodel = calibrated("residual")
    qmodel.train()
    qmodel.head[1].eval()
    first = vq.QuantState.of(qmodel).tensors
    running_mean = qmodel.head[1].running_mean.clone()
    vq.calibrate(qmodel, frames_of("residual"))
    again = vq.QuantState.of(qmodel).tensors
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert qmodel.training
    assert not qmodel.head[1].training
    assert torch.equal(qmodel.head[1].running_mean, running_mean)


def test_an_ordinary_forward_calibrates_nothing(make_network, make_frame) -> None:
    qmodel = vq.quantize(make_network("residual"), "int8", example=make_frame(0))
    with pytest.raises(CalibrationError, match=r"conv_input\.0: got a quantizer without a range"):
        qmodel(make_frame(0))
    assert not any(q.calibrated for q in quantization_of(qmodel).tensor_quantizers.values())


def test_a_model_without_a_frame_refuses_to_run(make_network, make_frame) -> None:
    qmodel = vq.quantize(make_network("residual"))
    with pytest.raises(CalibrationError, match="has not seen a frame"):
        qmodel(make_frame(0))
    with pytest.raises(CalibrationError, match="has not seen a frame"):
        vq.lower(qmodel)


def test_recipes_choose_the_method_for_each_tensor(make_network, frames_of) -> None:
    recipe = vq.Recipe.model_validate(
        {
            "name": "r",
            "activations": {"method": "max"},
            "rules": [{"match": "conv1.0.conv1", "method": "percentile", "percentile": 90.0}],
        }
    )
    qmodel = vq.quantize(make_network("residual"), recipe)
    statistics = vq.calibrate(qmodel, frames_of("residual"))
    chosen, other = statistics["conv1.0.conv1"], statistics["conv1.0.conv2"]
    assert (chosen.spec.method, other.spec.method) == ("percentile", "max")
    assert chosen.amax < chosen.histogram.largest
    assert other.amax == other.histogram.largest


def test_a_method_that_there_is_none_of_is_refused(make_network, frames_of) -> None:
    qmodel = vq.quantize(make_network("plain"), "int8")
    frames = iter(frames_of("plain"))
    with pytest.raises(CalibrationError, match="got method 'msee', need one of max, percentile"):
        vq.calibrate(qmodel, frames, method="msee")
    assert len(list(frames)) == len(frames_of("plain"))  # before the work


@pytest.mark.parametrize("method", ["max", "percentile", "mse", "entropy"])
def test_every_method_calibrates(make_network, frames_of, method) -> None:
    qmodel = vq.quantize(make_network("plain"))
    statistics = vq.calibrate(qmodel, frames_of("plain"), method=method)
    assert {chosen.spec.method for chosen in statistics.values()} == {method}


@pytest.mark.parametrize("method", ["max", "percentile", "mse", "entropy"])
def test_shares_of_the_frames_give_the_ranges_of_all_of_them(
    make_network, frames_of, network_name, method
) -> None:
    """As between processes: other maxima in each share, one share twice as long, one without."""
    frames = [
        frame.replace_features(frame.features * factor)
        for frame, factor in zip(frames_of(network_name), (0.1, 40.0, 1.0, 5.0), strict=True)
    ]
    whole = vq.quantize(make_network(network_name))
    expected = vq.calibrate(whole, frames, method=method)
    parts = []
    for share in ([frames[3]], [frames[0], frames[2]], [frames[1]]):
        process = vq.quantize(make_network(network_name), example=frames[0])
        parts.append(observe(process, share))
    for order in (parts, [{}, *reversed(parts)]):
        process = vq.quantize(make_network(network_name), example=frames[0])
        found = set_ranges(process, merge_histograms(order), method)
        assert found.keys() == expected.keys()
        for name, chosen in found.items():
            assert chosen.amax == expected[name].amax, name
            assert torch.equal(chosen.histogram.counts, expected[name].histogram.counts)
        tensors, wanted = vq.QuantState.of(process).tensors, vq.QuantState.of(whole).tensors
        assert all(torch.equal(tensors[key], wanted[key]) for key in wanted)


class DetectorLike(nn.Module):
    """A sparse part that is a submodule, and a dense part after it."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        self.neck = nn.Conv2d(8, 8, 1)

    def forward(self, x: SparseTensor) -> torch.Tensor:
        return self.neck(self.backbone(x))


def test_nothing_after_the_sparse_part_runs_and_nothing_is_lost_by_it(
    make_network, frames_of
) -> None:
    frames = frames_of("residual")
    qmodel = vq.quantize(DetectorLike(make_network("residual")), example=frames[0])
    runs = []
    qmodel.neck.register_forward_hook(lambda *_: runs.append(1))
    found = observe(qmodel, frames)
    assert not runs

    quantizers = quantization_of(qmodel).tensor_quantizers
    for module in qmodel.modules():  # whole forwards, watched by hand
        if isinstance(module, TensorQuantizer):
            module.mode = QuantizerMode.OFF
    for quantizer in quantizers.values():
        quantizer.start_observing()
    for frame in frames:
        qmodel(frame)
    assert len(runs) == len(frames)
    for name, quantizer in quantizers.items():
        whole = quantizer.stop_observing()
        assert torch.equal(found[name].counts, whole.counts)
        assert (found[name].zeros, found[name].largest) == (whole.zeros, whole.largest)


def test_a_frame_that_is_given_twice_counts_twice(make_network, frames_of) -> None:
    first, second = frames_of("plain")[:2]
    for order in ([first, first, second], [first, second, first]):
        qmodel = vq.quantize(make_network("plain"), "int8", example=first)
        histograms = observe(qmodel, order)
        for histogram in histograms.values():
            once = [observe(qmodel, [frame])[histogram.name].total for frame in (first, second)]
            assert histogram.total == 2 * once[0] + once[1]


def test_statistics_of_another_model_are_refused(make_network, frames_of) -> None:
    qmodel = vq.quantize(make_network("residual"), example=frames_of("residual")[0])
    plain = vq.quantize(make_network("plain"))
    histograms = observe(plain, frames_of("plain"))
    with pytest.raises(CalibrationError, match="calibrate again"):
        set_ranges(qmodel, histograms)
    name = next(iter(histograms))
    with pytest.raises(CalibrationError, match=f"{name}: got a tensor without statistics"):
        set_ranges(plain, {k: v for k, v in histograms.items() if k != name})


def test_a_range_without_a_step_is_refused_before_any_range_changes(calibrated, frames_of) -> None:
    qmodel = calibrated("plain")
    before = dict(vq.QuantState.of(qmodel).tensors)
    histograms = observe(qmodel, frames_of("plain"))
    last = list(quantization_of(qmodel).tensor_quantizers)[-1]
    vanishing = MagnitudeHistogram(last)
    vanishing.add(torch.tensor([1e-44]))
    with pytest.raises(CalibrationError, match=f"{last}: got a range of 9.8.*e-45, need one whose"):
        set_ranges(qmodel, histograms | {last: vanishing}, "max")
    after = vq.QuantState.of(qmodel).tensors
    assert all(torch.equal(before[key], after[key]) for key in before)


def bad_frame(frame: SparseTensor, value: float) -> SparseTensor:
    features = frame.features.clone()
    features[3, 1] = value
    return frame.replace_features(features)


def test_unusable_frames_are_refused_and_leave_the_ranges(calibrated, frames_of) -> None:
    qmodel = calibrated("residual")
    before = dict(vq.QuantState.of(qmodel).tensors)
    good = frames_of("residual")
    with pytest.raises(CalibrationError, match="got no calibration frames"):
        vq.calibrate(qmodel, [])
    with pytest.raises(CalibrationError, match="got no calibration frames"):
        vq.calibrate(qmodel, good, max_batches=0)
    with pytest.raises(CalibrationError, match="calibration frame 1: got NaN"):
        vq.calibrate(qmodel, [good[0], bad_frame(good[1], float("nan"))])
    with pytest.raises(CalibrationError, match="got a frame of list, need a SparseTensor"):
        vq.calibrate(qmodel, [[1, 2]])
    with pytest.raises(CalibrationError, match="got no value at all"):
        vq.calibrate(
            qmodel,
            [SparseTensor.from_coords(torch.empty(0, 5), torch.empty(0, 4), (12, 16, 16), 1)],
        )
    after = vq.QuantState.of(qmodel).tensors
    assert all(torch.equal(before[key], after[key]) for key in before)
    modes = {q.mode for q in quantization_of(qmodel).tensor_quantizers.values()}
    assert modes == {QuantizerMode.QUANTIZE}


def test_activations_that_overflow_name_their_tensor(make_network, frames_of) -> None:
    qmodel = vq.quantize(make_network("plain"))
    with pytest.raises(CalibrationError, match=r"stem: got inf among"):
        vq.calibrate(qmodel, [bad_frame(frames_of("plain")[0], 1e38)])


def test_a_dead_tensor_is_named(make_network, frames_of) -> None:
    network = make_network("plain")
    with torch.no_grad():
        network.down[0].bias.fill_(-1e4)  # its ReLU lets nothing pass
    qmodel = vq.quantize(network)
    with pytest.raises(CalibrationError, match=r"down\.0: got only exact zeros"):
        vq.calibrate(qmodel, frames_of("plain"))


def test_weights_and_biases_receive_gradients(calibrated, frames_of) -> None:
    """The seam of quantization-aware training: what trains is the module's own parameter."""
    qmodel = calibrated("residual")
    qmodel(frames_of("residual")[0]).square().sum().backward()
    for module in qmodel.modules():
        if isinstance(module, QuantSparseConvBase):
            assert module.weight.grad is not None
            assert module.weight.grad.abs().sum() > 0
            assert module.bias.grad is not None


def test_modules_under_two_names_are_exchanged_under_both(make_frame) -> None:
    class Aliased(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.convs = nn.ModuleList([SubMConv3d(5, 6, 3), SubMConv3d(6, 6, 3)])
            self.last = self.convs[1]

        def forward(self, x: SparseTensor) -> SparseTensor:
            return self.last(self.convs[0](x))

    torch.manual_seed(0)
    network = Aliased()
    qmodel = vq.quantize(network)
    vq.calibrate(qmodel, [make_frame(0)])
    assert qmodel.last is qmodel.convs[1]
    assert isinstance(qmodel.last, QuantSparseConvBase)
    state = vq.QuantState.of(qmodel)
    assert torch.equal(state.apply(network)(make_frame(1)).features, qmodel(make_frame(1)).features)


def test_bare_convs_and_quantized_models_are_refused(calibrated, make_frame) -> None:
    with pytest.raises(GraphError, match="wrap it in SparseSequential"):
        vq.quantize(SubMConv3d(5, 5, 3), example=make_frame(0))
    with pytest.raises(GraphError, match="quantized already"):
        vq.quantize(calibrated("plain"))
    with pytest.raises(QuantStateError, match="not quantized"):
        vq.calibrate(nn.Identity(), [make_frame(0)])


def test_extra_arguments_of_the_model_are_passed_on(make_frame) -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = SubMConv3d(5, 6, 3), SubMConv3d(6, 6, 3)

        def forward(self, x: SparseTensor, factor: float) -> torch.Tensor:
            return self.second(self.first(x)).features * factor

    torch.manual_seed(0)
    qmodel = vq.quantize(Scaled())
    vq.calibrate(qmodel, [(make_frame(0), 2.0)])
    assert torch.equal(qmodel(make_frame(1), 2.0), 2.0 * qmodel(make_frame(1), 1.0))
